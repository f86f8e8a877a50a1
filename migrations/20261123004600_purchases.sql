-- What buyers took of offers, what it cost them, and what they may do with it until when.

-- A subscription renews itself: each of its periods is a purchase.
CREATE TABLE subscriptions (
    subscription_id uuid PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES accounts,
    offer_id uuid NOT NULL REFERENCES offers,
    cap_base numeric(39, 0) NOT NULL CHECK (cap_base >= 0),               -- the most that a period may cost
    state text NOT NULL CHECK (state IN ('active', 'ending', 'ended')),   -- ending: not renewed again
    ended_because text CHECK (ended_because IN ('cancelled', 'price_above_cap', 'insufficient_funds', 'offer_closed', 'withdrawn', 'leaving', 'refused', 'taken_down')),
    created_at timestamptz NOT NULL,
    ended_at timestamptz,
    CONSTRAINT subscriptions_end_has_time CHECK ((state = 'ended') = (ended_at IS NOT NULL) AND (state = 'active') = (ended_because IS NULL))
);
CREATE INDEX subscriptions_account ON subscriptions (account_id, subscription_id);
CREATE UNIQUE INDEX subscriptions_once ON subscriptions (account_id, offer_id) WHERE state <> 'ended';

-- requested: a gated offer's seller has not answered, the price is held. granted: the buyer has its right, the price is held still.
-- settled: charged, for good. refunded: the whole price went back. denied, lapsed: the seller said no, or nothing.
CREATE TABLE purchases (
    purchase_id uuid PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES accounts,                         -- the buyer
    payer bytea CHECK (octet_length(payer) = 20),                         -- NULL where it is free
    asset_id integer NOT NULL REFERENCES assets,
    seller_id uuid NOT NULL REFERENCES accounts,
    dataset_id uuid NOT NULL REFERENCES datasets,
    version_id uuid REFERENCES dataset_versions,                          -- as the offer says
    offer_id uuid NOT NULL,
    price_number integer NOT NULL,
    kind text NOT NULL CHECK (kind IN ('buy', 'rent', 'subscribe', 'compute_only', 'free')),
    subscription_id uuid REFERENCES subscriptions,
    state text NOT NULL CHECK (state IN ('requested', 'granted', 'settled', 'refunded', 'denied', 'lapsed')),
    amount_base numeric(39, 0) NOT NULL CHECK (amount_base >= 0),         -- held for it: the most that is charged
    charged_base numeric(39, 0) CHECK (charged_base BETWEEN 0 AND amount_base),
    split_version_id uuid REFERENCES split_versions,                      -- who is paid, as it was when it was taken; NULL where it is free
    seconds integer CHECK (seconds > 0),                                  -- for how long; NULL: for good
    note text CHECK (octet_length(note) <= 4096),                         -- a buyer's words to the seller of a gated offer
    reason text CHECK (length(reason) BETWEEN 1 AND 1000),                -- why it was denied or refunded
    final_because text CHECK (final_because IN ('at_once', 'served', 'window_over', 'time_over', 'ended_by_buyer', 'buyer_left', 'taken_down')),
    created_at timestamptz NOT NULL,
    answer_due_at timestamptz,                                            -- of a request
    starts_at timestamptz,
    ends_at timestamptz,                                                  -- NULL: for good
    final_at timestamptz,                                                 -- when it is charged at the latest
    ended_at timestamptz,                                                 -- settled, refunded, denied or lapsed
    FOREIGN KEY (offer_id, price_number) REFERENCES offer_prices,
    CONSTRAINT purchases_paid_has_payer CHECK (amount_base = 0 OR (payer IS NOT NULL AND split_version_id IS NOT NULL)),
    CONSTRAINT purchases_time_fits_kind CHECK ((seconds IS NOT NULL) = (kind IN ('rent', 'subscribe'))),
    CONSTRAINT purchases_subscription_fits_kind CHECK ((subscription_id IS NOT NULL) = (kind = 'subscribe')),
    CONSTRAINT purchases_grant_has_time CHECK ((state IN ('granted', 'settled')) <= (starts_at IS NOT NULL AND final_at IS NOT NULL)),
    CONSTRAINT purchases_end_has_time CHECK ((state IN ('requested', 'granted')) = (ended_at IS NULL)),
    CONSTRAINT purchases_charged_if_settled CHECK ((state = 'settled') = (charged_base IS NOT NULL) AND (state = 'settled') = (final_because IS NOT NULL))
) WITH (fillfactor = 70);
CREATE INDEX purchases_account ON purchases (account_id, purchase_id);
CREATE INDEX purchases_seller ON purchases (seller_id, purchase_id);
CREATE INDEX purchases_open ON purchases (dataset_id) WHERE state IN ('requested', 'granted');
CREATE INDEX purchases_final ON purchases (final_at) WHERE state = 'granted';
CREATE INDEX purchases_unanswered ON purchases (answer_due_at) WHERE state = 'requested';
-- A subscription has each period once, however many renew it at the same moment.
CREATE UNIQUE INDEX purchases_period_once ON purchases (subscription_id, starts_at) WHERE subscription_id IS NOT NULL;
-- Nobody asks twice, and nobody buys for good what is his already.
CREATE UNIQUE INDEX purchases_request_once ON purchases (account_id, offer_id) WHERE state = 'requested';
CREATE UNIQUE INDEX purchases_owned_once ON purchases (account_id, offer_id) WHERE kind IN ('buy', 'free', 'compute_only') AND state IN ('granted', 'settled');

