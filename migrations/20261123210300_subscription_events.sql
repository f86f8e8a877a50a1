-- What happens to a subscription by itself is told to its subscriber: a price that will be dearer, a period that began, one that cannot begin yet, the end.

-- Why the next period did not begin when it was tried; NULL: it did, or was not tried yet. Said once, however often it is tried.
ALTER TABLE subscriptions ADD COLUMN hindered_by text CHECK (hindered_by IN ('cancelled', 'price_above_cap', 'insufficient_funds', 'offer_closed',
    'withdrawn', 'leaving', 'refused', 'taken_down', 'seller_frozen', 'frozen', 'spend_limit', 'owned'));
GRANT UPDATE (hindered_by) ON subscriptions TO comptoir_api;

CREATE FUNCTION say_subscription(it subscriptions, what text, more jsonb, at timestamptz) RETURNS void LANGUAGE sql AS $$
    INSERT INTO webhook_events (account_id, kind, subject_id, asset_id, data, created_at)
    SELECT it.account_id, 'subscription.' || what, it.subscription_id, o.asset_id,
        jsonb_strip_nulls(more || jsonb_build_object('offer_id', o.offer_id, 'dataset_id', o.dataset_id)), at
    FROM offers o
    WHERE o.offer_id = it.offer_id AND EXISTS (SELECT FROM webhook_endpoints e WHERE e.account_id = it.account_id)
$$;

CREATE FUNCTION say_subscriptions() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
    IF NEW.state = 'ended' THEN
        PERFORM say_subscription(NEW, 'ended', jsonb_build_object('because', NEW.ended_because), NEW.ended_at);
    ELSE
        PERFORM say_subscription(NEW, 'renewal_failed', jsonb_build_object('because', NEW.hindered_by), clock_timestamp());
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER subscriptions_say AFTER UPDATE OF state, hindered_by ON subscriptions FOR EACH ROW
    WHEN (NEW.state = 'ended' AND OLD.state <> 'ended' OR NEW.state <> 'ended' AND NEW.hindered_by IS NOT NULL AND NEW.hindered_by IS DISTINCT FROM OLD.hindered_by)
    EXECUTE FUNCTION say_subscriptions();

-- A period after the first one. All are granted by an update.
CREATE FUNCTION say_renewed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
    PERFORM say_subscription(s, 'renewed', jsonb_build_object('purchase_id', NEW.purchase_id, 'price_base', NEW.amount_base::text), NEW.granted_at)
    FROM subscriptions s
    WHERE s.subscription_id = NEW.subscription_id
        AND EXISTS (SELECT FROM purchases p WHERE p.subscription_id = NEW.subscription_id AND p.starts_at < NEW.starts_at);
    RETURN NULL;
END $$;
CREATE TRIGGER purchases_say_renewed AFTER UPDATE OF state ON purchases FOR EACH ROW
    WHEN (NEW.subscription_id IS NOT NULL AND NEW.state = 'granted' AND OLD.state <> 'granted') EXECUTE FUNCTION say_renewed();

-- A higher price that is announced, to who will pay it.
CREATE FUNCTION say_price_rising() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
    PERFORM say_subscription(s, 'price_rising', jsonb_build_object('price_base', NEW.price_base::text,
        'effective_at', to_char(NEW.effective_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')), NEW.created_at)
    FROM subscriptions s WHERE s.offer_id = NEW.offer_id AND s.state = 'active'
    ORDER BY s.subscription_id;
    RETURN NULL;
END $$;
CREATE TRIGGER offer_prices_say_rising AFTER INSERT ON offer_prices FOR EACH ROW
    WHEN (NEW.effective_at > NEW.created_at) EXECUTE FUNCTION say_price_rising();
CREATE INDEX subscriptions_active ON subscriptions (offer_id) WHERE state = 'active';
REVOKE EXECUTE ON FUNCTION say_subscription, say_subscriptions(), say_renewed(), say_price_rising() FROM PUBLIC;
