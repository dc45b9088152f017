-- As SQLite's of this number.
CREATE TABLE bmc_baselines (
    id          TEXT COLLATE "C" PRIMARY KEY NOT NULL REFERENCES machines (id),
    record      TEXT COLLATE "C",
    recorded    BIGINT,
    accepted_by TEXT COLLATE "C",
    found       TEXT COLLATE "C" NOT NULL,
    found_at    BIGINT NOT NULL,
    remarks     TEXT COLLATE "C" NOT NULL,
    version     BIGINT NOT NULL
);