-- What a buyer may do: read the files (which includes computing on them), or have jobs compute on them. It outlives the session, the offer and
-- the listing; it ends with its time, or when its purchase is refunded.
CREATE TABLE entitlements (
    entitlement_id uuid PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES accounts,
    dataset_id uuid NOT NULL REFERENCES datasets,
    version_id uuid REFERENCES dataset_versions,                          -- NULL: every version
    purchase_id uuid NOT NULL REFERENCES purchases,
    allows text NOT NULL CHECK (allows IN ('download', 'compute')),
    starts_at timestamptz NOT NULL,
    ends_at timestamptz,                                                  -- NULL: for good
    ended_at timestamptz,                                                 -- NULL: not taken back
    created_at timestamptz NOT NULL,
    CONSTRAINT entitlements_purchase_once UNIQUE (purchase_id),
    CONSTRAINT entitlements_time CHECK (ends_at > starts_at)
);
CREATE INDEX entitlements_account ON entitlements (account_id, dataset_id);
CREATE INDEX entitlements_dataset ON entitlements (dataset_id);

-- The first byte of a purchase's files that was served ends the time in which it can be refunded.
CREATE TABLE purchase_servings (
    purchase_id uuid PRIMARY KEY REFERENCES purchases,
    served_at timestamptz NOT NULL
);

CREATE FUNCTION keep_purchases() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.state <> OLD.state AND (OLD.state, NEW.state) NOT IN (
        ('requested', 'granted'), ('requested', 'denied'), ('requested', 'lapsed'), ('requested', 'refunded'),
        ('granted', 'settled'), ('granted', 'refunded')) THEN
        RAISE EXCEPTION 'a % purchase does not become %', OLD.state, NEW.state
            USING ERRCODE = 'restrict_violation', CONSTRAINT = 'purchases_states';
    END IF;
    IF (to_jsonb(OLD) - '{state,charged_base,reason,final_because,starts_at,ends_at,final_at,ended_at}'::text[])
        IS DISTINCT FROM (to_jsonb(NEW) - '{state,charged_base,reason,final_because,starts_at,ends_at,final_at,ended_at}'::text[]) OR OLD.ended_at IS NOT NULL THEN
        RAISE EXCEPTION 'a purchase does not change' USING ERRCODE = 'restrict_violation', CONSTRAINT = 'purchases_stay';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER purchases_stay BEFORE UPDATE ON purchases FOR EACH ROW EXECUTE FUNCTION keep_purchases();
CREATE TRIGGER purchases_kept BEFORE DELETE OR TRUNCATE ON purchases FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER entitlements_kept BEFORE DELETE OR TRUNCATE ON entitlements FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- A purchase's budget is a hold, as a job's is; its charge has a receipt of its own kind.
-- 1: job, 2: purchase, 3: rental, 4: subscription, 5: contribution.
ALTER TABLE holds DROP CONSTRAINT holds_source_kind_check;
ALTER TABLE holds ADD CONSTRAINT holds_source_kind_check CHECK (source_kind IN ('job', 'withdrawal', 'purchase'));
ALTER TABLE receipts ADD COLUMN purchase_id uuid REFERENCES purchases;
ALTER TABLE receipts ADD CONSTRAINT receipts_purchase_once UNIQUE (purchase_id);
ALTER TABLE receipts DROP CONSTRAINT receipts_kind_check;
ALTER TABLE receipts ADD CONSTRAINT receipts_kind_check CHECK (kind BETWEEN 1 AND 4);
ALTER TABLE receipts DROP CONSTRAINT receipts_source_fits_kind;
ALTER TABLE receipts ADD CONSTRAINT receipts_source_fits_kind CHECK (
    (kind = 1) = (job_id IS NOT NULL) AND (kind IN (2, 3, 4)) = (purchase_id IS NOT NULL));
ALTER TABLE journal_entries DROP CONSTRAINT journal_entries_source_fits_kind;
ALTER TABLE journal_entries ADD CONSTRAINT journal_entries_source_fits_kind CHECK (
    kind = CASE source_kind
        WHEN 'job_hold' THEN 'hold' WHEN 'withdrawal_hold' THEN 'hold' WHEN 'purchase_hold' THEN 'hold'
        WHEN 'job_hold_release' THEN 'hold_release' WHEN 'withdrawal_hold_release' THEN 'hold_release' WHEN 'purchase_hold_release' THEN 'hold_release'
        WHEN 'job_charge' THEN 'charge' WHEN 'purchase_charge' THEN 'charge'
        WHEN 'seal' THEN 'release'
        WHEN 'refund' THEN 'reversal'
        ELSE source_kind
    END
);

