-- As SQLite's of this number.
CREATE TABLE firmware_campaigns (
    id         TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    rack       TEXT COLLATE "C" NOT NULL REFERENCES racks (id),
    plan       TEXT COLLATE "C",
    at_most    BIGINT NOT NULL,
    stop_after BIGINT NOT NULL,
    wish       TEXT COLLATE "C" NOT NULL,
    outcome    TEXT COLLATE "C",
    created    BIGINT NOT NULL,
    created_by TEXT COLLATE "C" NOT NULL,
    ended      BIGINT,
    version    BIGINT NOT NULL
);

CREATE INDEX firmware_campaigns_of_rack ON firmware_campaigns (rack, id);

CREATE TABLE firmware_campaign_machines (
    campaign TEXT COLLATE "C" NOT NULL REFERENCES firmware_campaigns (id),
    place    BIGINT NOT NULL,
    machine  TEXT COLLATE "C" NOT NULL,
    firmware TEXT COLLATE "C" NOT NULL,
    state    TEXT COLLATE "C" NOT NULL,
    run      TEXT COLLATE "C",
    detail   TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (campaign, place)
);
