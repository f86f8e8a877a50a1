-- Money has its wall too: what is by address, and what API keys spend. Whether a connection sees everybody is asked once for each
-- statement and not for each row: statements on whole groups, and counts of thousands of holds, pay nothing for it.
-- Cheap to the planner and not for parallel plans: thought expensive, it would have a count of an account's holds start workers.
CREATE FUNCTION used_to_own(address bytea) RETURNS boolean LANGUAGE sql STABLE PARALLEL UNSAFE COST 1 SECURITY DEFINER SET search_path = public AS $$
    SELECT EXISTS (
        SELECT FROM address_changes
        WHERE account_id = nullif(current_setting('comptoir.account', true), '')::uuid AND old_address = address AND state = 'applied'
    )
$$;
COMMENT ON FUNCTION used_to_own IS 'Jobs and withdrawals that an account paid for before its address changed are taken back there.';
CREATE INDEX address_changes_left ON address_changes (account_id, old_address) WHERE state = 'applied';

DO $$
DECLARE
    walled text;
BEGIN
    FOREACH walled IN ARRAY ARRAY['ledger_accounts', 'holds', 'exits'] LOOP
        CALL wall(walled::regclass, 'CASE WHEN (SELECT sees_all()) THEN true WHEN sees_owner(owner) THEN true ELSE used_to_own(owner) END');
    END LOOP;
    FOREACH walled IN ARRAY ARRAY['api_key_spending', 'api_key_jobs'] LOOP
        CALL wall(walled::regclass, format('CASE WHEN (SELECT sees_all()) THEN true
            ELSE EXISTS (SELECT FROM api_keys WHERE api_keys.api_key_id = %I.api_key_id) END', walled));
    END LOOP;
END $$;
CALL wall('charge_carries', 'CASE WHEN (SELECT sees_all()) THEN true WHEN sees_owner(payer) THEN true ELSE used_to_own(payer) END');
-- A line is whose account it is on.
CALL wall('postings', 'CASE WHEN (SELECT sees_all()) THEN true
    ELSE EXISTS (SELECT FROM ledger_accounts la WHERE la.ledger_account_id = postings.ledger_account_id) END');
