CREATE TABLE images (
    id          TEXT PRIMARY KEY NOT NULL,
    name        TEXT NOT NULL UNIQUE,
    created     BIGINT NOT NULL,
    state       TEXT NOT NULL,            -- importing, ready, failed
    settings    TEXT NOT NULL,
    -- while importing
    doing       TEXT,
    done        BIGINT NOT NULL DEFAULT 0,
    total       BIGINT NOT NULL DEFAULT 0,
    -- once ready
    manifest    TEXT,
    size        BIGINT,
    stored      BIGINT,
    sector      BIGINT,
    firmware    TEXT,                     -- JSON array
    sha256      TEXT,
    -- once failed
    cause       TEXT,
    detail      TEXT
);

CREATE TABLE tokens (
    id          TEXT PRIMARY KEY NOT NULL,
    name        TEXT NOT NULL UNIQUE,
    hash        TEXT NOT NULL UNIQUE,     -- SHA-256 of the token, lower-case hexadecimal
    created     BIGINT NOT NULL,
    expires     BIGINT,
    used        BIGINT
);
