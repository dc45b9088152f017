-- BMCs of machines that are not known yet, by the serial number of their mainboard.
CREATE TABLE expected_bmcs (
    id          TEXT    PRIMARY KEY NOT NULL,                -- RACK/SERIAL
    rack        TEXT    NOT NULL REFERENCES racks (id),
    serial      TEXT    NOT NULL,
    at          TEXT    NOT NULL,
    protocol    TEXT    NOT NULL,
    login       TEXT    NOT NULL,
    password    TEXT    NOT NULL,                            -- sealed
    fingerprint TEXT,
    rotate      INTEGER NOT NULL,                            -- whether it gets another password at once
    since       INTEGER NOT NULL
);
