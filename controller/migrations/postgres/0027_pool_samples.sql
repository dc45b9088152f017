-- As SQLite's of this number.
CREATE TABLE pool_samples (
    pool        BIGINT NOT NULL REFERENCES pools (number) ON DELETE CASCADE,
    day         BIGINT NOT NULL,
    free        TEXT COLLATE "C" NOT NULL,
    claimed     TEXT COLLATE "C" NOT NULL,
    reserved    TEXT COLLATE "C" NOT NULL,
    quarantined TEXT COLLATE "C" NOT NULL,
    blocks      TEXT COLLATE "C" NOT NULL,
    largest     TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (pool, day)
);
