-- The parts an operator accepted as a machine's, and whose parts are whose.

-- Its inventory as accepted; NULL while nobody has adopted it.
ALTER TABLE machines ADD COLUMN accepted TEXT;
UPDATE machines SET accepted = inventory WHERE lifecycle <> 'discovered';

CREATE TABLE parts (
    kind     TEXT NOT NULL,            -- mainboard (its UUID), disk (its identity)
    identity TEXT NOT NULL,
    machine  TEXT NOT NULL REFERENCES machines (id) ON DELETE CASCADE,
    PRIMARY KEY (kind, identity)
);

CREATE INDEX parts_of_machine ON parts (machine);
