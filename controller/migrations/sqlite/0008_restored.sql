-- When the database was restored from a backup; NULL once the rack's agent has reported since.
ALTER TABLE racks ADD COLUMN restored BIGINT;
