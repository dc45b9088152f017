-- Something sealed with the key that all secrets in this database are sealed with: there once
-- none is in clear any more, and it tells whether the key at hand is the right one.
CREATE TABLE seal (
    id          INTEGER PRIMARY KEY CHECK (id = 1),
    probe       TEXT NOT NULL
);
