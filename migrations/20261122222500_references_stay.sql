-- What a row refers to is said once: the triggers that took the place of foreign keys judge rows that are made, so a row that was changed
-- could have come to refer to nothing. Nothing of ours changes these columns; now nobody can.
CREATE FUNCTION keep_references() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'what a row of % refers to is never changed', TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation', CONSTRAINT = 'references_stay';
END $$;

DO $$
DECLARE
    child text;
    columns text;
BEGIN
    FOR child, columns IN VALUES
        ('quotes', 'account_id, asset_id, price_version_id'),
        ('jobs', 'account_id, quote_id, asset_id'),
        ('replicas', 'job_id'),
        ('queue', 'replica_id, job_id'),
        ('attempts', 'replica_id, job_id, worker_id'),
        ('attempt_blobs', 'attempt_id, sha256'),
        ('verdicts_due', 'job_id'),
        ('job_outputs', 'job_id, sha256'),
        ('unbatched_receipts', 'receipt_id, asset_id'),
        ('holds', 'asset_id'),
        ('releases', 'asset_id, account_id'),
        ('idempotency_keys', 'account_id')
    LOOP
        EXECUTE format('CREATE TRIGGER %I BEFORE UPDATE OF %s ON %I FOR EACH STATEMENT EXECUTE FUNCTION keep_references()',
            child || '_refer_still', columns, child);
    END LOOP;
END $$;
