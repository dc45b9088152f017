-- Since when a run waits for what it waits for, and by which way its machine was last started into the installer.
ALTER TABLE runs ADD COLUMN waiting_since INTEGER;
ALTER TABLE runs ADD COLUMN way TEXT;
