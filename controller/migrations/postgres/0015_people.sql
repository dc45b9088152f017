-- As SQLite's of this number.

CREATE TABLE sites (
    id      TEXT COLLATE "C" PRIMARY KEY,
    name    TEXT COLLATE "C" NOT NULL UNIQUE,
    created BIGINT NOT NULL
);

INSERT INTO sites (id, name, created) VALUES ('01931b1e-0000-7000-8000-000000000001', 'default', 0);
ALTER TABLE racks ADD COLUMN site TEXT COLLATE "C" NOT NULL DEFAULT '01931b1e-0000-7000-8000-000000000001';
CREATE INDEX racks_site ON racks (site, id);

CREATE TABLE organisations (
    id      TEXT COLLATE "C" PRIMARY KEY,
    name    TEXT COLLATE "C" NOT NULL UNIQUE,
    created BIGINT NOT NULL
);

CREATE TABLE projects (
    id           TEXT COLLATE "C" PRIMARY KEY,
    organisation TEXT COLLATE "C" NOT NULL REFERENCES organisations (id),
    name         TEXT COLLATE "C" NOT NULL,
    created      BIGINT NOT NULL,
    UNIQUE (organisation, name)
);
CREATE INDEX projects_name ON projects (name);

CREATE TABLE people (
    id        TEXT COLLATE "C" PRIMARY KEY,
    name      TEXT COLLATE "C" NOT NULL UNIQUE,
    email     TEXT COLLATE "C" NOT NULL,
    password  TEXT COLLATE "C",
    totp      TEXT COLLATE "C",
    confirmed BIGINT NOT NULL DEFAULT 0,
    step      BIGINT NOT NULL DEFAULT 0,
    issuer    TEXT COLLATE "C",
    subject   TEXT COLLATE "C",
    created   BIGINT NOT NULL,
    UNIQUE (issuer, subject)
);

CREATE TABLE bindings (
    id         TEXT COLLATE "C" PRIMARY KEY,
    person     TEXT COLLATE "C" NOT NULL REFERENCES people (id) ON DELETE CASCADE,
    role       TEXT COLLATE "C" NOT NULL,
    kind       TEXT COLLATE "C" NOT NULL,
    scope      TEXT COLLATE "C" NOT NULL,
    granted_by TEXT COLLATE "C",
    created    BIGINT NOT NULL,
    UNIQUE (person, role, kind, scope)
);
CREATE INDEX bindings_scope ON bindings (kind, scope, id);

INSERT INTO people (id, name, email, created)
SELECT '01931b1e-0000-7000-8000-000000000002', 'admin', '', 0 WHERE EXISTS (SELECT 1 FROM tokens);
INSERT INTO bindings (id, person, role, kind, scope, granted_by, created)
SELECT '01931b1e-0000-7000-8000-000000000003', id, 'owner', 'everything', '', 'admin', 0 FROM people;

CREATE TABLE tokens_owned (
    id      TEXT COLLATE "C" PRIMARY KEY,
    name    TEXT COLLATE "C" NOT NULL,
    person  TEXT COLLATE "C" REFERENCES people (id) ON DELETE CASCADE,
    project TEXT COLLATE "C" REFERENCES projects (id) ON DELETE CASCADE,
    role    TEXT COLLATE "C",
    hash    TEXT COLLATE "C" NOT NULL UNIQUE,
    prefix  TEXT COLLATE "C" NOT NULL,
    actions TEXT COLLATE "C",
    scopes  TEXT COLLATE "C",
    login   BIGINT NOT NULL DEFAULT 0,
    created BIGINT NOT NULL,
    expires BIGINT,
    used    BIGINT,
    UNIQUE (person, name),
    UNIQUE (project, name)
);
INSERT INTO tokens_owned (id, name, person, hash, prefix, created, expires, used)
SELECT id, name, '01931b1e-0000-7000-8000-000000000002', hash, 'rh_', created, expires, used FROM tokens;
ALTER TABLE keyed_requests DROP CONSTRAINT keyed_requests_token_fkey;
DROP TABLE tokens;
ALTER TABLE tokens_owned RENAME TO tokens;
ALTER TABLE keyed_requests ADD CONSTRAINT keyed_requests_token_fkey
    FOREIGN KEY (token) REFERENCES tokens (id) ON DELETE CASCADE;
