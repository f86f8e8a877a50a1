-- Accounts are made and locked in one call with plans that are made once: of a single transfer, planning two statements took longer than
-- running them. With the rights of the caller, and walled like it: only the lock itself is more than a service may do.
CREATE FUNCTION lock_ledger_accounts(asset integer, ids uuid[], owners bytea[], codes text[], scopes uuid[])
RETURNS void LANGUAGE plpgsql SET search_path = public
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    -- Before any lock, and in one order: nobody waits for a row that its own waiters are about to make.
    IF (SELECT count(*) FROM ledger_accounts WHERE ledger_account_id = ANY (ids)) < cardinality(ids) THEN
        INSERT INTO ledger_accounts (ledger_account_id, asset_id, owner, code, scope)
        SELECT wanted.id, asset, wanted.owner, wanted.code, wanted.scope
        FROM UNNEST(ids, owners, codes, scopes) AS wanted (id, owner, code, scope)
        WHERE NOT EXISTS (SELECT FROM ledger_accounts WHERE ledger_account_id = wanted.id)
        ORDER BY wanted.id
        ON CONFLICT DO NOTHING;
    END IF;
    PERFORM lock_ledger_accounts(ids);
END $$;

-- The same plan for whoever calls it.
CREATE OR REPLACE FUNCTION lock_ledger_accounts(ids uuid[]) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = public
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
BEGIN
    PERFORM 1 FROM ledger_accounts WHERE ledger_account_id = ANY (ids) ORDER BY ledger_account_id FOR NO KEY UPDATE;
END $$;
