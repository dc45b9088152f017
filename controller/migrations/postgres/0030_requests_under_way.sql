-- Which requests are carried out just now is known to the process that does it alone.
ALTER TABLE keyed_requests DROP COLUMN process;
