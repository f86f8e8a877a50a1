-- Double-entry ledger. The database, not the application, keeps balances and refuses what does not add up:
-- a balance is written by the posting trigger alone, and no service role may update it.

CREATE TABLE assets (
    asset_id integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    chain_id bigint NOT NULL CHECK (chain_id > 0),
    token bytea NOT NULL CHECK (octet_length(token) = 20),
    contract bytea NOT NULL CHECK (octet_length(contract) = 20),
    symbol text NOT NULL,
    decimals smallint NOT NULL CHECK (decimals BETWEEN 0 AND 30),
    platform bytea NOT NULL CHECK (octet_length(platform) = 20), -- the address that fees and dust belong to
    created_at timestamptz NOT NULL,
    CONSTRAINT assets_once UNIQUE (chain_id, contract)
);

-- The identifier of a ledger account follows from what it is for, so that nobody has to look it up and two that
-- create it at once create the same one. `domain` computes the same.
CREATE FUNCTION ledger_account_key(asset integer, code text, owner bytea, scope uuid) RETURNS uuid
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT encode(substring(sha256(
        int4send(asset) || code::bytea || '\x00'::bytea || coalesce(owner, ''::bytea) || coalesce(uuid_send(scope), ''::bytea)
    ) FROM 1 FOR 16), 'hex')::uuid
$$;

CREATE TABLE ledger_accounts (
    ledger_account_id uuid PRIMARY KEY,
    asset_id integer NOT NULL REFERENCES assets,
    owner bytea CHECK (octet_length(owner) = 20),        -- NULL: the house
    code text NOT NULL CHECK (code IN ('available', 'held', 'held_back', 'payable', 'fees', 'split_dust', 'deposits')),
    scope uuid,                          -- the split version of a `split_dust` account
    balance_base numeric(39, 0) NOT NULL DEFAULT 0,
    version bigint NOT NULL DEFAULT 0,   -- postings so far
    UNIQUE (ledger_account_id, asset_id),
    CONSTRAINT ledger_accounts_once UNIQUE NULLS NOT DISTINCT (asset_id, owner, code, scope),
    CONSTRAINT ledger_accounts_owner_fits_code CHECK ((owner IS NULL) = (code IN ('fees', 'split_dust', 'deposits'))),
    CONSTRAINT ledger_accounts_scope_fits_code CHECK ((scope IS NOT NULL) = (code = 'split_dust')),
    -- `deposits` is the contra account of what the contract holds: it alone goes below zero, and never above.
    CONSTRAINT ledger_accounts_not_overdrawn CHECK (CASE WHEN code = 'deposits' THEN balance_base <= 0 ELSE balance_base >= 0 END)
) WITH (fillfactor = 70);

-- A trigger and not a CHECK, which every change of a balance would compute again.
CREATE FUNCTION assert_ledger_account() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.ledger_account_id <> ledger_account_key(NEW.asset_id, NEW.code, NEW.owner, NEW.scope) THEN
        RAISE EXCEPTION 'ledger account % has another identifier', NEW.ledger_account_id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'ledger_accounts_key';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER ledger_accounts_keyed BEFORE INSERT ON ledger_accounts FOR EACH ROW EXECUTE FUNCTION assert_ledger_account();

CREATE TABLE journal_entries (
    journal_entry_id uuid PRIMARY KEY,
    asset_id integer NOT NULL REFERENCES assets,
    kind text NOT NULL CHECK (kind IN ('deposit', 'hold', 'hold_release', 'charge', 'release', 'split_close', 'reversal')),
    source_kind text NOT NULL,
    source_id text NOT NULL,
    reverses uuid REFERENCES journal_entries,
    lines smallint NOT NULL CHECK (lines >= 2),  -- postings that it has, no more and no fewer
    posted_at timestamptz NOT NULL,
    UNIQUE (journal_entry_id, asset_id),
    CONSTRAINT journal_entries_source_once UNIQUE (source_kind, source_id),
    CONSTRAINT journal_entries_source_fits_kind CHECK (
        kind = CASE source_kind
            WHEN 'job_hold' THEN 'hold' WHEN 'withdrawal_hold' THEN 'hold'
            WHEN 'job_hold_release' THEN 'hold_release' WHEN 'withdrawal_hold_release' THEN 'hold_release'
            WHEN 'job_charge' THEN 'charge'
            WHEN 'seal' THEN 'release'
            ELSE source_kind
        END
    ),
    CONSTRAINT journal_entries_reversal_names_entry CHECK ((kind = 'reversal') = (reverses IS NOT NULL))
);

