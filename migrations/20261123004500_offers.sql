-- On what terms a dataset can be had. An offer stays what it was when somebody took it: its terms never change, its price has numbered
-- versions, and all that can happen to it is that it is closed.
CREATE TABLE offers (
    offer_id uuid PRIMARY KEY,
    dataset_id uuid NOT NULL REFERENCES datasets,
    account_id uuid NOT NULL REFERENCES accounts,                         -- the seller
    asset_id integer NOT NULL REFERENCES assets,
    kind text NOT NULL CHECK (kind IN ('buy', 'rent', 'subscribe', 'compute_only', 'free')),
    version_id uuid REFERENCES dataset_versions,                          -- NULL: all versions, future ones too
    is_gated boolean NOT NULL,
    answer_seconds integer CHECK (answer_seconds BETWEEN 3600 AND 2592000),      -- the seller's time for a request
    refund_seconds integer NOT NULL CHECK (refund_seconds BETWEEN 0 AND 2592000),
    period_seconds integer CHECK (period_seconds BETWEEN 60 AND 31622400),       -- of a subscription; the longest of a rental
    programs bytea[] CHECK (cardinality(programs) BETWEEN 1 AND 1000),           -- that may compute on it; NULL: any
    output_bytes_max bigint CHECK (output_bytes_max > 0),                        -- of a job's results
    is_released_by_seller boolean NOT NULL DEFAULT false,                        -- results wait for the seller's consent
    created_at timestamptz NOT NULL,
    closed_at timestamptz,
    CONSTRAINT offers_gate_has_deadline CHECK (is_gated = (answer_seconds IS NOT NULL)),
    CONSTRAINT offers_period_fits_kind CHECK ((kind IN ('rent', 'subscribe')) = (period_seconds IS NOT NULL)),
    CONSTRAINT offers_version_fits_kind CHECK (version_id IS NULL OR kind IN ('buy', 'rent', 'free')),
    CONSTRAINT offers_compute_terms CHECK (kind = 'compute_only' OR (programs IS NULL AND output_bytes_max IS NULL AND NOT is_released_by_seller)),
    CONSTRAINT offers_output_limit CHECK ((kind = 'compute_only') = (output_bytes_max IS NOT NULL)),
    CONSTRAINT offers_refund_fits_kind CHECK (refund_seconds = 0 OR kind = 'buy')
);
CREATE INDEX offers_dataset ON offers (dataset_id, offer_id);
CREATE INDEX offers_account ON offers (account_id, offer_id);
-- A dataset is computed on under one offer at a time, so that a job's price does not depend on a choice that it does not name.
CREATE UNIQUE INDEX offers_one_compute ON offers (dataset_id) WHERE kind = 'compute_only' AND closed_at IS NULL;

-- Prices by number; the newest that is in effect counts.
CREATE TABLE offer_prices (
    offer_id uuid NOT NULL REFERENCES offers,
    number integer NOT NULL CHECK (number >= 1),
    -- Of the purchase (buy), of a second (rent), of a period (subscribe), of a job (compute_only); 0 where it is free.
    price_base numeric(39, 0) NOT NULL CHECK (price_base >= 0),
    platform_ppm integer NOT NULL CHECK (platform_ppm BETWEEN 0 AND 200000),
    effective_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (offer_id, number)
);

CREATE FUNCTION keep_offers() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (to_jsonb(OLD) - 'closed_at') IS DISTINCT FROM (to_jsonb(NEW) - 'closed_at') OR OLD.closed_at IS NOT NULL THEN
        RAISE EXCEPTION 'an offer does not change' USING ERRCODE = 'restrict_violation', CONSTRAINT = 'offers_stay';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER offers_stay BEFORE UPDATE ON offers FOR EACH ROW EXECUTE FUNCTION keep_offers();
CREATE TRIGGER offers_kept BEFORE DELETE OR TRUNCATE ON offers FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER offer_prices_stay BEFORE UPDATE OR DELETE OR TRUNCATE ON offer_prices FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

GRANT SELECT, INSERT, UPDATE (closed_at) ON offers TO comptoir_api;
GRANT SELECT, INSERT ON offer_prices TO comptoir_api;
GRANT SELECT ON offers, offer_prices TO comptoir_scheduler, comptoir_admin;
CALL wall('offers', 'sees_account(account_id)');
CALL wall('offer_prices', 'CASE WHEN (SELECT sees_all()) THEN true ELSE EXISTS (SELECT FROM offers o WHERE o.offer_id = offer_prices.offer_id) END');
CREATE POLICY listed ON offers FOR SELECT TO comptoir_api USING (
    EXISTS (SELECT FROM datasets d WHERE d.dataset_id = offers.dataset_id AND d.state = 'listed'));
