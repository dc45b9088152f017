-- As SQLite's of this number.
ALTER TABLE runs ADD COLUMN waiting_since BIGINT;
ALTER TABLE runs ADD COLUMN way TEXT COLLATE "C";
