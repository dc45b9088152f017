-- How far each receiver of events is: the number of the latest that it was told.
CREATE TABLE webhooks (
    name TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    told BIGINT           NOT NULL
);
