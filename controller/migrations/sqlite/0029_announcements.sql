-- Who may do what with a claim's addresses, as JSON; NULL: as its pool says.
ALTER TABLE claims ADD COLUMN grants TEXT;

-- Which machines announce a claim's addresses, and, as rows stay, which did. Times are as in claims.
CREATE TABLE announcements (
    id           TEXT    PRIMARY KEY NOT NULL,
    claim        TEXT    NOT NULL REFERENCES claims (id),
    vrf          INTEGER NOT NULL REFERENCES vrfs (number),
    start        BLOB    NOT NULL,      -- the claim's addresses
    depth        INTEGER NOT NULL,
    machine      TEXT    NOT NULL,
    name         TEXT    NOT NULL,      -- of the machine, when it began
    project      TEXT,                  -- the claim's
    rack         TEXT    NOT NULL,      -- the machine's
    announced_by TEXT    NOT NULL,
    withdrawn_by TEXT,
    since        INTEGER NOT NULL,
    until        INTEGER NOT NULL
);
CREATE UNIQUE INDEX announcements_of_claim ON announcements (claim, machine) WHERE until = 9223372036854775807;
CREATE INDEX announcements_of_machine ON announcements (machine, id) WHERE until = 9223372036854775807;
CREATE INDEX announcements_of_project ON announcements (project, id) WHERE until = 9223372036854775807 AND project IS NOT NULL;
CREATE INDEX announcements_of_rack ON announcements (rack, id) WHERE until = 9223372036854775807;
CREATE INDEX announcements_made ON announcements (id) WHERE until = 9223372036854775807;
CREATE INDEX announcements_of_address ON announcements (vrf, start, depth, until);

-- Which blocks of pools are a project's own, and which were.
CREATE TABLE project_blocks (
    number       INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    vrf          INTEGER NOT NULL REFERENCES vrfs (number),
    start        BLOB    NOT NULL,
    depth        INTEGER NOT NULL,
    pool         INTEGER NOT NULL,      -- number of the project's pool
    pool_name    TEXT    NOT NULL,
    project      TEXT    NOT NULL,
    project_name TEXT    NOT NULL,      -- ORGANISATION:NAME, when it got it
    since        INTEGER NOT NULL,
    until        INTEGER NOT NULL
);
CREATE INDEX project_blocks_of_address ON project_blocks (vrf, start, depth, until);
CREATE INDEX project_blocks_of_pool ON project_blocks (pool) WHERE until = 9223372036854775807;

-- Of those that are there it is known when the first of their pool was carved.
INSERT INTO project_blocks (vrf, start, depth, pool, pool_name, project, project_name, since, until)
    SELECT pools.vrf, pool_prefixes.start, pool_prefixes.depth, pools.number, pools.name, pools.project,
        organisations.name || ':' || projects.name, pools.created, 9223372036854775807
    FROM pool_prefixes JOIN pools ON pools.number = pool_prefixes.pool
        JOIN projects ON projects.id = pools.project JOIN organisations ON organisations.id = projects.organisation;
-- None were there: nothing is numbered yet.
DELETE FROM sqlite_sequence WHERE name = 'project_blocks' AND seq = 0;
