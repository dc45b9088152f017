-- As SQLite's of this number.
ALTER TABLE machines ADD COLUMN held_reason TEXT COLLATE "C";
ALTER TABLE machines ADD COLUMN held_since  BIGINT;
ALTER TABLE machines ADD COLUMN held_until  BIGINT;
CREATE INDEX machines_overdue ON machines (held_until) WHERE held_until IS NOT NULL;
ALTER TABLE runs ADD COLUMN begun BIGINT NOT NULL DEFAULT 0;
