-- As SQLite's of this number.
CREATE TABLE firmware (
    id       TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    name     TEXT COLLATE "C" NOT NULL UNIQUE,
    text     TEXT COLLATE "C" NOT NULL,
    manifest TEXT COLLATE "C" NOT NULL,
    here     BIGINT,
    created  BIGINT NOT NULL
);

CREATE TABLE firmware_updates (
    id      TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    machine TEXT COLLATE "C" NOT NULL,
    run     TEXT COLLATE "C" NOT NULL,
    agent   TEXT COLLATE "C" NOT NULL,
    name    TEXT COLLATE "C" NOT NULL,
    place   TEXT COLLATE "C" NOT NULL,
    was     TEXT COLLATE "C",
    version TEXT COLLATE "C" NOT NULL,
    state   TEXT COLLATE "C" NOT NULL,
    detail  TEXT COLLATE "C" NOT NULL,
    updated BIGINT NOT NULL,
    UNIQUE (run, name)
);

CREATE INDEX firmware_updates_of_machine ON firmware_updates (machine, id);
