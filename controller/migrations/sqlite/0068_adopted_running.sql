-- What is known of a machine that was adopted while it ran, and that no installer has looked into since;
-- null: one has.
ALTER TABLE machines ADD COLUMN uninspected TEXT;
CREATE INDEX machines_uninspected ON machines (id) WHERE uninspected IS NOT NULL;
