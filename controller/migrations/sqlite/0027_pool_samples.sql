-- How much of each pool was used, once a day. Numbers of addresses are digits: those of IPv6 are larger
-- than the database's.
CREATE TABLE pool_samples (
    pool        BIGINT NOT NULL REFERENCES pools (number) ON DELETE CASCADE,
    day         BIGINT NOT NULL,        -- of UTC, from 1970-01-01
    free        TEXT   NOT NULL,
    claimed     TEXT   NOT NULL,
    reserved    TEXT   NOT NULL,
    quarantined TEXT   NOT NULL,
    blocks      TEXT   NOT NULL,        -- in blocks that are a project's alone
    largest     TEXT   NOT NULL,        -- addresses of the largest block that can be claimed
    PRIMARY KEY (pool, day)
);
