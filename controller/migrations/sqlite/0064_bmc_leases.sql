-- Cards on management networks that were given an address by their rack's node.
CREATE TABLE bmc_leases (
    id         TEXT    PRIMARY KEY NOT NULL,          -- RACK/MAC
    rack       TEXT    NOT NULL REFERENCES racks (id),
    address    TEXT    NOT NULL,
    lease      TEXT    NOT NULL,                      -- what the card said of itself, as JSON
    first_seen INTEGER NOT NULL,
    last_seen  INTEGER NOT NULL,
    moved      TEXT                                   -- the machine whose BMC it was elsewhere, as JSON
);
CREATE INDEX bmc_leases_by_rack ON bmc_leases (rack, last_seen);
