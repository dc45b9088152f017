-- Blocks of a pool that are a project's alone, and who may do what with a pool's addresses.
ALTER TABLE pools ADD COLUMN block INTEGER;             -- depth of a project's blocks; NULL: no such blocks
ALTER TABLE pools ADD COLUMN blocks INTEGER NOT NULL DEFAULT 0; -- how many each project gets at most
ALTER TABLE pools ADD COLUMN parent INTEGER;            -- number of the pool that a project's is carved from
ALTER TABLE pools ADD COLUMN project TEXT REFERENCES projects (id); -- whose it is; NULL: shared
ALTER TABLE pools ADD COLUMN grants TEXT NOT NULL       -- JSON
    DEFAULT '[{"to":"everyone","may":["assign","reverse"]}]';
CREATE UNIQUE INDEX pools_of_parent ON pools (parent, project) WHERE parent IS NOT NULL;

-- Names of addresses, by which reverse DNS answers. One that nobody holds any more has none.
CREATE TABLE reverse_names (
    id          TEXT    PRIMARY KEY NOT NULL, -- VRF/ADDRESS
    vrf         INTEGER NOT NULL REFERENCES vrfs (number),
    start       BLOB    NOT NULL,
    claim       TEXT    NOT NULL REFERENCES claims (id),
    name        TEXT    NOT NULL,
    changed     INTEGER NOT NULL
);
CREATE UNIQUE INDEX reverse_names_of_address ON reverse_names (vrf, start);
CREATE INDEX reverse_names_of_claim ON reverse_names (claim);
