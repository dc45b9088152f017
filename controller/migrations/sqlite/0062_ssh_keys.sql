-- Public keys of people, by which they open consoles by SSH.
CREATE TABLE ssh_keys (
    id          TEXT    NOT NULL PRIMARY KEY,
    person      TEXT    NOT NULL REFERENCES people (id) ON DELETE CASCADE,
    -- What its owner calls it.
    name        TEXT    NOT NULL,
    -- Algorithm and key as in authorized_keys, without a comment.
    key         TEXT    NOT NULL UNIQUE,
    -- SHA-256 of it, as ssh-keygen shows it.
    fingerprint TEXT    NOT NULL UNIQUE,
    created     INTEGER NOT NULL,
    used        INTEGER,
    UNIQUE (person, name)
) STRICT;

-- Where an agent's metrics are to be had; null: nowhere, from elsewhere.
ALTER TABLE agents ADD COLUMN metrics TEXT;
