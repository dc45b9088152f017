-- The run whose installer has set the next password of a BMC in-band, as it says; null: none has.
ALTER TABLE bmcs ADD COLUMN regained_in TEXT COLLATE "C";
