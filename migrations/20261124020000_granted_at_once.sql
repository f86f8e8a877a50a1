-- What nobody has to be asked for is granted as it is written, and told so.
CREATE OR REPLACE FUNCTION say_purchases() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.state = OLD.state OR NOT EXISTS (SELECT FROM webhook_endpoints) THEN
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

-- A period after the first one is granted at once; the first one of a gated offer by an update.
CREATE TRIGGER purchases_say_renewed_at_once AFTER INSERT ON purchases FOR EACH ROW
    WHEN (NEW.subscription_id IS NOT NULL AND NEW.state = 'granted') EXECUTE FUNCTION say_renewed();
