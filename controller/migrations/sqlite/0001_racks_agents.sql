CREATE TABLE racks (
    id          TEXT PRIMARY KEY NOT NULL,
    name        TEXT NOT NULL UNIQUE,
    network     TEXT NOT NULL,            -- JSON
    revision    BIGINT NOT NULL,          -- of its intent; counts up at every change
    created     BIGINT NOT NULL
);

CREATE TABLE agents (
    id          TEXT PRIMARY KEY NOT NULL,
    rack        TEXT NOT NULL REFERENCES racks (id),
    key_pin     TEXT NOT NULL,            -- SHA-256 of the newest certificate's key
    cert_until  BIGINT NOT NULL,
    incarnation TEXT,
    connection  BIGINT NOT NULL DEFAULT 0, -- counts up at every connection
    next_event  BIGINT NOT NULL DEFAULT 1, -- all with lower numbers are taken
    revision    BIGINT NOT NULL DEFAULT 0, -- of the intent on its disk
    version     TEXT,
    enrolled    BIGINT NOT NULL,
    connected   BIGINT,                   -- since when; NULL while it is not
    seen        BIGINT,
    revoked     BIGINT
);

CREATE INDEX agents_by_rack ON agents (rack);

CREATE TABLE enrolment_codes (
    hash        TEXT PRIMARY KEY NOT NULL, -- SHA-256 of the secret, lower-case hexadecimal
    rack        TEXT NOT NULL REFERENCES racks (id),
    created     BIGINT NOT NULL,
    expires     BIGINT NOT NULL,
    used        BIGINT,
    used_by     TEXT
);
