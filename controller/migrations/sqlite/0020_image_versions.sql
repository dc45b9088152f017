-- An image has versions: its name with its version is unique now, and no more the name alone.
CREATE TABLE image_versions (
    id          TEXT PRIMARY KEY NOT NULL,
    name        TEXT NOT NULL,
    version     BIGINT NOT NULL,
    -- Counts its changes.
    revision    BIGINT NOT NULL DEFAULT 1,
    created     BIGINT NOT NULL,
    state       TEXT NOT NULL,            -- importing, ready, failed
    settings    TEXT NOT NULL,
    -- the catalogue's entry of the system in it
    os          TEXT,
    deprecated  INTEGER NOT NULL DEFAULT 0,
    expires     BIGINT,
    -- while importing
    doing       TEXT,
    done        BIGINT NOT NULL DEFAULT 0,
    total       BIGINT NOT NULL DEFAULT 0,
    -- once ready
    manifest    TEXT,
    size        BIGINT,
    stored      BIGINT,
    sector      BIGINT,
    firmware    TEXT,                     -- JSON array
    sha256      TEXT,
    -- what was found in it: JSON array
    findings    TEXT,
    -- once failed
    cause       TEXT,
    detail      TEXT,
    UNIQUE (name, version)
);

INSERT INTO image_versions (id, name, version, created, state, settings, doing, done, total, manifest, size, stored,
        sector, firmware, sha256, cause, detail)
    SELECT id, name, 1, created, state, settings, doing, done, total, manifest, size, stored, sector, firmware, sha256,
        cause, detail
    FROM images;
DROP TABLE images;
ALTER TABLE image_versions RENAME TO images;

-- The last version that each name gave: a version is never another image's, also when it is gone.
CREATE TABLE image_names (
    name        TEXT PRIMARY KEY NOT NULL,
    last        BIGINT NOT NULL
);

INSERT INTO image_names (name, last) SELECT name, 1 FROM images;

ALTER TABLE machines ADD COLUMN image_version BIGINT;
UPDATE machines SET image_version = 1 WHERE image IS NOT NULL;
