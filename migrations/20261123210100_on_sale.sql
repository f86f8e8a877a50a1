-- What is on sale is decided here alone: the offer stands, its dataset is listed and not blocked, and nobody is frozen who would be paid.
CREATE FUNCTION is_on_sale(offer offers, dataset datasets) RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT offer.closed_at IS NULL AND dataset.state = 'listed' AND dataset.blocked_by IS NULL AND NOT is_frozen(offer.account_id)
$$;

CREATE OR REPLACE FUNCTION write_catalog_prices(dataset uuid) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM lock_catalog(dataset);
    DELETE FROM catalog_prices WHERE item_id = dataset;
    -- A price counts until one with a higher number does.
    INSERT INTO catalog_prices (offer_id, number, item_id, asset_id, kind, price_base, counts_from, counts_until)
    SELECT o.offer_id, p.number, c.item_id, o.asset_id, o.kind, p.price_base, p.effective_at, coalesce(min(p.effective_at) OVER (
        PARTITION BY o.offer_id ORDER BY p.number ROWS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING), 'infinity')
    FROM catalog c JOIN offers o ON o.dataset_id = c.item_id JOIN datasets d ON d.dataset_id = c.item_id JOIN offer_prices p USING (offer_id)
    WHERE c.item_id = dataset AND is_on_sale(o, d);
END $$;

-- Who is frozen sells nothing, and does again when that is over. In one order: each dataset is locked.
CREATE FUNCTION follow_freeze() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
    PERFORM write_catalog_prices(it.dataset_id) FROM (
        SELECT dataset_id FROM datasets WHERE account_id = coalesce(NEW.account_id, OLD.account_id) AND state = 'listed' ORDER BY dataset_id
    ) it;
    RETURN NULL;
END $$;
CREATE TRIGGER account_controls_in_catalog AFTER INSERT OR DELETE OR UPDATE OF frozen_at ON account_controls
    FOR EACH ROW EXECUTE FUNCTION follow_freeze();
REVOKE EXECUTE ON FUNCTION follow_freeze() FROM PUBLIC;
SELECT write_catalog_prices(d.dataset_id) FROM datasets d WHERE d.state = 'listed' AND is_frozen(d.account_id);

-- The sales and the purchases of one dataset.
CREATE INDEX purchases_of_dataset ON purchases (dataset_id, seller_id, purchase_id);
