-- Machines as the controller knows them, what is being done to them, and what happened.

CREATE TABLE machines (
    id          TEXT    PRIMARY KEY NOT NULL,
    rack        TEXT    NOT NULL REFERENCES racks (id),
    name        TEXT    NOT NULL UNIQUE,
    lifecycle   TEXT    NOT NULL,
    epoch       INTEGER NOT NULL,
    boot        TEXT    NOT NULL,
    address     TEXT    NOT NULL,
    inventory   TEXT    NOT NULL,
    -- The event of its installer's latest connection, and whether that still stands.
    connection  INTEGER NOT NULL,
    connected   INTEGER NOT NULL,
    power       TEXT,
    -- The latest hop on its way, and the event that told of it.
    stage       TEXT,
    stage_event INTEGER NOT NULL DEFAULT 0,
    -- The event of its latest start.
    power_event INTEGER NOT NULL DEFAULT 0,
    -- What its installer shall do: the intent's order.
    orders      TEXT,
    -- The image of an active machine.
    image       TEXT,
    -- What an operator should look at.
    alert       TEXT,
    created     INTEGER NOT NULL,
    updated     INTEGER NOT NULL,
    version     INTEGER NOT NULL,
    UNIQUE (rack, address)
);

CREATE TABLE macs (
    rack     TEXT    NOT NULL,
    mac      TEXT    NOT NULL,
    machine  TEXT    NOT NULL REFERENCES machines (id) ON DELETE CASCADE,
    -- The card it boots from has position 0.
    position INTEGER NOT NULL,
    PRIMARY KEY (rack, mac)
);

CREATE INDEX macs_of_machine ON macs (machine, position);

CREATE TABLE runs (
    id            TEXT    PRIMARY KEY NOT NULL,
    rack          TEXT    NOT NULL,
    machine       TEXT    NOT NULL REFERENCES machines (id),
    epoch         INTEGER NOT NULL,
    parameters    TEXT    NOT NULL,
    -- Written by the runner alone.
    engine        TEXT    NOT NULL,
    status        TEXT    NOT NULL,
    step          TEXT,
    attempt       INTEGER NOT NULL,
    undoing       INTEGER NOT NULL,
    waiting_for   TEXT,
    waiting_until INTEGER,
    detail        TEXT,
    cause         TEXT,
    -- Written by others: what an operator wants, and what the rack told of it.
    cancel        INTEGER NOT NULL,
    done          INTEGER NOT NULL,
    total         INTEGER NOT NULL,
    result        TEXT,
    phoned_home   INTEGER NOT NULL,
    created       INTEGER NOT NULL,
    updated       INTEGER NOT NULL,
    ended         INTEGER
);

CREATE INDEX runs_of_machine ON runs (machine, id);

-- A machine has at most one run in progress.
CREATE UNIQUE INDEX runs_in_progress ON runs (machine) WHERE status = 'running';

CREATE TABLE events (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    at      INTEGER NOT NULL,
    rack    TEXT    NOT NULL,
    machine TEXT,
    run     TEXT,
    body    TEXT    NOT NULL
);

CREATE INDEX events_of_machine ON events (machine, id);
CREATE INDEX events_of_run ON events (run, id);

-- The newest reading of each node's own health.
CREATE TABLE node_health (
    agent   TEXT    PRIMARY KEY NOT NULL REFERENCES agents (id),
    at      INTEGER NOT NULL,
    reading TEXT    NOT NULL
);

CREATE TABLE commands (
    id      TEXT    PRIMARY KEY NOT NULL,
    rack    TEXT    NOT NULL,
    machine TEXT    NOT NULL REFERENCES machines (id),
    epoch   INTEGER NOT NULL,
    run     TEXT    NOT NULL REFERENCES runs (id),
    -- Which step of the run wants it, and what for: makes issuing it repeatable.
    purpose TEXT    NOT NULL,
    action  TEXT    NOT NULL,
    -- The newest event when it was written: what came later may be its effect.
    after   INTEGER NOT NULL,
    sent    INTEGER,
    outcome TEXT,
    created INTEGER NOT NULL,
    UNIQUE (run, purpose)
);
