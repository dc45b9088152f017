-- Where a machine's rescue system is reached, as JSON, while it is in rescue.
ALTER TABLE machines ADD COLUMN rescue TEXT;
