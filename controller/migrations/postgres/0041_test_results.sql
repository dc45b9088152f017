-- As SQLite's of this number.
CREATE TABLE test_results (
    id      TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    machine TEXT COLLATE "C" NOT NULL,
    run     TEXT COLLATE "C" NOT NULL,
    attempt BIGINT NOT NULL,
    script  TEXT COLLATE "C" NOT NULL,
    told    TEXT COLLATE "C" NOT NULL,
    tested  TEXT COLLATE "C" NOT NULL,
    UNIQUE (run, attempt, script)
);

CREATE INDEX test_results_of_machine ON test_results (machine, script, id);
