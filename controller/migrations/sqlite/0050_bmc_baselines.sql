-- What the BMCs of machines are to be like, and how each was found last.
CREATE TABLE bmc_baselines (
    id          TEXT    PRIMARY KEY NOT NULL REFERENCES machines (id),  -- the machine's
    record      TEXT,                  -- as JSON; NULL: none yet
    recorded    INTEGER,
    accepted_by TEXT,                  -- NULL: nobody has looked at the record
    found       TEXT    NOT NULL,      -- as JSON
    found_at    INTEGER NOT NULL,
    remarks     TEXT    NOT NULL,      -- what the BMC refused, and what is in doubt, as JSON
    version     INTEGER NOT NULL
);
