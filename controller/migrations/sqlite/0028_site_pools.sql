-- A pool can be for the machines of all racks of a site.
ALTER TABLE pools ADD COLUMN site TEXT REFERENCES sites (id); -- NULL: everywhere, or in one rack
-- Where that stands which no machine holds, of such a pool.
ALTER TABLE claims ADD COLUMN site TEXT;
CREATE INDEX claims_of_site ON claims (site, id) WHERE until = 9223372036854775807 AND site IS NOT NULL;
