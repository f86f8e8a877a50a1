-- Verification of single results: audits drawn from committed seeds, pay held back, and each worker's record.

ALTER TABLE quotes DROP CONSTRAINT quotes_tier_check;
ALTER TABLE quotes ADD CONSTRAINT quotes_tier_check CHECK (tier IN ('none', 'sampled', 'replicated', 'quorum'));
ALTER TABLE jobs DROP CONSTRAINT jobs_tier_check;
ALTER TABLE jobs ADD CONSTRAINT jobs_tier_check CHECK (tier IN ('none', 'sampled', 'replicated', 'quorum'));
ALTER TABLE verdicts DROP CONSTRAINT verdicts_kind_check;
ALTER TABLE verdicts ADD CONSTRAINT verdicts_kind_check
    CHECK (kind IN ('unverified', 'sampled', 'bitwise', 'tolerance', 'unstable'));

-- What a worker earned with its results. Written by verdicts and faults.
CREATE TABLE worker_records (
    worker_id uuid PRIMARY KEY REFERENCES workers,
    trusted integer NOT NULL DEFAULT 0 CHECK (trusted >= 0),   -- results that another owner confirmed, since the last reset
    results bigint NOT NULL DEFAULT 0 CHECK (results >= 0),    -- results whose pay was held back: numbers the holdbacks
    strikes integer NOT NULL DEFAULT 0 CHECK (strikes >= 0),   -- faults that were not made good
    public_key bytea NOT NULL CHECK (octet_length(public_key) = 32),   -- whose trust it is
    numeric_class text NOT NULL,
    worked_at timestamptz NOT NULL,
    barred_at timestamptz,               -- two other owners agreed on another result
    barred_for uuid REFERENCES attempts,
    CONSTRAINT worker_records_bar_has_reason CHECK ((barred_at IS NULL) = (barred_for IS NULL))
) WITH (fillfactor = 50);

-- What draws come from. The commitment is public at once, the seed once it is closed: with the next settlement batch.
CREATE TABLE draw_seeds (
    draw_seed_id uuid PRIMARY KEY,
    commitment bytea NOT NULL CHECK (octet_length(commitment) = 32),
    seed bytea NOT NULL CHECK (octet_length(seed) = 32),
    shown bytea CHECK (octet_length(shown) = 32),
    opened_at timestamptz NOT NULL,
    closed_at timestamptz,
    CONSTRAINT draw_seeds_shown_when_closed CHECK ((shown IS NULL) = (closed_at IS NULL) AND (shown IS NULL OR shown = seed))
);
CREATE UNIQUE INDEX draw_seeds_one_open ON draw_seeds ((true)) WHERE closed_at IS NULL;

-- One per sampled job: was its first result to be run again?
CREATE TABLE draws (
    job_id uuid PRIMARY KEY REFERENCES jobs,
    attempt_id uuid NOT NULL REFERENCES attempts,
    draw_seed_id uuid NOT NULL REFERENCES draw_seeds,
    trusted integer NOT NULL CHECK (trusted >= 0),
    rate_ppm integer NOT NULL CHECK (rate_ppm BETWEEN 0 AND 1000000),
    drawn_ppm integer NOT NULL CHECK (drawn_ppm BETWEEN 0 AND 999999),
    drawn_at timestamptz NOT NULL
);
CREATE TRIGGER draws_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON draws
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Pay of a sampled job that its worker may yet lose.
CREATE TABLE holdbacks (
    job_id uuid NOT NULL REFERENCES jobs,
    owner bytea NOT NULL CHECK (octet_length(owner) = 20),     -- who earned it
    worker_id uuid NOT NULL REFERENCES workers,
    number bigint NOT NULL CHECK (number >= 1),                -- among the worker's results
    asset_id integer NOT NULL REFERENCES assets,
    payer bytea NOT NULL CHECK (octet_length(payer) = 20),     -- who gets it back on proven fraud
    amount_base numeric(39, 0) NOT NULL CHECK (amount_base > 0),
    state text NOT NULL DEFAULT 'held' CHECK (state IN ('held', 'released', 'forfeited')),
    created_at timestamptz NOT NULL,
    ended_at timestamptz,
    PRIMARY KEY (job_id, owner),
    CONSTRAINT holdbacks_end_has_time CHECK ((state = 'held') = (ended_at IS NULL))
);
CREATE INDEX holdbacks_held ON holdbacks (worker_id, number) WHERE state = 'held';

