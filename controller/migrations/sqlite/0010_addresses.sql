-- Address space, what of it is whose, and whose it was.
--
-- A prefix is stored as its first address in 16 bytes (IPv4 as ::ffff:a.b.c.d), which sort as
-- addresses do, and its depth: its length of 128, for IPv4 96 more than is written.

CREATE TABLE vrfs (
    number      INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    name        TEXT    NOT NULL UNIQUE,
    created     INTEGER NOT NULL
);

INSERT INTO vrfs (name, created) VALUES ('default', 0);

-- The latest time that stands in a claim. It does not go back when the clock does, so that the
-- order of what happened is that of the commits.
CREATE TABLE address_clock (
    id          INTEGER PRIMARY KEY CHECK (id = 1),
    latest      INTEGER NOT NULL
);

INSERT INTO address_clock VALUES (1, 0);

-- Those of one VRF are disjoint.
CREATE TABLE aggregates (
    number      INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    id          TEXT    NOT NULL UNIQUE,
    vrf         INTEGER NOT NULL REFERENCES vrfs (number),
    start       BLOB    NOT NULL,
    depth       INTEGER NOT NULL,
    finish      BLOB    NOT NULL,     -- its last address
    source      TEXT    NOT NULL,     -- JSON: whose it is, and by what right
    created     INTEGER NOT NULL
);

CREATE TABLE pools (
    number      INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    id          TEXT    NOT NULL UNIQUE,
    name        TEXT    NOT NULL UNIQUE,
    vrf         INTEGER NOT NULL REFERENCES vrfs (number),
    family      INTEGER NOT NULL,     -- 4 or 6
    kind        TEXT    NOT NULL,     -- public, private, global
    rack        TEXT    REFERENCES racks (id), -- NULL: everywhere
    quarantine  INTEGER NOT NULL,     -- seconds that released addresses rest
    purpose     TEXT    NOT NULL,
    extended    INTEGER NOT NULL DEFAULT 0, -- counts the prefixes it was given
    created     INTEGER NOT NULL
);

-- Where in an aggregate's tree a pool's own trees begin.
CREATE TABLE pool_prefixes (
    pool        INTEGER NOT NULL REFERENCES pools (number),
    start       BLOB    NOT NULL,
    depth       INTEGER NOT NULL,
    aggregate   INTEGER NOT NULL REFERENCES aggregates (number),
    PRIMARY KEY (pool, start)
) WITHOUT ROWID;

-- The tree of each aggregate. Its leaves are disjoint and are all of it. A row's halves are put
-- in by the transaction that turns it from free to split, and by that alone.
CREATE TABLE prefixes (
    aggregate   INTEGER NOT NULL REFERENCES aggregates (number),
    start       BLOB    NOT NULL,
    depth       INTEGER NOT NULL,
    pool        INTEGER REFERENCES pools (number), -- NULL: in no pool yet
    state       TEXT    NOT NULL,     -- free, split, claimed, reserved, quarantined
    until       INTEGER,              -- of one in quarantine
    PRIMARY KEY (aggregate, start, depth)
) WITHOUT ROWID;

-- What is next free in a pool is one seek: the smallest that is large enough, the lowest of those.
CREATE INDEX prefixes_next ON prefixes (pool, state, depth DESC, start);
CREATE INDEX prefixes_resting ON prefixes (pool, until) WHERE state = 'quarantined';

-- What is whose, and, as rows stay after their release, whose it was. 9223372036854775807 in
-- `until` means that it still is.
CREATE TABLE claims (
    id          TEXT    PRIMARY KEY NOT NULL,
    vrf         INTEGER NOT NULL,
    aggregate   INTEGER NOT NULL,
    pool        INTEGER NOT NULL,
    pool_name   TEXT    NOT NULL,     -- when it was claimed
    start       BLOB    NOT NULL,
    depth       INTEGER NOT NULL,
    reserved    INTEGER NOT NULL,     -- nobody's, and not to be handed out
    machine     TEXT,
    mac         TEXT,                 -- its port
    name        TEXT    NOT NULL,     -- of the machine, when it was claimed, or of what else holds it
    owner       TEXT    NOT NULL,
    purpose     TEXT    NOT NULL,
    claimed_by  TEXT    NOT NULL,     -- names of tokens
    released_by TEXT,
    since       INTEGER NOT NULL,
    until       INTEGER NOT NULL
);

-- Who held an address at a time is one seek for each prefix it can be in.
CREATE INDEX claims_of_address ON claims (vrf, start, depth, until, since);
CREATE INDEX claims_held ON claims (id) WHERE until = 9223372036854775807;
CREATE INDEX claims_of_name ON claims (name, id) WHERE until = 9223372036854775807;
CREATE INDEX claims_of_pool ON claims (pool, id) WHERE until = 9223372036854775807;
CREATE INDEX claims_of_machine ON claims (machine, id) WHERE until = 9223372036854775807 AND machine IS NOT NULL;
