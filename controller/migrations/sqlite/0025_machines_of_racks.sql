-- For lists of a rack's or a project's machines of one lifecycle, which else are looked for among all of it.
CREATE INDEX machines_rack_lifecycle ON machines (rack, lifecycle, id);
CREATE INDEX machines_project_lifecycle ON machines (project, lifecycle, id) WHERE project IS NOT NULL;
