-- Requests that carried an Idempotency-Key, for a day: what was asked, and what was answered.
CREATE TABLE keyed_requests (
    token TEXT NOT NULL REFERENCES tokens (id) ON DELETE CASCADE,
    key TEXT NOT NULL,
    -- SHA-256 of method, path and body.
    request TEXT NOT NULL,
    begun BIGINT NOT NULL,
    -- Names the process that carries it out; null when none does any more.
    process TEXT,
    -- 1 once something it did was committed: it is not to be done again.
    committed INTEGER NOT NULL DEFAULT 0,
    -- The answer, sealed; null until there is one.
    answer TEXT,
    PRIMARY KEY (token, key)
);
CREATE INDEX keyed_requests_begun ON keyed_requests (begun);
