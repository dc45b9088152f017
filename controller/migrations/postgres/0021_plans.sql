-- Plans: classes of machines by what is in them.
CREATE TABLE plans (
    id          TEXT COLLATE "C" PRIMARY KEY,
    name        TEXT COLLATE "C" NOT NULL UNIQUE,
    description TEXT COLLATE "C" NOT NULL,
    rules       TEXT COLLATE "C" NOT NULL,            -- JSON
    created     BIGINT NOT NULL,
    -- Counts its changes.
    revision    BIGINT NOT NULL
);
