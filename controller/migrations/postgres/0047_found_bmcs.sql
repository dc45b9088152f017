-- As SQLite's of this number.
CREATE TABLE found_bmcs (
    id         TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    rack       TEXT COLLATE "C" NOT NULL REFERENCES racks (id),
    address    TEXT COLLATE "C" NOT NULL,
    found      TEXT COLLATE "C" NOT NULL,
    first_seen BIGINT NOT NULL,
    last_seen  BIGINT NOT NULL,
    state      TEXT COLLATE "C" NOT NULL,
    detail     TEXT COLLATE "C",
    met        TEXT COLLATE "C",
    again      BIGINT NOT NULL
);
ALTER TABLE racks ADD COLUMN try_factory BIGINT NOT NULL DEFAULT 0;
