-- Calls of models, counted and paid for: what is held for them, what was counted together, and each call itself.

-- A part of a payer's balance that one API process spends on the calls of one credential. Its hold has the same identifier as its source.
CREATE TABLE allowances (
    allowance_id uuid PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES accounts,
    api_key_id uuid REFERENCES api_keys,                                  -- NULL: calls of a person who signed in
    payer bytea NOT NULL CHECK (octet_length(payer) = 20),
    asset_id integer NOT NULL REFERENCES assets,
    process_id uuid NOT NULL,
    amount_base numeric(39, 0) NOT NULL CHECK (amount_base > 0),
    drawn_atto numeric(60, 0) NOT NULL DEFAULT 0 CHECK (drawn_atto >= 0), -- what its calls cost, exactly
    charged_base numeric(39, 0) CHECK (charged_base BETWEEN 0 AND amount_base),
    opened_at timestamptz NOT NULL,
    kept_until timestamptz NOT NULL,                                      -- whoever finds it open later closes it
    closed_at timestamptz,
    CONSTRAINT allowances_not_overdrawn CHECK (drawn_atto <= amount_base * 1000000000000000000),
    CONSTRAINT allowances_charged_when_closed CHECK ((closed_at IS NULL) = (charged_base IS NULL))
) WITH (fillfactor = 50);
-- Few are open at a time: whoever looks for silent processes reads these.
CREATE INDEX allowances_open ON allowances (process_id) WHERE closed_at IS NULL;

-- Calls that are charged together, with one receipt: of one allowance, version and price, run by workers of one owner.
CREATE TABLE usage_windows (
    window_id uuid PRIMARY KEY,
    allowance_id uuid NOT NULL REFERENCES allowances,
    account_id uuid NOT NULL REFERENCES accounts,                         -- whose calls
    model_id uuid NOT NULL REFERENCES models,
    version_id uuid NOT NULL REFERENCES model_versions,
    price_number integer NOT NULL,
    worker_owner bytea NOT NULL CHECK (octet_length(worker_owner) = 20 AND worker_owner <> '\x0000000000000000000000000000000000000000'),
    calls bigint NOT NULL DEFAULT 0 CHECK (calls >= 0),
    rows bigint NOT NULL DEFAULT 0 CHECK (rows >= 0),
    input_tokens bigint NOT NULL DEFAULT 0 CHECK (input_tokens >= 0),
    output_tokens bigint NOT NULL DEFAULT 0 CHECK (output_tokens >= 0),
    madds numeric(39, 0) NOT NULL DEFAULT 0 CHECK (madds >= 0),
    cost_atto numeric(60, 0) NOT NULL DEFAULT 0 CHECK (cost_atto >= 0),
    charged_base numeric(39, 0) CHECK (charged_base >= 0),
    opened_at timestamptz NOT NULL,
    closed_at timestamptz,
    FOREIGN KEY (model_id, price_number) REFERENCES model_prices,
    CONSTRAINT usage_windows_once UNIQUE (allowance_id, version_id, price_number, worker_owner),
    CONSTRAINT usage_windows_charged_when_closed CHECK ((closed_at IS NULL) = (charged_base IS NULL))
) WITH (fillfactor = 50);
CREATE INDEX usage_windows_account ON usage_windows (account_id, window_id);

-- Each call that was answered. A free one is in no window.
CREATE TABLE usage_events (
    call_id uuid PRIMARY KEY,
    window_id uuid,
    account_id uuid NOT NULL,
    api_key_id uuid,
    model_id uuid NOT NULL,
    version_id uuid NOT NULL,
    price_number integer NOT NULL,
    worker_id uuid NOT NULL,
    worker_owner bytea NOT NULL,
    rows bigint NOT NULL CHECK (rows BETWEEN 0 AND 4294967295),
    input_tokens bigint NOT NULL CHECK (input_tokens BETWEEN 0 AND 4294967295),
    output_tokens bigint NOT NULL CHECK (output_tokens BETWEEN 0 AND 4294967295),
    madds numeric(39, 0) NOT NULL CHECK (madds >= 0),
    cost_atto numeric(60, 0) NOT NULL CHECK (cost_atto >= 0),
    duration_us bigint NOT NULL CHECK (duration_us BETWEEN 0 AND 4294967295), -- shown, never charged
    at timestamptz NOT NULL,
    CONSTRAINT usage_events_cost_has_window CHECK (window_id IS NOT NULL OR cost_atto = 0)
);
-- The usage file of a window, and what an account used when.
CREATE INDEX usage_events_window ON usage_events (window_id, call_id) WHERE window_id IS NOT NULL;
CREATE INDEX usage_events_account ON usage_events (account_id, at, call_id);

