-- Results that a seller does not release in time are denied, for good.
ALTER TABLE withheld_results ADD COLUMN denied_at timestamptz,
    ADD CONSTRAINT withheld_results_one_end CHECK (released_at IS NULL OR denied_at IS NULL);
CREATE INDEX withheld_results_due ON withheld_results (completed_at) WHERE released_at IS NULL AND denied_at IS NULL;
GRANT UPDATE (denied_at) ON withheld_results TO comptoir_api;

CREATE OR REPLACE FUNCTION keep_withheld_results() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (to_jsonb(OLD) - '{released_at,denied_at}'::text[]) IS DISTINCT FROM (to_jsonb(NEW) - '{released_at,denied_at}'::text[])
        OR OLD.released_at IS NOT NULL OR OLD.denied_at IS NOT NULL THEN
        RAISE EXCEPTION 'what is withheld is released or denied, once' USING ERRCODE = 'restrict_violation', CONSTRAINT = 'withheld_results_stay';
    END IF;
    RETURN NEW;
END $$;

-- A seller gives another account its results, and nothing else of anybody's. NULL: there is no such job of the seller's; false: it was released, or
-- denied, before.
CREATE OR REPLACE FUNCTION release_results(seller uuid, dataset uuid, job uuid, at timestamptz) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
DECLARE
    held withheld_results;
BEGIN
    SELECT * INTO held FROM withheld_results w WHERE w.job_id = job AND w.seller_id = seller AND w.dataset_id = dataset AND sees_account(seller)
    FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    IF held.released_at IS NOT NULL OR held.denied_at IS NOT NULL THEN
        RETURN false;
    END IF;
    UPDATE withheld_results SET released_at = at WHERE job_id = job;
    INSERT INTO blob_owners (account_id, sha256, created_at)
    SELECT DISTINCT held.account_id, o.sha256, at FROM job_outputs o WHERE o.job_id = job
    ON CONFLICT (account_id, sha256) DO NOTHING;
    RETURN true;
END $$;
