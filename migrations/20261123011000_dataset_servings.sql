-- Which bytes of datasets were handed out: one row for each request, written before its first byte leaves.
CREATE TABLE dataset_servings (
    serving_id uuid PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES accounts,                         -- the reader
    dataset_id uuid NOT NULL REFERENCES datasets,
    version_id uuid NOT NULL REFERENCES dataset_versions,
    file_id uuid NOT NULL REFERENCES dataset_files,
    purchase_id uuid REFERENCES purchases,                                -- whose right it was; NULL: the seller's own, or a sample
    job_id uuid REFERENCES jobs,                                          -- for which it was read; NULL: for the reader itself
    attempt_id uuid REFERENCES attempts,
    first_byte bigint NOT NULL CHECK (first_byte >= 0),
    bytes bigint NOT NULL CHECK (bytes > 0),                              -- asked for: the reader may have gone before the last
    created_at timestamptz NOT NULL
);
CREATE INDEX dataset_servings_dataset ON dataset_servings (dataset_id, serving_id);
CREATE INDEX dataset_servings_account ON dataset_servings (account_id, serving_id);
CREATE TRIGGER dataset_servings_stay BEFORE UPDATE OR DELETE OR TRUNCATE ON dataset_servings FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

GRANT SELECT, INSERT ON dataset_servings TO comptoir_api;
CALL wall('dataset_servings', 'CASE WHEN (SELECT sees_all()) THEN true
    ELSE sees_account(account_id) OR EXISTS (SELECT FROM datasets d WHERE d.dataset_id = dataset_servings.dataset_id AND sees_account(d.account_id)) END');
