-- As SQLite's of this number.
CREATE TABLE expected_bmcs (
    id          TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    rack        TEXT COLLATE "C" NOT NULL REFERENCES racks (id),
    serial      TEXT COLLATE "C" NOT NULL,
    at          TEXT COLLATE "C" NOT NULL,
    protocol    TEXT COLLATE "C" NOT NULL,
    login       TEXT COLLATE "C" NOT NULL,
    password    TEXT COLLATE "C" NOT NULL,
    fingerprint TEXT COLLATE "C",
    rotate      BIGINT NOT NULL,
    since       BIGINT NOT NULL
);
