-- Firmware that was imported.
CREATE TABLE firmware (
    id       TEXT    PRIMARY KEY NOT NULL,
    name     TEXT    NOT NULL UNIQUE,
    text     TEXT    NOT NULL,     -- the manifest, as it was given
    manifest TEXT    NOT NULL,     -- the manifest, as JSON
    here     INTEGER,              -- since when its file is here, whole
    created  INTEGER NOT NULL
) STRICT;

-- What was updated, and what became of it.
CREATE TABLE firmware_updates (
    id      TEXT    PRIMARY KEY NOT NULL,
    machine TEXT    NOT NULL,
    run     TEXT    NOT NULL,
    agent   TEXT    NOT NULL,      -- who was asked for it first
    name    TEXT    NOT NULL,      -- the manifest's
    place   TEXT    NOT NULL,      -- whose version it is, as JSON
    was     TEXT,                  -- the version before
    version TEXT    NOT NULL,      -- the version that was wanted
    state   TEXT    NOT NULL,
    detail  TEXT    NOT NULL,
    updated INTEGER NOT NULL,
    UNIQUE (run, name)
) STRICT;

CREATE INDEX firmware_updates_of_machine ON firmware_updates (machine, id);
