-- As SQLite's of this number.
ALTER TABLE firmware_updates ADD COLUMN told TEXT COLLATE "C";
ALTER TABLE firmware_updates ADD COLUMN tested TEXT COLLATE "C";
