-- When the node that may have had the command was given up: it may still act for a while.
ALTER TABLE commands ADD COLUMN lost INTEGER;
