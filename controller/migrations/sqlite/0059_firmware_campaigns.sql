-- Updates of a rack's machines, few at a time.
CREATE TABLE firmware_campaigns (
    id         TEXT    PRIMARY KEY NOT NULL,
    rack       TEXT    NOT NULL REFERENCES racks (id),
    plan       TEXT,               -- only machines of this plan
    at_most    INTEGER NOT NULL,   -- percent of its machines at once
    stop_after INTEGER NOT NULL,   -- so many failures end it
    wish       TEXT    NOT NULL,
    outcome    TEXT,               -- how it ended
    created    INTEGER NOT NULL,
    created_by TEXT    NOT NULL,
    ended      INTEGER,
    version    INTEGER NOT NULL
) STRICT;

CREATE INDEX firmware_campaigns_of_rack ON firmware_campaigns (rack, id);

CREATE TABLE firmware_campaign_machines (
    campaign TEXT    NOT NULL REFERENCES firmware_campaigns (id),
    place    INTEGER NOT NULL,
    machine  TEXT    NOT NULL,
    firmware TEXT    NOT NULL,     -- names of what is installed, as JSON
    state    TEXT    NOT NULL,
    run      TEXT,
    detail   TEXT    NOT NULL,
    PRIMARY KEY (campaign, place)
) STRICT;
