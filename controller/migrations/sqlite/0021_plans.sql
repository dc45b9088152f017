-- Plans: classes of machines by what is in them.
CREATE TABLE plans (
    id          TEXT PRIMARY KEY NOT NULL,
    name        TEXT NOT NULL UNIQUE,
    description TEXT NOT NULL,
    rules       TEXT NOT NULL,            -- JSON
    created     BIGINT NOT NULL,
    -- Counts its changes.
    revision    BIGINT NOT NULL
);
