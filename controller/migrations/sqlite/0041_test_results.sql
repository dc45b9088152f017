-- What tests of machines showed.
CREATE TABLE test_results (
    id      TEXT    PRIMARY KEY NOT NULL,
    machine TEXT    NOT NULL,
    run     TEXT    NOT NULL,
    attempt INTEGER NOT NULL,
    script  TEXT    NOT NULL,      -- the test's name
    told    TEXT    NOT NULL,      -- when, by the node's clock
    tested  TEXT    NOT NULL,      -- outcome, reason, output and result, as JSON
    UNIQUE (run, attempt, script)
);

CREATE INDEX test_results_of_machine ON test_results (machine, script, id);
