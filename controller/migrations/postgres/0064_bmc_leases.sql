-- As SQLite's of this number.
CREATE TABLE bmc_leases (
    id         TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    rack       TEXT COLLATE "C" NOT NULL REFERENCES racks (id),
    address    TEXT COLLATE "C" NOT NULL,
    lease      TEXT COLLATE "C" NOT NULL,
    first_seen BIGINT NOT NULL,
    last_seen  BIGINT NOT NULL,
    moved      TEXT COLLATE "C"
);
CREATE INDEX bmc_leases_by_rack ON bmc_leases (rack, last_seen);
