-- A step of a purchase that failed is tried again later, and does not stand before the others. When a right was given is another time than when it
-- begins: that may be the end of the rental before it.
ALTER TABLE purchases ADD COLUMN retry_at timestamptz;
ALTER TABLE purchases ADD COLUMN granted_at timestamptz;
GRANT UPDATE (retry_at, granted_at) ON purchases TO comptoir_api;

CREATE OR REPLACE FUNCTION keep_purchases() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.state <> OLD.state AND (OLD.state, NEW.state) NOT IN (
        ('requested', 'granted'), ('requested', 'denied'), ('requested', 'lapsed'), ('requested', 'refunded'),
        ('granted', 'settled'), ('granted', 'refunded')) THEN
        RAISE EXCEPTION 'a % purchase does not become %', OLD.state, NEW.state
            USING ERRCODE = 'restrict_violation', CONSTRAINT = 'purchases_states';
    END IF;
    IF (to_jsonb(OLD) - '{state,charged_base,reason,final_because,starts_at,ends_at,final_at,ended_at,retry_at,granted_at}'::text[])
        IS DISTINCT FROM (to_jsonb(NEW) - '{state,charged_base,reason,final_because,starts_at,ends_at,final_at,ended_at,retry_at,granted_at}'::text[])
        OR OLD.ended_at IS NOT NULL THEN
        RAISE EXCEPTION 'a purchase does not change' USING ERRCODE = 'restrict_violation', CONSTRAINT = 'purchases_stay';
    END IF;
    RETURN NEW;
END $$;

-- Only who has to be asked is told of a request: what is granted at once was never one.
CREATE OR REPLACE FUNCTION say_purchases() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
    IF TG_OP = 'INSERT' AND NEW.answer_due_at IS NULL OR TG_OP = 'UPDATE' AND NEW.state = OLD.state
        OR NOT EXISTS (SELECT FROM webhook_endpoints) THEN
        RETURN NULL;
    END IF;
    INSERT INTO webhook_events (account_id, kind, subject_id, asset_id, data, created_at)
    SELECT it.account_id, 'purchase.' || NEW.state, NEW.purchase_id, NEW.asset_id, jsonb_strip_nulls(jsonb_build_object(
            'amount_base', NEW.amount_base::text, 'charged_base', NEW.charged_base::text, 'dataset_id', NEW.dataset_id, 'reason', NEW.reason)),
        coalesce(NEW.ended_at, NEW.granted_at, NEW.created_at)
    FROM (VALUES (NEW.account_id), (NEW.seller_id)) AS it (account_id)
    WHERE EXISTS (SELECT FROM webhook_endpoints e WHERE e.account_id = it.account_id);
    RETURN NULL;
END $$;

-- Deleting the file of a draft asks who refers to it.
CREATE INDEX dataset_servings_file ON dataset_servings (file_id);
CREATE INDEX dataset_links_file ON dataset_links (file_id);

-- The purchases by which an account reads a version, kept from being given back until the transaction ends. In one order.
CREATE FUNCTION lock_rights(buyer uuid, wanted uuid, at timestamptz) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
    PERFORM FROM purchases WHERE state = 'granted' AND purchase_id IN (
        SELECT e.purchase_id FROM entitlements e JOIN dataset_versions v USING (dataset_id)
        WHERE e.account_id = buyer AND v.version_id = wanted AND (e.version_id IS NULL OR e.version_id = wanted)
            AND e.allows = 'download' AND e.starts_at <= at AND (e.ends_at IS NULL OR e.ends_at > at) AND e.ended_at IS NULL
    ) ORDER BY purchase_id FOR SHARE;
END $$;
REVOKE EXECUTE ON FUNCTION lock_rights FROM PUBLIC;
GRANT EXECUTE ON FUNCTION lock_rights TO comptoir_scheduler;
