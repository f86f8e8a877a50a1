-- What was forfeited of a job's charge came back to its payer already: refunds give back no more than the rest. The one place that says how much.
CREATE FUNCTION given_back(receipt uuid) RETURNS numeric LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public AS $$
    SELECT coalesce(sum(amount_base), 0) FROM (
        SELECT amount_base FROM refunds WHERE receipt_id = receipt AND state = 'posted'
        UNION ALL
        -- The worker's pay of a job whose result was a fraud,
        SELECT h.amount_base FROM holdbacks h JOIN receipts r USING (job_id) WHERE r.receipt_id = receipt AND h.state = 'forfeited'
        UNION ALL
        -- the house's own part of that, owed or paid,
        SELECT a.amount_base FROM audit_pays a JOIN receipts r USING (job_id)
        WHERE r.receipt_id = receipt AND a.owner = r.payer
            AND EXISTS (SELECT FROM holdbacks h WHERE h.job_id = a.job_id AND h.payer = a.owner AND h.state = 'forfeited')
        UNION ALL
        -- and what a takedown that was upheld took of its data's price.
        SELECT p.amount_base FROM held_proceeds p JOIN receipts r ON r.job_id = p.source_id
        WHERE r.receipt_id = receipt AND p.source_kind = 'job' AND p.state = 'forfeited'
    ) back
$$;
REVOKE EXECUTE ON FUNCTION given_back FROM PUBLIC;
GRANT EXECUTE ON FUNCTION given_back TO comptoir_admin;

CREATE OR REPLACE FUNCTION assert_refund() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
DECLARE
    given numeric;
    fits boolean;
BEGIN
    SELECT f.amount_base, r.journal_entry_id = NEW.reverses AND r.asset_id = NEW.asset_id AND given_back(r.receipt_id) <= r.gross_base AND (
        SELECT bool_and(CASE WHEN p.amount_base > 0 THEN la.code = 'available' AND la.owner = r.payer
            ELSE la.code = 'fees' OR la.code = 'available' AND la.owner = a.platform END)
            AND sum(p.amount_base) FILTER (WHERE p.amount_base > 0) = f.amount_base
            AND sum(p.amount_base) = 0 AND count(*) = NEW.lines
        FROM postings p JOIN ledger_accounts la USING (ledger_account_id)
        WHERE p.journal_entry_id = NEW.journal_entry_id
    )
    INTO given, fits
    FROM refunds f JOIN receipts r USING (receipt_id) JOIN assets a ON a.asset_id = r.asset_id
    WHERE f.journal_entry_id = NEW.journal_entry_id AND f.state = 'posted';
    IF given IS NULL OR NOT coalesce(fits, false) THEN
        RAISE EXCEPTION 'journal entry % is not that of an approved refund', NEW.journal_entry_id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'journal_entry_fits_refund';
    END IF;
    RETURN NULL;
END $$;
