-- An image has versions: its name with its version is unique now, and no more the name alone.
CREATE TABLE image_versions (
    id          TEXT COLLATE "C" PRIMARY KEY,
    name        TEXT COLLATE "C" NOT NULL,
    version     BIGINT NOT NULL,
    -- Counts its changes.
    revision    BIGINT NOT NULL DEFAULT 1,
    created     BIGINT NOT NULL,
    state       TEXT COLLATE "C" NOT NULL,            -- importing, ready, failed
    settings    TEXT COLLATE "C" NOT NULL,
    -- the catalogue's entry of the system in it
    os          TEXT COLLATE "C",
    deprecated  BIGINT NOT NULL DEFAULT 0,
    expires     BIGINT,
    -- while importing
    doing       TEXT COLLATE "C",
    done        BIGINT NOT NULL DEFAULT 0,
    total       BIGINT NOT NULL DEFAULT 0,
    -- once ready
    manifest    TEXT COLLATE "C",
    size        BIGINT,
    stored      BIGINT,
    sector      BIGINT,
    firmware    TEXT COLLATE "C",                     -- JSON array
    sha256      TEXT COLLATE "C",
    -- what was found in it: JSON array
    findings    TEXT COLLATE "C",
    -- once failed
    cause       TEXT COLLATE "C",
    detail      TEXT COLLATE "C",
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
    name        TEXT COLLATE "C" PRIMARY KEY,
    last        BIGINT NOT NULL
);

INSERT INTO image_names (name, last) SELECT name, 1 FROM images;

ALTER TABLE machines ADD COLUMN image_version BIGINT;
UPDATE machines SET image_version = 1 WHERE image IS NOT NULL;