CREATE TABLE postings (
    journal_entry_id uuid NOT NULL,
    line smallint NOT NULL CHECK (line >= 0),
    asset_id integer NOT NULL,
    ledger_account_id uuid NOT NULL,
    -- Signed base units: a credit is positive, a debit negative.
    amount_base numeric(39, 0) NOT NULL CHECK (amount_base <> 0),
    -- Set by the trigger: the account's balance and version after this posting.
    balance_after_base numeric(39, 0) NOT NULL,
    account_version bigint NOT NULL,
    PRIMARY KEY (journal_entry_id, line),
    FOREIGN KEY (journal_entry_id, asset_id) REFERENCES journal_entries (journal_entry_id, asset_id),
    FOREIGN KEY (ledger_account_id, asset_id) REFERENCES ledger_accounts (ledger_account_id, asset_id),
    CONSTRAINT postings_version_once UNIQUE (ledger_account_id, account_version)
);

-- Statement pages, newest first.
CREATE INDEX postings_account ON postings (ledger_account_id, journal_entry_id);

-- Runs for every posting, by primary keys alone: its plans are kept whatever the session thinks of keeping plans.
CREATE FUNCTION apply_posting() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public SET plan_cache_mode = force_generic_plan AS $$
BEGIN
    -- Lines are numbered within what the entry announced, and an entry is judged with all of them in: so none can be
    -- added to an entry of an earlier transaction.
    IF NOT EXISTS (SELECT FROM journal_entries e WHERE e.journal_entry_id = NEW.journal_entry_id AND NEW.line < e.lines) THEN
        RAISE EXCEPTION 'journal entry % has no line %', NEW.journal_entry_id, NEW.line
            USING ERRCODE = 'check_violation', CONSTRAINT = 'journal_entry_lines';
    END IF;
    UPDATE ledger_accounts
    SET balance_base = balance_base + NEW.amount_base, version = version + 1
    WHERE ledger_account_id = NEW.ledger_account_id
    RETURNING balance_base, version INTO STRICT NEW.balance_after_base, NEW.account_version;
    RETURN NEW;
END $$;
CREATE TRIGGER postings_apply BEFORE INSERT ON postings FOR EACH ROW EXECUTE FUNCTION apply_posting();

-- What kind of entry may take from which accounts and give to which, so that a service that is allowed to hold money
-- cannot pay it to somebody.
CREATE FUNCTION assert_entry() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
DECLARE
    debited text[];
    credited text[];
    found_lines bigint;
    total numeric;
    fits boolean;
BEGIN
    CASE NEW.kind
        WHEN 'deposit' THEN debited := '{deposits}'; credited := '{available}';
        WHEN 'hold' THEN debited := '{available}'; credited := '{held}';
        WHEN 'hold_release' THEN debited := '{held}'; credited := '{available}';
        WHEN 'charge' THEN debited := '{held, split_dust}'; credited := '{available, fees, split_dust}';
        WHEN 'release' THEN debited := '{available, held, fees}'; credited := '{payable}';
        WHEN 'split_close' THEN debited := '{split_dust}'; credited := '{available, fees}';
        ELSE NULL; -- a reversal mirrors its entry
    END CASE;
    SELECT count(*), sum(amount_base), bool_and(code = ANY (CASE WHEN amount_base < 0 THEN debited ELSE credited END))
    INTO found_lines, total, fits
    FROM postings JOIN ledger_accounts USING (ledger_account_id)
    WHERE journal_entry_id = NEW.journal_entry_id;
    IF found_lines <> NEW.lines OR total <> 0 THEN
        RAISE EXCEPTION 'journal entry % has % of % lines, which sum to %', NEW.journal_entry_id, found_lines, NEW.lines, total
            USING ERRCODE = 'check_violation', CONSTRAINT = 'journal_entry_balances';
    END IF;
    IF NEW.kind = 'reversal' THEN
        fits := NOT EXISTS (
            SELECT FROM postings WHERE journal_entry_id IN (NEW.journal_entry_id, NEW.reverses)
            GROUP BY ledger_account_id HAVING sum(amount_base) <> 0
        );
    ELSIF NEW.kind IN ('hold', 'hold_release', 'release') THEN
        -- Money stays with its owner; fees become the platform's.
        fits := fits AND NOT EXISTS (
            SELECT FROM postings JOIN ledger_accounts la USING (ledger_account_id)
            WHERE journal_entry_id = NEW.journal_entry_id
            GROUP BY CASE WHEN la.code = 'fees' THEN (SELECT platform FROM assets WHERE asset_id = NEW.asset_id) ELSE la.owner END
            HAVING sum(amount_base) <> 0
        );
    END IF;
    IF NOT fits THEN
        RAISE EXCEPTION 'the lines of journal entry % are not those of a %', NEW.journal_entry_id, NEW.kind
            USING ERRCODE = 'check_violation', CONSTRAINT = 'journal_entry_fits_kind';
    END IF;
    RETURN NULL;
