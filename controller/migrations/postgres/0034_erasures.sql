-- As SQLite's of this number.
CREATE TABLE erasures (
    id          TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    rack        TEXT COLLATE "C" NOT NULL REFERENCES racks (id),
    project     TEXT COLLATE "C",
    machine     TEXT COLLATE "C" NOT NULL,
    run         TEXT COLLATE "C" NOT NULL,
    disk        TEXT COLLATE "C" NOT NULL,
    serial      TEXT COLLATE "C" NOT NULL,
    proven      BIGINT NOT NULL,
    certificate TEXT COLLATE "C" NOT NULL
);

CREATE INDEX erasures_of_machine ON erasures (machine, id);
CREATE INDEX erasures_of_run ON erasures (run, id);
CREATE INDEX erasures_of_rack ON erasures (rack, id);
CREATE INDEX erasures_of_project ON erasures (project, id);
CREATE INDEX erasures_of_serial ON erasures (serial, id);
