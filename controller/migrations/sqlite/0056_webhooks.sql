-- How far each receiver of events is: the number of the latest that it was told.
CREATE TABLE webhooks (
    name TEXT    NOT NULL PRIMARY KEY,
    told INTEGER NOT NULL
) STRICT;