END $$;
-- Deferred: the entry is judged at COMMIT, once all its postings are in.
CREATE CONSTRAINT TRIGGER journal_entry_asserted AFTER INSERT ON journal_entries
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION assert_entry();

CREATE TRIGGER journal_entries_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON journal_entries
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER postings_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON postings
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Locks ledger accounts in one order, before anything else touches them: two opposite transfers cannot deadlock.
-- NO KEY, because the foreign keys of the postings share-lock the same rows. A function, because the services
-- have no right to update the table, which a locking SELECT of their own would need.
CREATE FUNCTION lock_ledger_accounts(ids uuid[]) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
    PERFORM 1 FROM ledger_accounts WHERE ledger_account_id = ANY (ids) ORDER BY ledger_account_id FOR NO KEY UPDATE;
END $$;

-- What is locked for one job or one withdrawal: while it is open, `amount_base - moved_base` stands in the owner's `held`.
CREATE TABLE holds (
    hold_id uuid PRIMARY KEY,
    asset_id integer NOT NULL REFERENCES assets,
    owner bytea NOT NULL CHECK (octet_length(owner) = 20),
    source_kind text NOT NULL CHECK (source_kind IN ('job', 'withdrawal')),
    source_id uuid NOT NULL,
    amount_base numeric(39, 0) NOT NULL CHECK (amount_base > 0),
    moved_base numeric(39, 0) NOT NULL DEFAULT 0, -- a withdrawal's part that earlier seals released
    created_at timestamptz NOT NULL,
    ended_at timestamptz,                -- NULL: still locked
    CONSTRAINT holds_not_more CHECK (moved_base BETWEEN 0 AND amount_base),
    CONSTRAINT holds_source_once UNIQUE (source_kind, source_id)
);
CREATE INDEX holds_open ON holds (asset_id, owner) WHERE ended_at IS NULL;

-- Prices per device class, never edited: a job keeps the version it was quoted.
CREATE TABLE price_versions (
    price_version_id integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    asset_id integer NOT NULL REFERENCES assets,
    device text NOT NULL CHECK (device IN ('cpu', 'cuda')),
    -- Nano base units (1e-9) per 10^9 multiply-adds, which is atto base units (1e-18) per multiply-add.
    rate_nano numeric(39, 0) NOT NULL CHECK (rate_nano > 0),
    minimum_base numeric(39, 0) NOT NULL CHECK (minimum_base > 0),
    platform_ppm integer NOT NULL CHECK (platform_ppm BETWEEN 0 AND 200000),
    effective_at timestamptz NOT NULL
);
CREATE INDEX price_versions_current ON price_versions (asset_id, device, effective_at DESC);

-- What a payer has used of a price stream, exactly; the charge is the whole base units that the sum passes.
CREATE TABLE charge_carries (
    asset_id integer NOT NULL REFERENCES assets,
    payer bytea NOT NULL CHECK (octet_length(payer) = 20),
    price_version_id integer NOT NULL REFERENCES price_versions,
    cum_atto numeric(60, 0) NOT NULL CHECK (cum_atto >= 0),   -- 1e-18 base units
    charged_base numeric(39, 0) NOT NULL CHECK (charged_base >= 0),
    PRIMARY KEY (asset_id, payer, price_version_id),
    CONSTRAINT charge_carries_round_down CHECK (charged_base = div(cum_atto, 1000000000000000000))
);

CREATE TABLE split_versions (
    split_version_id uuid PRIMARY KEY,
    asset_id integer NOT NULL REFERENCES assets,
    parties_sha256 bytea NOT NULL CHECK (octet_length(parties_sha256) = 32),
    created_at timestamptz NOT NULL,
    closed_at timestamptz                -- its dust was handed out; the same parties start a new version
);
CREATE UNIQUE INDEX split_versions_open_once ON split_versions (asset_id, parties_sha256) WHERE closed_at IS NULL;

