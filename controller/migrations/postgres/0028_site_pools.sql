-- As SQLite's of this number.
ALTER TABLE pools ADD COLUMN site TEXT COLLATE "C" REFERENCES sites (id);
ALTER TABLE claims ADD COLUMN site TEXT COLLATE "C";
CREATE INDEX claims_of_site ON claims (site, id) WHERE until = 9223372036854775807 AND site IS NOT NULL;
