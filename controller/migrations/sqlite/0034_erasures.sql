-- What became of each disk in releases: signed certificates. They outlive machines and runs.
CREATE TABLE erasures (
    id          TEXT    PRIMARY KEY NOT NULL,
    rack        TEXT    NOT NULL REFERENCES racks (id),
    project     TEXT,                  -- whose the machine was when its release began
    machine     TEXT    NOT NULL,
    run         TEXT    NOT NULL,
    disk        TEXT    NOT NULL,      -- its identity
    serial      TEXT    NOT NULL,
    proven      INTEGER NOT NULL,
    certificate TEXT    NOT NULL       -- with signature and chain, as JSON
);

CREATE INDEX erasures_of_machine ON erasures (machine, id);
CREATE INDEX erasures_of_run ON erasures (run, id);
CREATE INDEX erasures_of_rack ON erasures (rack, id);
CREATE INDEX erasures_of_project ON erasures (project, id);
CREATE INDEX erasures_of_serial ON erasures (serial, id);
