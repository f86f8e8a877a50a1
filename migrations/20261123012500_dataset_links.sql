-- Links to one file of a dataset: whoever holds one reads that file, by the right of who made it, for two minutes at most. The secret is in the link alone.
CREATE TABLE dataset_links (
    dataset_link_id uuid PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES accounts,                         -- by whose right it is read
    dataset_id uuid NOT NULL REFERENCES datasets,
    version_id uuid NOT NULL REFERENCES dataset_versions,
    file_id uuid NOT NULL REFERENCES dataset_files,
    secret_sha256 bytea NOT NULL UNIQUE CHECK (octet_length(secret_sha256) = 32),
    is_single_use boolean NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    used_at timestamptz,                                                  -- the first time
    CONSTRAINT dataset_links_are_short CHECK (expires_at <= created_at + interval '120 seconds')
);
CREATE INDEX dataset_links_over ON dataset_links (expires_at);

GRANT SELECT, INSERT, UPDATE (used_at), DELETE ON dataset_links TO comptoir_api;
CALL wall('dataset_links', 'sees_account(account_id)');
-- A link is forgotten a day after it is over; which one it was stays known.
ALTER TABLE dataset_servings ADD COLUMN dataset_link_id uuid;
