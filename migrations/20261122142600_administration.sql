-- What operators do with a service that runs. Administrators have a database role of their own: the services of clients,
-- workers and the chain, whatever is made to run in them, freeze nobody, lift no limit, refund nothing and publish no price.
DO $$
BEGIN
    CREATE ROLE comptoir_admin NOLOGIN;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    NULL;
END $$;

GRANT USAGE ON SCHEMA public TO comptoir_admin;

-- The role `platform` comes by redeeming one of these: printed once by a command that needs the database itself.
CREATE TABLE setup_tokens (
    setup_token_id uuid PRIMARY KEY,
    email text NOT NULL CHECK (email = lower(email) AND length(email) BETWEEN 3 AND 254),
    secret_sha256 bytea NOT NULL CHECK (octet_length(secret_sha256) = 32),
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    ended_at timestamptz,                -- redeemed, or replaced by a newer one
    CONSTRAINT setup_tokens_secret_once UNIQUE (secret_sha256),
    CONSTRAINT setup_tokens_expire CHECK (expires_at > created_at)
);
CREATE UNIQUE INDEX setup_tokens_one_open ON setup_tokens (email) WHERE ended_at IS NULL;

CREATE FUNCTION guard_platform_role() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_user IN ('comptoir_api', 'comptoir_scheduler', 'comptoir_settler') AND 'platform' = ANY (NEW.roles)
        AND (TG_OP = 'INSERT' OR 'platform' <> ALL (OLD.roles)) THEN
        RAISE EXCEPTION 'the role platform is not given by %', current_user
            USING ERRCODE = 'insufficient_privilege', CONSTRAINT = 'accounts_platform_role_guarded';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER accounts_platform_role_guarded BEFORE INSERT OR UPDATE OF roles ON accounts
    FOR EACH ROW EXECUTE FUNCTION guard_platform_role();

-- What an operator decided about an account. No row: what the deployment allows everybody.
CREATE TABLE account_controls (
    account_id uuid PRIMARY KEY REFERENCES accounts,
    frozen_at timestamptz,
    frozen_reason text CHECK (length(frozen_reason) BETWEEN 1 AND 500),
    open_jobs_max bigint CHECK (open_jobs_max >= 0),
    jobs_per_day_max bigint CHECK (jobs_per_day_max >= 0),
    storage_bytes_max bigint CHECK (storage_bytes_max >= 0),
    updated_at timestamptz NOT NULL,
    CONSTRAINT account_controls_frozen_has_reason CHECK ((frozen_at IS NULL) = (frozen_reason IS NULL))
);

-- Jobs that an account submitted on a day (UTC): what its daily limit is compared with.
CREATE TABLE account_days (
    account_id uuid NOT NULL REFERENCES accounts,
    day date NOT NULL,
    jobs bigint NOT NULL CHECK (jobs >= 0),
    PRIMARY KEY (account_id, day)
) WITH (fillfactor = 50);

-- What an operator decided about a worker. No row: it works.
CREATE TABLE worker_controls (
    worker_id uuid PRIMARY KEY REFERENCES workers,
    state text NOT NULL CHECK (state IN ('draining', 'quarantined')),
    reason text NOT NULL CHECK (length(reason) BETWEEN 1 AND 500),
    since timestamptz NOT NULL
);

-- May this worker be given a lease? Not one that was taken out, drains or is in quarantine, and none of a frozen account.
CREATE FUNCTION may_lease(worker uuid) RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT NOT EXISTS (SELECT FROM worker_controls WHERE worker_id = worker)
        AND EXISTS (
            SELECT FROM workers LEFT JOIN account_controls USING (account_id)
            WHERE worker_id = worker AND revoked_at IS NULL AND frozen_at IS NULL
        )
$$;

-- What is given back of a charge: proposed by one administrator, posted by another.
CREATE TABLE refunds (
    refund_id uuid PRIMARY KEY,
    asset_id integer NOT NULL REFERENCES assets,
    receipt_id uuid NOT NULL REFERENCES receipts,
    job_id uuid NOT NULL REFERENCES jobs,
    account_id uuid NOT NULL REFERENCES accounts, -- who paid, and gets it
    amount_base numeric(39, 0) NOT NULL CHECK (amount_base > 0),
    reason text NOT NULL CHECK (length(reason) BETWEEN 1 AND 500),
    state text NOT NULL CHECK (state IN ('proposed', 'posted', 'cancelled', 'expired')),
    proposed_by uuid NOT NULL REFERENCES accounts,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    decided_by uuid REFERENCES accounts,  -- NULL: nobody; it is open, or its time ran out
    decided_at timestamptz,
    journal_entry_id uuid REFERENCES journal_entries,
    CONSTRAINT refunds_two_persons CHECK (state <> 'posted' OR decided_by <> proposed_by),
    CONSTRAINT refunds_not_to_oneself CHECK (account_id <> proposed_by AND (state <> 'posted' OR account_id <> decided_by)),
    CONSTRAINT refunds_state_is_whole CHECK (
        (state IN ('posted', 'cancelled')) = (decided_by IS NOT NULL)
        AND (state = 'proposed') = (decided_at IS NULL)
        AND (state = 'posted') = (journal_entry_id IS NOT NULL)
    ),
    CONSTRAINT refunds_entry_once UNIQUE (journal_entry_id)
);
CREATE UNIQUE INDEX refunds_one_open ON refunds (receipt_id) WHERE state = 'proposed';
CREATE INDEX refunds_job ON refunds (job_id);
CREATE INDEX refunds_posted ON refunds (asset_id, decided_at) WHERE state = 'posted';
CREATE TRIGGER refunds_decided_stay BEFORE UPDATE OR DELETE ON refunds FOR EACH ROW WHEN (OLD.state <> 'proposed')
    EXECUTE FUNCTION refuse_change();
