-- Another password for a BMC, until it was logged in to with it.
ALTER TABLE bmcs ADD COLUMN next TEXT;                             -- sealed; NULL: none is to be set
ALTER TABLE bmcs ADD COLUMN next_begun INTEGER NOT NULL DEFAULT 0; -- whether it may have been set
ALTER TABLE bmcs ADD COLUMN told INTEGER NOT NULL DEFAULT 0;       -- how often an operator has said how it is reached
ALTER TABLE bmcs ADD COLUMN rotating_since INTEGER;                -- NULL: nobody asks for it
ALTER TABLE bmcs ADD COLUMN rotating_detail TEXT;
ALTER TABLE bmcs ADD COLUMN rotating_failed TEXT;                  -- why it was given up
ALTER TABLE bmcs ADD COLUMN rotated INTEGER;                       -- when it was done last
