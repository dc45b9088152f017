-- Public keys of people, by which they open consoles by SSH.
CREATE TABLE ssh_keys (
    id          TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    person      TEXT COLLATE "C" NOT NULL REFERENCES people (id) ON DELETE CASCADE,
    -- What its owner calls it.
    name        TEXT COLLATE "C" NOT NULL,
    -- Algorithm and key as in authorized_keys, without a comment.
    key         TEXT COLLATE "C" NOT NULL UNIQUE,
    -- SHA-256 of it, as ssh-keygen shows it.
    fingerprint TEXT COLLATE "C" NOT NULL UNIQUE,
    created     BIGINT           NOT NULL,
    used        BIGINT,
    UNIQUE (person, name)
);

-- Where an agent's metrics are to be had; null: nowhere, from elsewhere.
ALTER TABLE agents ADD COLUMN metrics TEXT COLLATE "C";
