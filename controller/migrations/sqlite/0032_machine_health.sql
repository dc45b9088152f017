-- How machines fare, as their racks' agents decide.
CREATE TABLE machine_health (
    id     TEXT    PRIMARY KEY NOT NULL REFERENCES machines (id),  -- the machine's
    state  TEXT    NOT NULL,      -- ok, unknown, warning, critical
    causes TEXT    NOT NULL,      -- as JSON
    since  INTEGER NOT NULL,      -- by the node's clock
    heard  INTEGER NOT NULL       -- when the agent said so last, by the node's clock
);

CREATE INDEX machine_health_by_state ON machine_health (state);

-- What it was before, the newest of each machine.
CREATE TABLE health_transitions (
    id      INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    machine TEXT    NOT NULL REFERENCES machines (id),
    at      INTEGER NOT NULL,
    state   TEXT    NOT NULL,
    causes  TEXT    NOT NULL
);

CREATE INDEX health_transitions_by_machine ON health_transitions (machine, id);

-- Machines that are given out although they are critical, for a time.
CREATE TABLE health_overrides (
    id      TEXT    PRIMARY KEY NOT NULL REFERENCES machines (id),  -- the machine's
    reason  TEXT    NOT NULL,
    actor   TEXT    NOT NULL,
    made    INTEGER NOT NULL,
    expires INTEGER NOT NULL
);