CREATE TRIGGER refunds_stay BEFORE DELETE OR TRUNCATE ON refunds FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- The entry of a refund gives the payer of the charge, and nobody else, what an approved refund says, out of the
-- platform's own money: payees keep what they were credited. All refunds of a charge are at most the charge.
CREATE FUNCTION assert_refund() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
DECLARE
    given numeric;
    fits boolean;
BEGIN
    SELECT f.amount_base, r.journal_entry_id = NEW.reverses AND r.asset_id = NEW.asset_id AND (
        SELECT coalesce(sum(amount_base), 0) <= r.gross_base FROM refunds
        WHERE receipt_id = r.receipt_id AND state = 'posted'
    ) AND (
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
-- Deferred: the refund names its entry after it was posted.
CREATE CONSTRAINT TRIGGER journal_entry_refund_asserted AFTER INSERT ON journal_entries
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.source_kind = 'refund') EXECUTE FUNCTION assert_refund();

CREATE POLICY journal_entries_admin ON journal_entries FOR INSERT TO comptoir_admin
    WITH CHECK (source_kind = 'refund' OR kind = 'hold_release');

GRANT SELECT ON accounts, sessions, api_keys, join_tokens, workers, worker_heartbeats, quotes, jobs, replicas, queue, attempts,
    segments, segments_voided, job_outputs, verdicts, verdicts_due, job_events, blobs, blob_owners, receipts, receipt_splits,
    assets, ledger_accounts, journal_entries, postings, holds, price_versions, releases, exits, claims, deposits,
    settlement_batches, unbatched_receipts, eth_intents, eth_attempts, settler_halts, idempotency_keys, audit_events, audit_head
    TO comptoir_admin;
GRANT SELECT, INSERT, UPDATE, DELETE ON account_controls, worker_controls TO comptoir_admin;
GRANT SELECT, INSERT, UPDATE ON refunds, setup_tokens TO comptoir_admin;
GRANT SELECT ON account_days TO comptoir_admin;
GRANT INSERT, UPDATE (password_hash, roles) ON accounts TO comptoir_admin;
GRANT UPDATE (revoked_at) ON api_keys, workers TO comptoir_admin;
GRANT UPDATE (ended_at, end_reason) ON sessions TO comptoir_admin;
GRANT INSERT, DELETE ON idempotency_keys TO comptoir_admin;
GRANT INSERT (body, account_id) ON audit_events TO comptoir_admin;
GRANT INSERT ON price_versions, journal_entries, postings, job_events TO comptoir_admin;
GRANT INSERT (ledger_account_id, asset_id, owner, code, scope) ON ledger_accounts TO comptoir_admin;
GRANT UPDATE (ended_at) ON holds TO comptoir_admin;
GRANT UPDATE ON jobs, replicas, queue, verdicts_due TO comptoir_admin;
GRANT UPDATE (state, cause, code, detail, ended_at) ON attempts TO comptoir_admin;
GRANT DELETE ON queue TO comptoir_admin;

GRANT SELECT ON account_controls, worker_controls TO comptoir_api, comptoir_scheduler;
GRANT SELECT ON refunds TO comptoir_api;
GRANT SELECT, INSERT, UPDATE (jobs) ON account_days TO comptoir_api;
-- An owner that takes a worker out takes its leases back.
GRANT UPDATE (cause, code, detail) ON attempts TO comptoir_api;
GRANT UPDATE (worker_id, attempt_id, lease_token, lease_expires_at, ready_at) ON queue TO comptoir_api;

-- A refund is a reversal that names the charge; it is judged by `assert_refund` alone.
ALTER TABLE journal_entries DROP CONSTRAINT journal_entries_source_fits_kind;
ALTER TABLE journal_entries ADD CONSTRAINT journal_entries_source_fits_kind CHECK (
    kind = CASE source_kind
        WHEN 'job_hold' THEN 'hold' WHEN 'withdrawal_hold' THEN 'hold'
        WHEN 'job_hold_release' THEN 'hold_release' WHEN 'withdrawal_hold_release' THEN 'hold_release'
        WHEN 'job_charge' THEN 'charge'
        WHEN 'seal' THEN 'release'
        WHEN 'refund' THEN 'reversal'
        ELSE source_kind
    END
);
DROP TRIGGER journal_entry_asserted ON journal_entries;
CREATE CONSTRAINT TRIGGER journal_entry_asserted AFTER INSERT ON journal_entries
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.source_kind <> 'refund') EXECUTE FUNCTION assert_entry();