-- The api charges what it sells, and nothing else: jobs are the scheduler's.
DROP POLICY journal_entries_api ON journal_entries;
CREATE POLICY journal_entries_api ON journal_entries FOR INSERT TO comptoir_api
    WITH CHECK (kind IN ('hold', 'hold_release') OR source_kind = 'purchase_charge');
CREATE POLICY releases_api_sales ON releases FOR INSERT TO comptoir_api
    WITH CHECK (kind IN ('earning', 'fees') AND state = 'queued' AND released_base = 0);
CREATE POLICY receipts_api ON receipts AS RESTRICTIVE FOR INSERT TO comptoir_api WITH CHECK (kind <> 1);
GRANT INSERT ON receipts, receipt_splits, split_versions, split_parties TO comptoir_api;
GRANT UPDATE (carry) ON split_parties TO comptoir_api;
-- Fees of a sale stay where they are while the house owes for confirming runs.
GRANT SELECT ON audit_pays TO comptoir_api;
CALL wall('audit_pays', 'sees_all()');

GRANT SELECT, INSERT, UPDATE (state, ended_because, ended_at, cap_base) ON subscriptions TO comptoir_api;
GRANT SELECT, INSERT, UPDATE (state, charged_base, reason, final_because, starts_at, ends_at, final_at, ended_at) ON purchases TO comptoir_api;
GRANT SELECT, INSERT, UPDATE (ended_at) ON entitlements TO comptoir_api;
GRANT SELECT, INSERT ON purchase_servings TO comptoir_api;
GRANT SELECT ON purchases, entitlements TO comptoir_scheduler;
GRANT SELECT ON datasets, dataset_versions, dataset_files, dataset_parts, tenant_keys TO comptoir_scheduler;
GRANT SELECT ON subscriptions, purchases, entitlements, datasets TO comptoir_admin;

CALL wall('subscriptions', 'sees_account(account_id)');
CALL wall('purchases', 'CASE WHEN (SELECT sees_all()) THEN true ELSE sees_account(account_id) OR sees_account(seller_id) END');
CALL wall('entitlements', 'sees_account(account_id)');
CALL wall('purchase_servings', 'CASE WHEN (SELECT sees_all()) THEN true
    ELSE EXISTS (SELECT FROM purchases p WHERE p.purchase_id = purchase_servings.purchase_id) END');
-- Who has a right to a dataset sees what it is, listed or not.
CREATE POLICY entitled ON datasets FOR SELECT TO comptoir_api USING (
    EXISTS (SELECT FROM entitlements e WHERE e.dataset_id = datasets.dataset_id));
CREATE POLICY entitled ON dataset_versions FOR SELECT TO comptoir_api USING (
    state IN ('ready', 'shredded') AND EXISTS (SELECT FROM entitlements e WHERE e.dataset_id = dataset_versions.dataset_id
        AND (e.version_id IS NULL OR e.version_id = dataset_versions.version_id)));
CREATE POLICY taken ON offers FOR SELECT TO comptoir_api USING (
    EXISTS (SELECT FROM purchases p WHERE p.offer_id = offers.offer_id));

-- Both sides are told, in the transaction that it happens in.
CREATE FUNCTION say_purchases() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.state = OLD.state OR NOT EXISTS (SELECT FROM webhook_endpoints) THEN
        RETURN NULL;
    END IF;
    INSERT INTO webhook_events (account_id, kind, subject_id, asset_id, data, created_at)
    SELECT it.account_id, 'purchase.' || NEW.state, NEW.purchase_id, NEW.asset_id, jsonb_strip_nulls(jsonb_build_object(
            'amount_base', NEW.amount_base::text, 'charged_base', NEW.charged_base::text, 'dataset_id', NEW.dataset_id, 'reason', NEW.reason)),
        coalesce(NEW.ended_at, NEW.starts_at, NEW.created_at)
    FROM (VALUES (NEW.account_id), (NEW.seller_id)) AS it (account_id)
    WHERE EXISTS (SELECT FROM webhook_endpoints e WHERE e.account_id = it.account_id);
    RETURN NULL;
END $$;
CREATE TRIGGER purchases_say AFTER INSERT OR UPDATE OF state ON purchases FOR EACH ROW EXECUTE FUNCTION say_purchases();

-- What keys with a limit hold and were charged: purchases count as jobs do.
ALTER TABLE api_key_jobs RENAME TO api_key_holds;
ALTER TABLE api_key_holds RENAME COLUMN job_id TO source_id;
ALTER TABLE api_key_holds DROP CONSTRAINT api_key_jobs_job_id_fkey;
ALTER TABLE api_key_holds ADD COLUMN source_kind text NOT NULL DEFAULT 'job' CHECK (source_kind IN ('job', 'purchase'));
ALTER TABLE api_key_holds ALTER COLUMN source_kind DROP DEFAULT;
ALTER TABLE api_key_holds ADD FOREIGN KEY (source_kind, source_id) REFERENCES holds (source_kind, source_id);
