-- What callers of the API changed: written in the transaction that changed it, put into the chain afterwards.
CREATE TABLE audit (
    id TEXT PRIMARY KEY,
    at BIGINT NOT NULL,
    actor TEXT NOT NULL,
    token TEXT NOT NULL,
    source TEXT,
    through TEXT NOT NULL,
    action TEXT NOT NULL,
    request TEXT NOT NULL,
    -- Its place in the chain, and the link; null until it has one.
    number BIGINT UNIQUE,
    link TEXT
);
CREATE INDEX audit_unlinked ON audit (id) WHERE number IS NULL;
CREATE INDEX audit_actor ON audit (actor, number);
CREATE TABLE audit_changes (
    record TEXT NOT NULL REFERENCES audit (id),
    position INTEGER NOT NULL,
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    before_digest TEXT,
    after_digest TEXT,
    PRIMARY KEY (record, position)
);
CREATE INDEX audit_changes_id ON audit_changes (id);
