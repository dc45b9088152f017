-- From which network a code may be used, as ADDRESS/LENGTH; null for any.
ALTER TABLE enrolment_codes ADD COLUMN source TEXT;
