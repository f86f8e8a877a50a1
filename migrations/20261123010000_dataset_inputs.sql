-- Datasets as inputs of jobs: what was quoted for one, and results that wait for its seller.

-- Has somebody a right to a version that counts at some moment?
CREATE FUNCTION is_entitled(who uuid, dataset uuid, version uuid, wanted text, at timestamptz) RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT EXISTS (SELECT FROM entitlements e WHERE e.account_id = who AND e.dataset_id = dataset AND (e.version_id IS NULL OR e.version_id = version)
        AND e.allows = wanted AND e.starts_at <= at AND (e.ends_at IS NULL OR e.ends_at > at) AND e.ended_at IS NULL)
$$;
-- May jobs of somebody compute on a version under an offer? Where the offer stands open to everybody, and who was let in.
CREATE FUNCTION may_compute(who uuid, under uuid, version uuid, at timestamptz) RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT EXISTS (SELECT FROM offers o JOIN datasets d USING (dataset_id)
            WHERE o.offer_id = under AND o.kind = 'compute_only' AND o.closed_at IS NULL AND NOT o.is_gated AND d.state = 'listed')
        OR EXISTS (SELECT FROM entitlements e JOIN purchases p USING (purchase_id)
            WHERE e.account_id = who AND p.offer_id = under AND (e.version_id IS NULL OR e.version_id = version)
                AND e.allows = 'compute' AND e.starts_at <= at AND (e.ends_at IS NULL OR e.ends_at > at) AND e.ended_at IS NULL)
$$;

-- Under what right the job of a quote reads a dataset. The price that was in force when it was quoted is what the job pays.
CREATE TABLE quote_data (
    quote_id uuid PRIMARY KEY REFERENCES quotes,
    version_id uuid NOT NULL REFERENCES dataset_versions,
    offer_id uuid,                                                        -- NULL: the seller itself, or who may download the version
    price_number integer,
    FOREIGN KEY (offer_id, price_number) REFERENCES offer_prices,
    CONSTRAINT quote_data_offer_has_price CHECK ((offer_id IS NULL) = (price_number IS NULL))
);
CREATE TRIGGER quote_data_stays BEFORE UPDATE OR DELETE OR TRUNCATE ON quote_data FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Results of completed jobs that their owners do not get before the seller of the dataset consents.
CREATE TABLE withheld_results (
    job_id uuid PRIMARY KEY REFERENCES jobs,
    account_id uuid NOT NULL REFERENCES accounts,                         -- whose job it was
    seller_id uuid NOT NULL REFERENCES accounts,
    dataset_id uuid NOT NULL REFERENCES datasets,
    version_id uuid NOT NULL REFERENCES dataset_versions,
    kind text NOT NULL CHECK (kind IN ('training', 'inference')),
    program bytea NOT NULL CHECK (octet_length(program) = 32),            -- what ran,
    weights bytea CHECK (octet_length(weights) = 32),                     -- and with which weights; NULL: the program's own
    output_bytes bigint NOT NULL CHECK (output_bytes >= 0),
    completed_at timestamptz NOT NULL,
    released_at timestamptz
);
CREATE INDEX withheld_results_seller ON withheld_results (seller_id, dataset_id, job_id);
CREATE INDEX withheld_results_account ON withheld_results (account_id) WHERE released_at IS NULL;
CREATE FUNCTION keep_withheld_results() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (to_jsonb(OLD) - 'released_at') IS DISTINCT FROM (to_jsonb(NEW) - 'released_at') OR OLD.released_at IS NOT NULL THEN
        RAISE EXCEPTION 'what is withheld is released, once' USING ERRCODE = 'restrict_violation', CONSTRAINT = 'withheld_results_stay';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER withheld_results_stay BEFORE UPDATE ON withheld_results FOR EACH ROW EXECUTE FUNCTION keep_withheld_results();
CREATE TRIGGER withheld_results_kept BEFORE DELETE OR TRUNCATE ON withheld_results FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- A seller gives another account its results, and nothing else of anybody's. NULL: there is no such job of the seller's; false: released before.
CREATE FUNCTION release_results(seller uuid, dataset uuid, job uuid, at timestamptz) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
DECLARE
    held withheld_results;
BEGIN
    SELECT * INTO held FROM withheld_results w WHERE w.job_id = job AND w.seller_id = seller AND w.dataset_id = dataset AND sees_account(seller)
    FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    IF held.released_at IS NOT NULL THEN
        RETURN false;
    END IF;
    UPDATE withheld_results SET released_at = at WHERE job_id = job;
    INSERT INTO blob_owners (account_id, sha256, created_at)
    SELECT DISTINCT held.account_id, o.sha256, at FROM job_outputs o WHERE o.job_id = job
    ON CONFLICT (account_id, sha256) DO NOTHING;
    RETURN true;
END $$;
REVOKE EXECUTE ON FUNCTION release_results FROM PUBLIC;
GRANT EXECUTE ON FUNCTION release_results TO comptoir_api;

GRANT SELECT, INSERT ON quote_data TO comptoir_api;
GRANT SELECT ON quote_data, offers, offer_prices TO comptoir_scheduler;
GRANT SELECT ON quote_data, withheld_results TO comptoir_admin;
GRANT SELECT ON withheld_results TO comptoir_api;
GRANT SELECT, INSERT ON withheld_results TO comptoir_scheduler;
-- A job that reads what was bought ends the time in which it can be given back, as a download does.
GRANT SELECT, INSERT ON purchase_servings TO comptoir_scheduler;

CALL wall('quote_data', 'CASE WHEN (SELECT sees_all()) THEN true ELSE EXISTS (SELECT FROM quotes q WHERE q.quote_id = quote_data.quote_id) END');
CALL wall('withheld_results', 'CASE WHEN (SELECT sees_all()) THEN true ELSE sees_account(account_id) OR sees_account(seller_id) END');