CREATE TABLE split_parties (
    split_version_id uuid NOT NULL REFERENCES split_versions,
    party smallint NOT NULL CHECK (party >= 0),
    payee bytea NOT NULL CHECK (octet_length(payee) = 20),
    platform boolean NOT NULL,           -- credited to `fees`, not to the payee's `available`
    ppm integer NOT NULL CHECK (ppm BETWEEN 0 AND 1000000),
    carry numeric(60, 0) NOT NULL DEFAULT 0 CHECK (carry BETWEEN 0 AND 999999),   -- millionths of a base unit
    PRIMARY KEY (split_version_id, party)
);

-- Money on its way from `available` to `payable`, oldest first, as the contract's caps allow.
CREATE TABLE releases (
    release_id uuid PRIMARY KEY,
    asset_id integer NOT NULL REFERENCES assets,
    owner bytea NOT NULL CHECK (octet_length(owner) = 20),
    kind text NOT NULL CHECK (kind IN ('earning', 'fees', 'withdrawal')), -- a withdrawal is backed by a hold; fees are the platform's
    amount_base numeric(39, 0) NOT NULL CHECK (amount_base > 0),
    released_base numeric(39, 0) NOT NULL DEFAULT 0,
    state text NOT NULL DEFAULT 'queued' CHECK (state IN ('queued', 'released', 'cancelled')),
    account_id uuid REFERENCES accounts, -- who asked, for a withdrawal
    created_at timestamptz NOT NULL,
    released_at timestamptz,
    CONSTRAINT releases_not_more CHECK (released_base BETWEEN 0 AND amount_base),
    CONSTRAINT releases_state_has_time CHECK ((state = 'released') = (released_at IS NOT NULL))
);
CREATE INDEX releases_queued ON releases (asset_id, release_id) WHERE state = 'queued';
CREATE INDEX releases_owner ON releases (asset_id, owner, release_id);

GRANT SELECT ON assets, ledger_accounts, journal_entries, postings, holds, price_versions, charge_carries, split_versions, split_parties, releases
    TO comptoir_api, comptoir_scheduler, comptoir_settler;
GRANT INSERT ON journal_entries, postings TO comptoir_api, comptoir_scheduler, comptoir_settler;
GRANT INSERT (ledger_account_id, asset_id, owner, code, scope) ON ledger_accounts TO comptoir_api, comptoir_scheduler, comptoir_settler;
GRANT INSERT, UPDATE (ended_at) ON holds TO comptoir_api, comptoir_scheduler;
GRANT UPDATE (ended_at, moved_base) ON holds TO comptoir_settler;
GRANT INSERT, UPDATE ON charge_carries TO comptoir_scheduler;
GRANT INSERT ON split_versions, split_parties TO comptoir_scheduler;
GRANT UPDATE (closed_at) ON split_versions TO comptoir_scheduler;
GRANT UPDATE (carry) ON split_parties TO comptoir_scheduler;
GRANT INSERT ON releases TO comptoir_api, comptoir_scheduler;
GRANT UPDATE (state) ON releases TO comptoir_api;
GRANT UPDATE (state, released_base, released_at) ON releases TO comptoir_settler;

-- Each service posts the kinds of entry that its work makes, and queues and ends the releases that are its to decide.
-- Reading is for all; the owner of the tables is not bound by policies.
ALTER TABLE journal_entries ENABLE ROW LEVEL SECURITY;
CREATE POLICY journal_entries_read ON journal_entries FOR SELECT USING (true);
CREATE POLICY journal_entries_api ON journal_entries FOR INSERT TO comptoir_api
    WITH CHECK (kind IN ('hold', 'hold_release'));
CREATE POLICY journal_entries_scheduler ON journal_entries FOR INSERT TO comptoir_scheduler
    WITH CHECK (kind IN ('hold_release', 'charge', 'split_close'));
CREATE POLICY journal_entries_settler ON journal_entries FOR INSERT TO comptoir_settler
    WITH CHECK (kind IN ('deposit', 'release', 'reversal'));

ALTER TABLE releases ENABLE ROW LEVEL SECURITY;
CREATE POLICY releases_read ON releases FOR SELECT USING (true);
CREATE POLICY releases_api ON releases FOR INSERT TO comptoir_api
    WITH CHECK (kind = 'withdrawal' AND state = 'queued' AND released_base = 0);
CREATE POLICY releases_api_cancel ON releases FOR UPDATE TO comptoir_api
    USING (kind = 'withdrawal' AND state = 'queued') WITH CHECK (state = 'cancelled');
CREATE POLICY releases_scheduler ON releases FOR INSERT TO comptoir_scheduler
    WITH CHECK (kind IN ('earning', 'fees') AND state = 'queued' AND released_base = 0);
CREATE POLICY releases_settler ON releases FOR UPDATE TO comptoir_settler USING (true);
