-- How often each was changed: what an ETag is of.
ALTER TABLE claims ADD COLUMN version BIGINT NOT NULL DEFAULT 1;
