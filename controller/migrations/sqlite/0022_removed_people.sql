-- People who were removed here: who vouches for them elsewhere does not bring them back.

CREATE TABLE removed_people (
    -- What was the person's.
    id      TEXT PRIMARY KEY NOT NULL,
    name    TEXT NOT NULL,
    issuer  TEXT NOT NULL,
    subject TEXT NOT NULL,
    UNIQUE (issuer, subject)
);
