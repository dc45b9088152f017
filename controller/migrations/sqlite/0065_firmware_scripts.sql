-- What an installer told of an update by a script, as JSON: which order it was of and how it ended, and what the
-- script said.
ALTER TABLE firmware_updates ADD COLUMN told TEXT;
ALTER TABLE firmware_updates ADD COLUMN tested TEXT;
