-- What is in machines in detail, as their installers told last.
CREATE TABLE machine_hardware (
    id       TEXT    PRIMARY KEY NOT NULL REFERENCES machines (id),  -- the machine's
    taken    INTEGER NOT NULL,      -- when, by the node's clock
    hardware TEXT    NOT NULL       -- as JSON
);