-- Calls of a day (UTC) that cost nothing.
CREATE TABLE free_calls (
    account_id uuid NOT NULL REFERENCES accounts,
    model_id uuid NOT NULL REFERENCES models,
    day date NOT NULL,
    taken bigint NOT NULL CHECK (taken >= 0),
    PRIMARY KEY (account_id, model_id, day)
) WITH (fillfactor = 50);

-- What a payer has used of a model's price, exactly, and what of it was charged: all whole base units, but for those that an allowance which was
-- used up did not cover. They are charged with the next calls.
CREATE TABLE call_carries (
    payer bytea NOT NULL CHECK (octet_length(payer) = 20),
    model_id uuid NOT NULL,
    price_number integer NOT NULL,
    used_atto numeric(60, 0) NOT NULL CHECK (used_atto >= 0),
    charged_base numeric(39, 0) NOT NULL CHECK (charged_base >= 0),
    PRIMARY KEY (payer, model_id, price_number),
    FOREIGN KEY (model_id, price_number) REFERENCES model_prices,
    CONSTRAINT call_carries_round_down CHECK (charged_base <= div(used_atto, 1000000000000000000))
);

-- A closed allowance takes nothing, and what was counted is never counted down.
CREATE FUNCTION keep_allowances() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.closed_at IS NOT NULL OR NEW.drawn_atto < OLD.drawn_atto
        OR (to_jsonb(OLD) - '{drawn_atto,kept_until,charged_base,closed_at}'::text[])
            IS DISTINCT FROM (to_jsonb(NEW) - '{drawn_atto,kept_until,charged_base,closed_at}'::text[]) THEN
        RAISE EXCEPTION 'an allowance does not change' USING ERRCODE = 'restrict_violation', CONSTRAINT = 'allowances_stay';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER allowances_stay BEFORE UPDATE ON allowances FOR EACH ROW EXECUTE FUNCTION keep_allowances();
CREATE TRIGGER allowances_kept BEFORE DELETE OR TRUNCATE ON allowances FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE FUNCTION keep_usage_windows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.closed_at IS NOT NULL
        OR NEW.calls < OLD.calls OR NEW.rows < OLD.rows OR NEW.input_tokens < OLD.input_tokens OR NEW.output_tokens < OLD.output_tokens
        OR NEW.madds < OLD.madds OR NEW.cost_atto < OLD.cost_atto
        OR (to_jsonb(OLD) - '{calls,rows,input_tokens,output_tokens,madds,cost_atto,charged_base,closed_at}'::text[])
            IS DISTINCT FROM (to_jsonb(NEW) - '{calls,rows,input_tokens,output_tokens,madds,cost_atto,charged_base,closed_at}'::text[]) THEN
        RAISE EXCEPTION 'a usage window does not change' USING ERRCODE = 'restrict_violation', CONSTRAINT = 'usage_windows_stay';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER usage_windows_stay BEFORE UPDATE ON usage_windows FOR EACH ROW EXECUTE FUNCTION keep_usage_windows();
CREATE TRIGGER usage_windows_kept BEFORE DELETE OR TRUNCATE ON usage_windows FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER usage_events_stay BEFORE UPDATE OR DELETE OR TRUNCATE ON usage_events FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER call_carries_kept BEFORE DELETE OR TRUNCATE ON call_carries FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- By statement, because calls come several thousand times a second: each is of the window that it is in, and that is open.
CREATE FUNCTION assert_usage_events() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    IF EXISTS (
        SELECT FROM (SELECT DISTINCT window_id, account_id, model_id, version_id, price_number, worker_owner FROM fresh WHERE window_id IS NOT NULL) f
        WHERE NOT EXISTS (
            SELECT FROM usage_windows w WHERE w.window_id = f.window_id AND w.closed_at IS NULL
                AND (w.account_id, w.model_id, w.version_id, w.price_number, w.worker_owner)
                    = (f.account_id, f.model_id, f.version_id, f.price_number, f.worker_owner)
        )
    ) THEN
        RAISE EXCEPTION 'a call is not of an open window' USING ERRCODE = 'foreign_key_violation', CONSTRAINT = 'usage_events_fit_window';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER usage_events_fit AFTER INSERT ON usage_events REFERENCING NEW TABLE AS fresh
    FOR EACH STATEMENT EXECUTE FUNCTION assert_usage_events();

