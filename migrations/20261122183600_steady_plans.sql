-- Plans that stay good however little the planner knows.

-- All lines of an entry come in one statement. Here they are judged: complete, of one asset, zero-sum, fitting the kind; then each account's
-- lines, in the order of their versions, must follow from where it stands, never below zero on the way; then the account moves, once.
-- Tables are reached by their primary keys alone: the plans are pinned whatever the session thinks of them.
CREATE OR REPLACE FUNCTION apply_postings() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    bad record;
    moved bigint;
BEGIN
    WITH line AS (
        SELECT p.journal_entry_id, e.kind, e.source_kind, e.lines, e.reverses, p.line, p.amount_base,
            e.asset_id = p.asset_id AND a.asset_id = p.asset_id AS is_of_asset,
            -- The house pays audits, and nobody else.
            entry_line_fits(e.kind, p.amount_base < 0, a.code)
                AND (e.kind <> 'audit_pay' OR p.amount_base > 0 OR a.code = 'fees' OR a.owner = s.platform) AS fits,
            CASE WHEN a.code = 'fees' THEN s.platform ELSE a.owner END AS owner
        FROM fresh p
        LEFT JOIN journal_entries e ON e.journal_entry_id = p.journal_entry_id
        LEFT JOIN ledger_accounts a ON a.ledger_account_id = p.ledger_account_id
        LEFT JOIN assets s ON s.asset_id = p.asset_id
    ), part AS (
        SELECT journal_entry_id, kind, source_kind, lines, reverses, count(*) AS counted, max(line) AS last, sum(amount_base) AS total,
            bool_and(is_of_asset IS TRUE) AS is_of_asset, bool_and(fits IS TRUE) AS fits
        FROM line GROUP BY journal_entry_id, kind, source_kind, lines, reverses, owner
    ), entry AS (
        SELECT journal_entry_id, kind, source_kind, lines, reverses, sum(counted) AS counted, max(last) AS last, sum(total) AS total,
            bool_and(is_of_asset) AS is_of_asset, bool_and(fits AND (total = 0 OR NOT entry_keeps_owner(kind))) AS fits
        FROM part GROUP BY journal_entry_id, kind, source_kind, lines, reverses
    )
    SELECT journal_entry_id, kind, lines, counted, total,
        (counted = lines AND last < lines AND is_of_asset) IS TRUE AS is_whole, total = 0 AS is_balanced
    INTO bad FROM entry
    WHERE (counted = lines AND last < lines AND total = 0 AND is_of_asset AND fits) IS NOT TRUE
        OR kind = 'reversal' AND source_kind <> 'refund' AND EXISTS ( -- `assert_refund` judges refunds
            SELECT FROM postings o WHERE o.journal_entry_id IN (entry.journal_entry_id, entry.reverses)
            GROUP BY o.ledger_account_id HAVING sum(o.amount_base) <> 0
        )
    LIMIT 1;
    IF FOUND THEN
        IF NOT bad.is_whole THEN
            RAISE EXCEPTION 'journal entry % comes with % of its % lines', bad.journal_entry_id, bad.counted, bad.lines
                USING ERRCODE = 'check_violation', CONSTRAINT = 'journal_entry_lines';
        ELSIF NOT bad.is_balanced THEN
            RAISE EXCEPTION 'the lines of journal entry % sum to %', bad.journal_entry_id, bad.total
                USING ERRCODE = 'check_violation', CONSTRAINT = 'journal_entry_balances';
        END IF;
        RAISE EXCEPTION 'the lines of journal entry % are not those of a %', bad.journal_entry_id, bad.kind
            USING ERRCODE = 'check_violation', CONSTRAINT = 'journal_entry_fits_kind';
    END IF;

    SELECT it.ledger_account_id, it.follows INTO bad
    FROM (
        SELECT p.ledger_account_id,
            p.account_version = a.version + row_number() OVER chain
                AND p.balance_after_base = a.balance_base + sum(p.amount_base) OVER chain AS follows,
            CASE WHEN a.code = 'deposits' THEN p.balance_after_base <= 0 ELSE p.balance_after_base >= 0 END AS is_covered
        FROM fresh p
        -- `OFFSET 0` looks each line's account up, instead of each account's lines for every account there is.
        CROSS JOIN LATERAL (SELECT code, balance_base, version FROM ledger_accounts WHERE ledger_account_id = p.ledger_account_id OFFSET 0) a
        WINDOW chain AS (PARTITION BY p.ledger_account_id ORDER BY p.account_version ROWS UNBOUNDED PRECEDING)
    ) it
    WHERE NOT (it.follows AND it.is_covered)
    LIMIT 1;
    IF FOUND THEN
        IF bad.follows THEN
            RAISE EXCEPTION 'ledger account % would be overdrawn', bad.ledger_account_id
                USING ERRCODE = 'check_violation', CONSTRAINT = 'ledger_accounts_not_overdrawn';
        END IF;
        RAISE EXCEPTION 'a line does not follow from where ledger account % stands', bad.ledger_account_id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'postings_follow';
    END IF;

    -- The version is compared again: another transaction may have moved an account that nobody locked.
    UPDATE ledger_accounts a SET balance_base = a.balance_base + it.amount, version = a.version + it.lines
    FROM (
        SELECT ledger_account_id, sum(amount_base) AS amount, count(*) AS lines, min(account_version) AS first
        FROM fresh GROUP BY ledger_account_id
    ) it
    WHERE a.ledger_account_id = it.ledger_account_id AND a.version = it.first - 1;
    GET DIAGNOSTICS moved = ROW_COUNT;
    IF moved <> (SELECT count(DISTINCT ledger_account_id) FROM fresh) THEN
        RAISE EXCEPTION 'a ledger account moved while it was posted to'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'postings_follow';
    END IF;
    RETURN NULL;
END $$;

-- A claim walks what waits, in its order, and nothing that is leased: the oldest rows of a busy queue are long leased, and each claim
-- began by walking over all of them. A lease leaves this index once; heartbeats and reports touch no column of any.
DROP INDEX queue_order;
CREATE INDEX queue_waiting ON queue (device, priority, replica_id) WHERE lease_token IS NULL;

-- The claim asks this itself: a function is planned anew for every call.
DROP FUNCTION may_lease(uuid);
