-- What is given to which project, beside where it stands; and lists of what somebody may see.

ALTER TABLE machines ADD COLUMN project TEXT REFERENCES projects (id);
CREATE INDEX machines_project ON machines (project, id) WHERE project IS NOT NULL;
CREATE INDEX machines_project_name ON machines (project, name) WHERE project IS NOT NULL;
CREATE INDEX machines_rack_name ON machines (rack, name);

-- The project that a run's machine had when it began, and the one that it had when something happened.
ALTER TABLE runs ADD COLUMN project TEXT;
CREATE INDEX runs_project ON runs (project, id) WHERE project IS NOT NULL;
CREATE INDEX runs_rack ON runs (rack, id);
ALTER TABLE events ADD COLUMN project TEXT;
CREATE INDEX events_of_project ON events (project, id) WHERE project IS NOT NULL;
CREATE INDEX events_of_rack ON events (rack, id);

-- Who answered for a claim was told in words: each becomes a project of its own.
ALTER TABLE claims ADD COLUMN project TEXT;
-- Where its machine, or else its pool's machines, stand.
ALTER TABLE claims ADD COLUMN rack TEXT;
INSERT INTO organisations (id, name, created)
SELECT '01931b1e-0000-7000-8000-000000000004', 'default', 0 WHERE EXISTS (SELECT 1 FROM claims WHERE owner <> '');
INSERT INTO projects (id, organisation, name, created)
SELECT '01931b1e-0000-7' || substr(hex(randomblob(2)), 2) || '-8' || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6)),
       '01931b1e-0000-7000-8000-000000000004', owner, 0
FROM (SELECT DISTINCT owner FROM claims WHERE owner <> '');
UPDATE projects SET id = lower(id);
UPDATE claims SET project = (SELECT id FROM projects WHERE name = claims.owner) WHERE owner <> '';
UPDATE claims SET rack = COALESCE(
    (SELECT rack FROM machines WHERE machines.id = claims.machine),
    (SELECT rack FROM pools WHERE pools.number = claims.pool));
ALTER TABLE claims DROP COLUMN owner;
CREATE INDEX claims_of_project ON claims (project, id) WHERE until = 9223372036854775807 AND project IS NOT NULL;
CREATE INDEX claims_of_rack ON claims (rack, id) WHERE until = 9223372036854775807 AND rack IS NOT NULL;
