-- For lists of machines that are filtered.
CREATE INDEX machines_rack ON machines (rack, id);
CREATE INDEX machines_lifecycle ON machines (lifecycle, id);
CREATE INDEX machines_image ON machines (image, id);
CREATE INDEX machines_alert ON machines (id) WHERE alert IS NOT NULL;
CREATE INDEX macs_mac ON macs (mac);
