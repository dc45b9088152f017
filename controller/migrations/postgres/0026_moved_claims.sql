-- As SQLite's of this number.
ALTER TABLE claims ADD COLUMN version BIGINT NOT NULL DEFAULT 1;
