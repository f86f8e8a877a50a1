-- One per charge, never changed. What the leaf hides is hashed with a salt that the payer can show.
CREATE TABLE receipts (
    receipt_id uuid PRIMARY KEY,
    asset_id integer NOT NULL REFERENCES assets,
    account_id uuid NOT NULL REFERENCES accounts,
    kind smallint NOT NULL CHECK (kind = 1),     -- 1: job
    job_id uuid REFERENCES jobs,
    journal_entry_id uuid NOT NULL REFERENCES journal_entries,
    payer bytea NOT NULL CHECK (octet_length(payer) = 20),
    gross_base numeric(39, 0) NOT NULL CHECK (gross_base >= 0),
    split_version_id uuid NOT NULL REFERENCES split_versions,
    input_sha256 bytea NOT NULL CHECK (octet_length(input_sha256) = 32),
    input_salt bytea NOT NULL CHECK (octet_length(input_salt) = 32),
    result_sha256 bytea NOT NULL CHECK (octet_length(result_sha256) = 32),
    result_salt bytea NOT NULL CHECK (octet_length(result_salt) = 32),
    meter jsonb NOT NULL,
    meter_sha256 bytea NOT NULL CHECK (octet_length(meter_sha256) = 32),
    verdict_sha256 bytea NOT NULL CHECK (octet_length(verdict_sha256) = 32),
    created_at timestamptz NOT NULL,
    CONSTRAINT receipts_job_once UNIQUE (job_id),
    CONSTRAINT receipts_source_fits_kind CHECK ((kind = 1) = (job_id IS NOT NULL))
);
CREATE INDEX receipts_account ON receipts (account_id, receipt_id);
CREATE INDEX receipts_payer ON receipts (payer, receipt_id);

-- Who gets what of a receipt. The shares and what the dust account takes or gives sum to the gross.
CREATE TABLE receipt_splits (
    receipt_id uuid NOT NULL REFERENCES receipts,
    party smallint NOT NULL CHECK (party >= 0),
    payee bytea NOT NULL CHECK (octet_length(payee) = 20),
    amount_base numeric(39, 0) NOT NULL CHECK (amount_base >= 0),
    PRIMARY KEY (receipt_id, party)
);
CREATE INDEX receipt_splits_payee ON receipt_splits (payee, receipt_id);

CREATE TRIGGER receipts_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON receipts
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER receipt_splits_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON receipt_splits
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

GRANT SELECT, INSERT ON receipts, receipt_splits TO comptoir_scheduler;
GRANT SELECT ON receipts, receipt_splits TO comptoir_api, comptoir_settler;
