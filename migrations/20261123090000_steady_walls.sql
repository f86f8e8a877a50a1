-- What a tenant may see of a part is asked of the whole that it is part of. Postgres may answer such a question for every row of the whole at once,
-- in a table of hashes, and does where it expects many rows: one purchase then reads all purchases of the service. `OFFSET 0` changes no answer and
-- rules that out, so that each row asks by its key.
DO $$
DECLARE
    wall record;
BEGIN
    FOR wall IN VALUES
        ('api_key_holds', 'api_keys', 'api_key_id'), ('api_key_spending', 'api_keys', 'api_key_id'),
        ('attempt_blobs', 'attempts', 'attempt_id'),
        ('contribution_files', 'contributions', 'contribution_id'), ('contribution_terms', 'datasets', 'dataset_id'),
        ('draws', 'jobs', 'job_id'), ('holdbacks', 'jobs', 'job_id'), ('job_events', 'jobs', 'job_id'), ('job_outputs', 'jobs', 'job_id'),
        ('queue', 'jobs', 'job_id'), ('replicas', 'jobs', 'job_id'), ('verdicts', 'jobs', 'job_id'),
        ('offer_prices', 'offers', 'offer_id'), ('postings', 'ledger_accounts', 'ledger_account_id'),
        ('purchase_servings', 'purchases', 'purchase_id'), ('quote_data', 'quotes', 'quote_id'), ('receipt_splits', 'receipts', 'receipt_id'),
        ('segments', 'replicas', 'replica_id'), ('segments_voided', 'replicas', 'replica_id'),
        ('worker_controls', 'workers', 'worker_id'), ('worker_heartbeats', 'workers', 'worker_id'), ('worker_records', 'workers', 'worker_id')
    LOOP
        EXECUTE format('ALTER POLICY tenant ON %1$I USING (CASE WHEN (SELECT sees_all()) THEN true
            ELSE EXISTS (SELECT FROM %2$I AS whole WHERE whole.%3$I = %1$I.%3$I OFFSET 0) END)', wall.column1, wall.column2, wall.column3);
    END LOOP;
END $$;
ALTER POLICY tenant ON attempts USING (CASE
    WHEN (SELECT sees_all()) THEN true
    WHEN EXISTS (SELECT FROM workers w WHERE w.worker_id = attempts.worker_id OFFSET 0) THEN true
    ELSE EXISTS (SELECT FROM jobs j WHERE j.job_id = attempts.job_id OFFSET 0) END);
ALTER POLICY journal_entries_tenant ON journal_entries USING (CASE
    WHEN (SELECT sees_all()) THEN true
    WHEN EXISTS (SELECT FROM postings p WHERE p.journal_entry_id = journal_entries.journal_entry_id OFFSET 0) THEN true
    ELSE NOT has_lines(journal_entry_id) END);

-- Whoever bought something finds the purchase among those of its own, however many others bought the same.
CREATE FUNCTION own_account() RETURNS uuid LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT nullif(nullif(current_setting('comptoir.account', true), ''), '*')::uuid
$$;
CREATE INDEX purchases_taken ON purchases (account_id, offer_id);
ALTER POLICY taken ON offers USING (
    EXISTS (SELECT FROM purchases p WHERE p.account_id = (SELECT own_account()) AND p.offer_id = offers.offer_id OFFSET 0));
ALTER POLICY entitled ON datasets USING (
    EXISTS (SELECT FROM entitlements e WHERE e.account_id = (SELECT own_account()) AND e.dataset_id = datasets.dataset_id OFFSET 0));
ALTER POLICY entitled ON dataset_versions USING (
    state IN ('ready', 'shredded') AND EXISTS (SELECT FROM entitlements e
        WHERE e.account_id = (SELECT own_account()) AND e.dataset_id = dataset_versions.dataset_id
            AND (e.version_id IS NULL OR e.version_id = dataset_versions.version_id) OFFSET 0));
ALTER POLICY listed ON dataset_versions USING (
    state = 'ready' AND EXISTS (SELECT FROM datasets d WHERE d.dataset_id = dataset_versions.dataset_id AND d.state = 'listed' OFFSET 0));
ALTER POLICY listed ON dataset_files USING (
    EXISTS (SELECT FROM dataset_versions v WHERE v.version_id = dataset_files.version_id AND v.state = 'ready' OFFSET 0));
ALTER POLICY tenant ON dataset_files USING (CASE WHEN (SELECT sees_all()) THEN true
    ELSE EXISTS (SELECT FROM dataset_versions v WHERE v.version_id = dataset_files.version_id AND sees_account(v.account_id) OFFSET 0) END);
ALTER POLICY tenant ON dataset_parts USING (CASE WHEN (SELECT sees_all()) THEN true
    ELSE EXISTS (SELECT FROM dataset_files f JOIN dataset_versions v USING (version_id)
        WHERE f.file_id = dataset_parts.file_id AND sees_account(v.account_id) OFFSET 0) END);
ALTER POLICY tenant ON dataset_servings USING (CASE WHEN (SELECT sees_all()) THEN true
    ELSE sees_account(account_id)
        OR EXISTS (SELECT FROM datasets d WHERE d.dataset_id = dataset_servings.dataset_id AND sees_account(d.account_id) OFFSET 0) END);
ALTER POLICY listed ON offers USING (
    EXISTS (SELECT FROM datasets d WHERE d.dataset_id = offers.dataset_id AND d.state = 'listed' OFFSET 0));
ALTER POLICY contributed ON contribution_terms USING (EXISTS (SELECT FROM contributions c
    WHERE c.account_id = (SELECT own_account()) AND c.dataset_id = contribution_terms.dataset_id OFFSET 0));