-- Runs that the house owes: confirmations of a result that the client paid one run for.
CREATE TABLE audit_pays (
    attempt_id uuid PRIMARY KEY REFERENCES attempts,
    job_id uuid NOT NULL REFERENCES jobs,
    owner bytea NOT NULL CHECK (octet_length(owner) = 20),
    asset_id integer NOT NULL REFERENCES assets,
    amount_base numeric(39, 0) NOT NULL CHECK (amount_base > 0),
    created_at timestamptz NOT NULL,
    paid_at timestamptz
);
CREATE INDEX audit_pays_due ON audit_pays (created_at, attempt_id) WHERE paid_at IS NULL;

-- Classes whose honest workers could not agree on a program.
CREATE TABLE unstable_classes (
    job_id uuid NOT NULL REFERENCES jobs,
    numeric_class text NOT NULL,
    program_sha256 bytea NOT NULL CHECK (octet_length(program_sha256) = 32),
    marked_at timestamptz NOT NULL,
    PRIMARY KEY (job_id, numeric_class)
);
CREATE INDEX unstable_classes_program ON unstable_classes (program_sha256, numeric_class);

-- Three more kinds of entry: held-back pay becomes spendable, goes back to the client, and the house pays an audit.
ALTER TABLE journal_entries DROP CONSTRAINT journal_entries_kind_check;
ALTER TABLE journal_entries ADD CONSTRAINT journal_entries_kind_check CHECK (kind IN ('deposit', 'hold', 'hold_release', 'charge',
    'release', 'split_close', 'reversal', 'holdback_release', 'forfeit', 'audit_pay'));

CREATE OR REPLACE FUNCTION assert_entry() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
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
        WHEN 'charge' THEN debited := '{held, split_dust}'; credited := '{available, held_back, fees, split_dust}';
        WHEN 'release' THEN debited := '{available, held, fees}'; credited := '{payable}';
        WHEN 'split_close' THEN debited := '{split_dust}'; credited := '{available, fees}';
        WHEN 'holdback_release' THEN debited := '{held_back}'; credited := '{available}';
        WHEN 'forfeit' THEN debited := '{held_back}'; credited := '{available}';
        WHEN 'audit_pay' THEN debited := '{fees, available}'; credited := '{available}';
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
    ELSIF NEW.kind IN ('hold', 'hold_release', 'release', 'holdback_release') THEN
        -- Money stays with its owner; fees become the platform's.
        fits := fits AND NOT EXISTS (
            SELECT FROM postings JOIN ledger_accounts la USING (ledger_account_id)
            WHERE journal_entry_id = NEW.journal_entry_id
            GROUP BY CASE WHEN la.code = 'fees' THEN (SELECT platform FROM assets WHERE asset_id = NEW.asset_id) ELSE la.owner END
            HAVING sum(amount_base) <> 0
        );
    ELSIF NEW.kind = 'audit_pay' THEN
        -- The house pays, and nobody else.
        fits := fits AND NOT EXISTS (
            SELECT FROM postings JOIN ledger_accounts la USING (ledger_account_id)
            WHERE journal_entry_id = NEW.journal_entry_id AND amount_base < 0 AND la.code = 'available'
              AND la.owner <> (SELECT platform FROM assets WHERE asset_id = NEW.asset_id)
        );
    END IF;
    IF NOT fits THEN
        RAISE EXCEPTION 'the lines of journal entry % are not those of a %', NEW.journal_entry_id, NEW.kind
            USING ERRCODE = 'check_violation', CONSTRAINT = 'journal_entry_fits_kind';
    END IF;
    RETURN NULL;
END $$;

DROP POLICY journal_entries_scheduler ON journal_entries;
CREATE POLICY journal_entries_scheduler ON journal_entries FOR INSERT TO comptoir_scheduler
    WITH CHECK (kind IN ('hold_release', 'charge', 'split_close', 'holdback_release', 'forfeit', 'audit_pay'));

GRANT SELECT, INSERT, UPDATE ON worker_records, draw_seeds, holdbacks, audit_pays TO comptoir_scheduler;
GRANT SELECT, INSERT ON draws, unstable_classes TO comptoir_scheduler;
GRANT SELECT (draw_seed_id, commitment, shown, opened_at, closed_at) ON draw_seeds TO comptoir_api;
GRANT SELECT ON worker_records, draws, holdbacks, audit_pays, unstable_classes TO comptoir_api;
GRANT SELECT ON settlement_batches TO comptoir_scheduler;