-- An allowance's budget is a hold, as a job's is; each of its windows has a charge and a receipt of its own.
-- 1: job, 2: purchase, 3: rental, 4: subscription, 5: contribution, 6: calls.
ALTER TABLE holds DROP CONSTRAINT holds_source_kind_check;
ALTER TABLE holds ADD CONSTRAINT holds_source_kind_check CHECK (source_kind IN ('job', 'withdrawal', 'purchase', 'contribution', 'allowance'));
ALTER TABLE api_key_holds DROP CONSTRAINT api_key_holds_source_kind_check;
ALTER TABLE api_key_holds ADD CONSTRAINT api_key_holds_source_kind_check CHECK (source_kind IN ('job', 'purchase', 'contribution', 'allowance'));
ALTER TABLE receipts ADD COLUMN window_id uuid REFERENCES usage_windows;
ALTER TABLE receipts ADD CONSTRAINT receipts_window_once UNIQUE (window_id);
ALTER TABLE receipts DROP CONSTRAINT receipts_kind_check;
ALTER TABLE receipts ADD CONSTRAINT receipts_kind_check CHECK (kind BETWEEN 1 AND 6);
ALTER TABLE receipts DROP CONSTRAINT receipts_source_fits_kind;
ALTER TABLE receipts ADD CONSTRAINT receipts_source_fits_kind CHECK (
    (kind = 1) = (job_id IS NOT NULL) AND (kind IN (2, 3, 4)) = (purchase_id IS NOT NULL) AND (kind = 5) = (contribution_id IS NOT NULL)
    AND (kind = 6) = (window_id IS NOT NULL));
ALTER TABLE journal_entries DROP CONSTRAINT journal_entries_source_fits_kind;
ALTER TABLE journal_entries ADD CONSTRAINT journal_entries_source_fits_kind CHECK (
    kind = CASE source_kind
        WHEN 'job_hold' THEN 'hold' WHEN 'withdrawal_hold' THEN 'hold' WHEN 'purchase_hold' THEN 'hold' WHEN 'contribution_hold' THEN 'hold'
        WHEN 'allowance_hold' THEN 'hold'
        WHEN 'job_hold_release' THEN 'hold_release' WHEN 'withdrawal_hold_release' THEN 'hold_release' WHEN 'purchase_hold_release' THEN 'hold_release'
        WHEN 'contribution_hold_release' THEN 'hold_release' WHEN 'allowance_hold_release' THEN 'hold_release'
        WHEN 'job_charge' THEN 'charge' WHEN 'purchase_charge' THEN 'charge' WHEN 'contribution_charge' THEN 'charge' WHEN 'calls_charge' THEN 'charge'
        WHEN 'seal' THEN 'release'
        WHEN 'refund' THEN 'reversal'
        ELSE source_kind
    END
);
DROP POLICY journal_entries_api ON journal_entries;
CREATE POLICY journal_entries_api ON journal_entries FOR INSERT TO comptoir_api
    WITH CHECK (kind IN ('hold', 'hold_release') OR source_kind IN ('purchase_charge', 'contribution_charge', 'calls_charge'));

GRANT SELECT, INSERT, UPDATE (drawn_atto, kept_until, charged_base, closed_at) ON allowances TO comptoir_api;
GRANT SELECT, INSERT, UPDATE (calls, rows, input_tokens, output_tokens, madds, cost_atto, charged_base, closed_at) ON usage_windows TO comptoir_api;
GRANT SELECT, INSERT ON usage_events TO comptoir_api;
GRANT SELECT, INSERT, UPDATE (taken) ON free_calls TO comptoir_api;
GRANT SELECT, INSERT, UPDATE (used_atto, charged_base) ON call_carries TO comptoir_api;
GRANT SELECT ON allowances, usage_windows TO comptoir_admin;

-- They are the caller's alone: who made a model does not learn here who calls it.
CALL wall('allowances', 'sees_account(account_id)');
CALL wall('usage_windows', 'sees_account(account_id)');
CALL wall('usage_events', 'sees_account(account_id)');
CALL wall('free_calls', 'sees_account(account_id)');
CALL wall('call_carries', 'CASE WHEN (SELECT sees_all()) THEN true WHEN sees_owner(payer) THEN true ELSE used_to_own(payer) END');
