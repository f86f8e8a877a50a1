-- What others add to a dataset: on which terms its owner invites them, what they offered, and what became of it.

-- Terms by number; the newest ones count. A contribution keeps those that it was made under.
CREATE TABLE contribution_terms (
    dataset_id uuid NOT NULL REFERENCES datasets,
    number integer NOT NULL CHECK (number >= 1),
    asset_id integer NOT NULL REFERENCES assets,
    reward_base numeric(39, 0) NOT NULL CHECK (reward_base >= 0),         -- for each row that is accepted
    pool_ppm integer NOT NULL CHECK (pool_ppm BETWEEN 0 AND 1000000),     -- what contributors get of the seller's side of sales
    rows_max bigint NOT NULL CHECK (rows_max BETWEEN 1 AND 1000000000),   -- of one contribution
    is_open boolean NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (dataset_id, number)
);

-- pending: its owner has not answered. accepted: it is paid, and shares in later sales. rejected, withdrawn, lapsed: the owner, the
-- contributor, or time said no.
CREATE TABLE contributions (
    contribution_id uuid PRIMARY KEY,
    dataset_id uuid NOT NULL REFERENCES datasets,                         -- that it is offered to
    owner_id uuid NOT NULL REFERENCES accounts,                           -- whose that is
    account_id uuid NOT NULL REFERENCES accounts,                         -- the contributor
    version_id uuid NOT NULL REFERENCES dataset_versions,                 -- what is offered: a ready version of a dataset of the contributor
    terms_number integer NOT NULL,
    files integer NOT NULL CHECK (files BETWEEN 1 AND 10000),             -- those that have rows
    rows bigint NOT NULL CHECK (rows BETWEEN 1 AND 1000000000),
    reward_base numeric(39, 0) NOT NULL CHECK (reward_base >= 0),         -- for all of them
    asset_id integer NOT NULL REFERENCES assets,
    state text NOT NULL CHECK (state IN ('pending', 'accepted', 'rejected', 'withdrawn', 'lapsed')),
    note text CHECK (octet_length(note) <= 4096),                         -- the contributor's words to the owner
    reason text CHECK (length(reason) BETWEEN 1 AND 1000),                -- why it was rejected
    created_at timestamptz NOT NULL,
    answer_due_at timestamptz NOT NULL,
    ended_at timestamptz,
    FOREIGN KEY (dataset_id, terms_number) REFERENCES contribution_terms,
    CONSTRAINT contributions_end_has_time CHECK ((state = 'pending') = (ended_at IS NULL)),
    CONSTRAINT contributions_reason_if_rejected CHECK ((state = 'rejected') = (reason IS NOT NULL)),
    CONSTRAINT contributions_by_others CHECK (account_id <> owner_id)
);
CREATE INDEX contributions_account ON contributions (account_id, contribution_id);
CREATE INDEX contributions_dataset ON contributions (dataset_id, contribution_id);
CREATE INDEX contributions_version ON contributions (version_id);
CREATE INDEX contributions_paid ON contributions (dataset_id) INCLUDE (account_id, rows, terms_number) WHERE state = 'accepted';
CREATE INDEX contributions_unanswered ON contributions (answer_due_at) WHERE state = 'pending';

-- The files that count, by what is in them: nobody is paid for bytes that a dataset has, or was offered, already.
CREATE TABLE contribution_files (
    contribution_id uuid NOT NULL REFERENCES contributions,
    dataset_id uuid NOT NULL REFERENCES datasets,
    sha256 bytea NOT NULL CHECK (octet_length(sha256) = 32),
    stands boolean NOT NULL,                                              -- its contribution is pending or accepted
    PRIMARY KEY (contribution_id, sha256)
);
CREATE UNIQUE INDEX contribution_files_once ON contribution_files (dataset_id, sha256) WHERE stands;

CREATE FUNCTION keep_contributions() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.state <> 'pending' OR (to_jsonb(OLD) - '{state,reason,ended_at}'::text[]) IS DISTINCT FROM (to_jsonb(NEW) - '{state,reason,ended_at}'::text[]) THEN
        RAISE EXCEPTION 'a contribution does not change' USING ERRCODE = 'restrict_violation', CONSTRAINT = 'contributions_stay';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER contributions_stay BEFORE UPDATE ON contributions FOR EACH ROW EXECUTE FUNCTION keep_contributions();
CREATE TRIGGER contributions_kept BEFORE DELETE OR TRUNCATE ON contributions FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER contribution_terms_stay BEFORE UPDATE OR DELETE OR TRUNCATE ON contribution_terms FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER contribution_files_kept BEFORE DELETE OR TRUNCATE ON contribution_files FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- An owner reads what it is offered, for as long as the offer stands: a right that nobody bought.
ALTER TABLE entitlements ALTER COLUMN purchase_id DROP NOT NULL;
ALTER TABLE entitlements ADD COLUMN contribution_id uuid REFERENCES contributions;
ALTER TABLE entitlements ADD CONSTRAINT entitlements_contribution_once UNIQUE (contribution_id);
ALTER TABLE entitlements ADD CONSTRAINT entitlements_have_source CHECK ((purchase_id IS NULL) <> (contribution_id IS NULL));

