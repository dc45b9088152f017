-- When it was given to a node first, before the node answered: from then on it may have it.
ALTER TABLE commands ADD COLUMN offered INTEGER;
UPDATE commands SET offered = created;
-- When the node that may have it was given up: it may still act for a while.
ALTER TABLE commands ADD COLUMN lost INTEGER;
