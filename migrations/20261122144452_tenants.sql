-- A second wall between tenants, behind the conditions of every query. The API says with each of its transactions for whom it
-- asks: `comptoir.account`, and `comptoir.owner` for what belongs to an on-chain address. A query that forgot its condition
-- sees what is that tenant's and nothing else; a connection that says nothing sees nothing. `*` is for what is nobody's
-- request: finding out who calls, groups of many clients' submissions, tidying up. Other services work for everybody.
CREATE FUNCTION sees_all() RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT current_setting('comptoir.account', true) = '*'
$$;

CREATE FUNCTION sees_account(account uuid) RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT CASE current_setting('comptoir.account', true)
        WHEN '*' THEN true
        ELSE account = nullif(current_setting('comptoir.account', true), '')::uuid
    END
$$;

CREATE FUNCTION sees_owner(owner bytea) RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT CASE current_setting('comptoir.account', true)
        WHEN '*' THEN true
        ELSE owner = decode(nullif(current_setting('comptoir.owner', true), ''), 'hex')
    END
$$;

-- Every table with a tenant of its own: what `condition` says is what the API may touch.
CREATE PROCEDURE wall(walled regclass, condition text) LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', walled);
    EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', walled);
    EXECUTE format('CREATE POLICY tenant ON %s TO comptoir_api USING (%s)', walled, condition);
    EXECUTE format('CREATE POLICY services ON %s TO comptoir_scheduler, comptoir_settler, comptoir_admin, CURRENT_USER USING (true)', walled);
END $$;

DO $$
DECLARE
    walled text;
BEGIN
    FOREACH walled IN ARRAY ARRAY['accounts', 'account_controls', 'account_days', 'address_challenges', 'api_keys', 'audit_events',
        'blob_owners', 'idempotency_keys', 'jobs', 'join_tokens', 'quotes', 'refresh_tokens', 'refunds', 'sessions', 'workers'] LOOP
        CALL wall(walled::regclass, 'sees_account(account_id)');
    END LOOP;
    -- The policies of a job's parts ask for the job, which its own policy answers.
    FOREACH walled IN ARRAY ARRAY['job_events', 'job_outputs', 'verdicts'] LOOP
        CALL wall(walled::regclass, format('CASE WHEN sees_all() THEN true ELSE EXISTS (SELECT FROM jobs WHERE jobs.job_id = %I.job_id) END', walled));
    END LOOP;
    FOREACH walled IN ARRAY ARRAY['deposits', 'claims'] LOOP
        CALL wall(walled::regclass, 'sees_owner(owner)');
    END LOOP;
END $$;

-- A receipt is its payer's, and that of everybody whom it pays.
CALL wall('receipt_splits', 'CASE WHEN sees_all() THEN true ELSE EXISTS (SELECT FROM receipts WHERE receipts.receipt_id = receipt_splits.receipt_id) END');
CREATE FUNCTION pays(receipt uuid, address bytea) RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE SECURITY DEFINER SET search_path = public AS $$
    SELECT EXISTS (SELECT FROM receipt_splits WHERE receipt_id = receipt AND payee = address)
$$;
CALL wall('receipts', 'CASE WHEN sees_all() THEN true ELSE sees_account(account_id) OR sees_owner(payer)
    OR pays(receipt_id, decode(nullif(current_setting(''comptoir.owner'', true), ''''), ''hex'')) END');
DROP PROCEDURE wall(regclass, text);

-- Releases had a policy that let all read.
ALTER TABLE releases FORCE ROW LEVEL SECURITY;
DROP POLICY releases_read ON releases;
CREATE POLICY releases_read ON releases FOR SELECT TO comptoir_scheduler, comptoir_settler, comptoir_admin USING (true);
CREATE POLICY releases_owner ON releases TO CURRENT_USER USING (true);
CREATE POLICY releases_tenant ON releases AS RESTRICTIVE TO comptoir_api USING (
    CASE WHEN sees_all() THEN true ELSE sees_account(account_id) OR sees_owner(owner) END
);
CREATE POLICY releases_read_api ON releases FOR SELECT TO comptoir_api USING (true);
