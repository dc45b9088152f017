-- Who may do what where, and what it is done to: sites, organisations, projects, people, roles, tokens.

CREATE TABLE sites (
    id      TEXT   PRIMARY KEY NOT NULL,
    name    TEXT   NOT NULL UNIQUE,
    created BIGINT NOT NULL
);

-- Where racks stand that were there before.
INSERT INTO sites (id, name, created) VALUES ('01931b1e-0000-7000-8000-000000000001', 'default', 0);
ALTER TABLE racks ADD COLUMN site TEXT NOT NULL DEFAULT '01931b1e-0000-7000-8000-000000000001';
CREATE INDEX racks_site ON racks (site, id);

CREATE TABLE organisations (
    id      TEXT   PRIMARY KEY NOT NULL,
    name    TEXT   NOT NULL UNIQUE,
    created BIGINT NOT NULL
);

CREATE TABLE projects (
    id           TEXT   PRIMARY KEY NOT NULL,
    organisation TEXT   NOT NULL REFERENCES organisations (id),
    name         TEXT   NOT NULL,
    created      BIGINT NOT NULL,
    UNIQUE (organisation, name)
);
CREATE INDEX projects_name ON projects (name);

CREATE TABLE people (
    id        TEXT    PRIMARY KEY NOT NULL,
    name      TEXT    NOT NULL UNIQUE,
    email     TEXT    NOT NULL,
    -- Argon2id, with its parameters; null: no password.
    password  TEXT,
    -- The secret of the second factor, sealed; null: none.
    totp      TEXT,
    -- 1 once a code proved that its owner has it.
    confirmed INTEGER NOT NULL DEFAULT 0,
    -- The time step of the newest code that was taken: none before is taken again.
    step      BIGINT  NOT NULL DEFAULT 0,
    -- Who vouches for it elsewhere (OpenID Connect), and by which name.
    issuer    TEXT,
    subject   TEXT,
    created   BIGINT  NOT NULL,
    UNIQUE (issuer, subject)
);

CREATE TABLE bindings (
    id         TEXT   PRIMARY KEY NOT NULL,
    person     TEXT   NOT NULL REFERENCES people (id) ON DELETE CASCADE,
    role       TEXT   NOT NULL,
    -- everything, organisation, project, site, rack; and which, empty for everything.
    kind       TEXT   NOT NULL,
    scope      TEXT   NOT NULL,
    -- Who granted it; null: it follows from a group of who vouches for the person.
    granted_by TEXT,
    created    BIGINT NOT NULL,
    UNIQUE (person, role, kind, scope)
);
CREATE INDEX bindings_scope ON bindings (kind, scope, id);

-- Tokens were an administrator's.
INSERT INTO people (id, name, email, created)
SELECT '01931b1e-0000-7000-8000-000000000002', 'admin', '', 0 WHERE EXISTS (SELECT 1 FROM tokens);
INSERT INTO bindings (id, person, role, kind, scope, granted_by, created)
SELECT '01931b1e-0000-7000-8000-000000000003', id, 'owner', 'everything', '', 'admin', 0 FROM people;

-- A token is a person's or a project's; its name is unique among those of the same owner.
CREATE TABLE tokens_owned (
    id      TEXT    PRIMARY KEY NOT NULL,
    name    TEXT    NOT NULL,
    person  TEXT    REFERENCES people (id) ON DELETE CASCADE,
    project TEXT    REFERENCES projects (id) ON DELETE CASCADE,
    -- What a project's may do in it.
    role    TEXT,
    hash    TEXT    NOT NULL UNIQUE,
    -- How it begins, to be recognised by.
    prefix  TEXT    NOT NULL,
    -- Only these; JSON arrays; null for all.
    actions TEXT,
    scopes  TEXT,
    -- 1: it is of a login, and goes with the password.
    login   INTEGER NOT NULL DEFAULT 0,
    created BIGINT  NOT NULL,
    expires BIGINT,
    used    BIGINT,
    UNIQUE (person, name),
    UNIQUE (project, name)
);
INSERT INTO tokens_owned (id, name, person, hash, prefix, created, expires, used)
SELECT id, name, '01931b1e-0000-7000-8000-000000000002', hash, 'rh_', created, expires, used FROM tokens;

CREATE TABLE requests_owned (
    token     TEXT    NOT NULL REFERENCES tokens_owned (id) ON DELETE CASCADE,
    key       TEXT    NOT NULL,
    request   TEXT    NOT NULL,
    begun     BIGINT  NOT NULL,
    process   TEXT,
    committed INTEGER NOT NULL DEFAULT 0,
    answer    TEXT,
    PRIMARY KEY (token, key)
);
INSERT INTO requests_owned SELECT token, key, request, begun, process, committed, answer FROM keyed_requests;
DROP TABLE keyed_requests;
DROP TABLE tokens;
ALTER TABLE tokens_owned RENAME TO tokens;
ALTER TABLE requests_owned RENAME TO keyed_requests;
CREATE INDEX keyed_requests_begun ON keyed_requests (begun);
