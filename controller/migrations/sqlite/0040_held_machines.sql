-- Why a machine is out of service, since when, and until when somebody meant to be done with it.
ALTER TABLE machines ADD COLUMN held_reason TEXT;
ALTER TABLE machines ADD COLUMN held_since  INTEGER;
ALTER TABLE machines ADD COLUMN held_until  INTEGER;
CREATE INDEX machines_overdue ON machines (held_until) WHERE held_until IS NOT NULL;
-- Whether an installer began an order of the run, after which its disks may be changed.
ALTER TABLE runs ADD COLUMN begun INTEGER NOT NULL DEFAULT 0;
