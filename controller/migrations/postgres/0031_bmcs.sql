-- As SQLite's of this number.
CREATE TABLE bmcs (
    id          TEXT COLLATE "C" PRIMARY KEY NOT NULL REFERENCES machines (id),
    at          TEXT COLLATE "C" NOT NULL,
    protocol    TEXT COLLATE "C" NOT NULL,
    login       TEXT COLLATE "C" NOT NULL,
    password    TEXT COLLATE "C" NOT NULL,
    fingerprint TEXT COLLATE "C",
    mainboard   TEXT COLLATE "C",
    changed     BIGINT NOT NULL,
    version     BIGINT NOT NULL
);