-- A reward is held and charged in one transaction, as a sale that is final at once is.
ALTER TABLE holds DROP CONSTRAINT holds_source_kind_check;
ALTER TABLE holds ADD CONSTRAINT holds_source_kind_check CHECK (source_kind IN ('job', 'withdrawal', 'purchase', 'contribution'));
ALTER TABLE api_key_holds DROP CONSTRAINT api_key_holds_source_kind_check;
ALTER TABLE api_key_holds ADD CONSTRAINT api_key_holds_source_kind_check CHECK (source_kind IN ('job', 'purchase', 'contribution'));
ALTER TABLE receipts ADD COLUMN contribution_id uuid REFERENCES contributions;
ALTER TABLE receipts ADD CONSTRAINT receipts_contribution_once UNIQUE (contribution_id);
ALTER TABLE receipts DROP CONSTRAINT receipts_kind_check;
ALTER TABLE receipts ADD CONSTRAINT receipts_kind_check CHECK (kind BETWEEN 1 AND 5);
ALTER TABLE receipts DROP CONSTRAINT receipts_source_fits_kind;
ALTER TABLE receipts ADD CONSTRAINT receipts_source_fits_kind CHECK (
    (kind = 1) = (job_id IS NOT NULL) AND (kind IN (2, 3, 4)) = (purchase_id IS NOT NULL) AND (kind = 5) = (contribution_id IS NOT NULL));
ALTER TABLE journal_entries DROP CONSTRAINT journal_entries_source_fits_kind;
ALTER TABLE journal_entries ADD CONSTRAINT journal_entries_source_fits_kind CHECK (
    kind = CASE source_kind
        WHEN 'job_hold' THEN 'hold' WHEN 'withdrawal_hold' THEN 'hold' WHEN 'purchase_hold' THEN 'hold' WHEN 'contribution_hold' THEN 'hold'
        WHEN 'job_hold_release' THEN 'hold_release' WHEN 'withdrawal_hold_release' THEN 'hold_release' WHEN 'purchase_hold_release' THEN 'hold_release'
        WHEN 'contribution_hold_release' THEN 'hold_release'
        WHEN 'job_charge' THEN 'charge' WHEN 'purchase_charge' THEN 'charge' WHEN 'contribution_charge' THEN 'charge'
        WHEN 'seal' THEN 'release'
        WHEN 'refund' THEN 'reversal'
        ELSE source_kind
    END
);
DROP POLICY journal_entries_api ON journal_entries;
CREATE POLICY journal_entries_api ON journal_entries FOR INSERT TO comptoir_api
    WITH CHECK (kind IN ('hold', 'hold_release') OR source_kind IN ('purchase_charge', 'contribution_charge'));

GRANT SELECT, INSERT ON contribution_terms TO comptoir_api;
GRANT SELECT, INSERT, UPDATE (state, reason, ended_at) ON contributions TO comptoir_api;
GRANT SELECT, INSERT, UPDATE (stands) ON contribution_files TO comptoir_api;
GRANT SELECT ON contribution_terms, contributions TO comptoir_scheduler, comptoir_admin;

CALL wall('contribution_terms', 'CASE WHEN (SELECT sees_all()) THEN true
    ELSE EXISTS (SELECT FROM datasets d WHERE d.dataset_id = contribution_terms.dataset_id) END');
CALL wall('contributions', 'CASE WHEN (SELECT sees_all()) THEN true ELSE sees_account(account_id) OR sees_account(owner_id) END');
CALL wall('contribution_files', 'CASE WHEN (SELECT sees_all()) THEN true
    ELSE EXISTS (SELECT FROM contributions c WHERE c.contribution_id = contribution_files.contribution_id) END');

-- Whoever contributed reads the terms of it, also once the dataset is off the list.
CREATE POLICY contributed ON contribution_terms FOR SELECT TO comptoir_api USING (
    EXISTS (SELECT FROM contributions c WHERE c.dataset_id = contribution_terms.dataset_id));

-- Both sides are told, in the transaction that it happens in.
CREATE FUNCTION say_contributions() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM webhook_endpoints) THEN
        RETURN NULL;
    END IF;
    INSERT INTO webhook_events (account_id, kind, subject_id, asset_id, data, created_at)
    SELECT it.account_id, 'contribution.' || CASE NEW.state WHEN 'pending' THEN 'received' ELSE NEW.state END, NEW.contribution_id, NEW.asset_id,
        jsonb_strip_nulls(jsonb_build_object('dataset_id', NEW.dataset_id, 'rows', NEW.rows, 'reward_base', NEW.reward_base::text, 'reason', NEW.reason)),
        coalesce(NEW.ended_at, NEW.created_at)
    FROM (VALUES (NEW.account_id), (NEW.owner_id)) AS it (account_id)
    WHERE EXISTS (SELECT FROM webhook_endpoints e WHERE e.account_id = it.account_id);
    RETURN NULL;
END $$;
CREATE TRIGGER contributions_say AFTER INSERT OR UPDATE OF state ON contributions FOR EACH ROW EXECUTE FUNCTION say_contributions();
