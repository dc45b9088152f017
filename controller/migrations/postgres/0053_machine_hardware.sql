-- As SQLite's of this number.
CREATE TABLE machine_hardware (
    id       TEXT COLLATE "C" PRIMARY KEY NOT NULL REFERENCES machines (id),
    taken    BIGINT NOT NULL,
    hardware TEXT COLLATE "C" NOT NULL
);
