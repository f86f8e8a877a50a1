-- Who publishes much shares the checkers with everybody: accounts take turns, a version goes on where its last turn ended, and has so much time and no more.
ALTER TABLE dataset_versions
    ADD COLUMN check_served_at timestamptz,                                              -- when a checker last had it, by the database's clock
    ADD COLUMN check_spent_ms bigint NOT NULL DEFAULT 0 CHECK (check_spent_ms >= 0),     -- what its files that were read took
    ADD COLUMN check_facts_bytes bigint NOT NULL DEFAULT 0 CHECK (check_facts_bytes >= 0); -- what was found in them
ALTER TABLE dataset_files ADD COLUMN checked_at timestamptz;                             -- NULL: not read yet, or before this was noted
CREATE INDEX dataset_versions_served ON dataset_versions (account_id, check_served_at) WHERE check_served_at IS NOT NULL;
CREATE INDEX dataset_versions_checking_of ON dataset_versions (account_id) INCLUDE (check_until) WHERE state = 'checking';
GRANT UPDATE (check_served_at, check_spent_ms, check_facts_bytes) ON dataset_versions TO comptoir_api;
GRANT UPDATE (checked_at) ON dataset_files TO comptoir_api;
