-- How the BMCs of machines are reached.
CREATE TABLE bmcs (
    id          TEXT    PRIMARY KEY NOT NULL REFERENCES machines (id),  -- the machine's
    at          TEXT    NOT NULL,
    protocol    TEXT    NOT NULL,
    login       TEXT    NOT NULL,
    password    TEXT    NOT NULL,      -- sealed
    fingerprint TEXT,                  -- of the certificate it has to show; NULL: the one it shows first
    mainboard   TEXT,                  -- that it is on, as JSON; NULL: unknown
    changed     INTEGER NOT NULL,
    version     INTEGER NOT NULL
);
