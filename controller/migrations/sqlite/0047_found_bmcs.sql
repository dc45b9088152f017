-- BMCs that answer on management networks, and what came of logging in to those of no machine.
CREATE TABLE found_bmcs (
    id         TEXT    PRIMARY KEY NOT NULL,          -- RACK/ADDRESS
    rack       TEXT    NOT NULL REFERENCES racks (id),
    address    TEXT    NOT NULL,
    found      TEXT    NOT NULL,                      -- what it says to anybody, as JSON
    first_seen INTEGER NOT NULL,
    last_seen  INTEGER NOT NULL,
    state      TEXT    NOT NULL,
    detail     TEXT,
    met        TEXT,                                  -- what it said once it was logged in to, as JSON
    again      INTEGER NOT NULL                       -- before, it is not logged in to
);
-- Whether those that no manifest tells of are tried with what they come with from the factory.
ALTER TABLE racks ADD COLUMN try_factory INTEGER NOT NULL DEFAULT 0;
