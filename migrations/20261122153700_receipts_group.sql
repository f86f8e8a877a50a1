-- Receipts are queued for their batch by statement: a group of them costs one call.
DROP TRIGGER receipts_queue ON receipts;
CREATE OR REPLACE FUNCTION queue_receipt() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
    INSERT INTO unbatched_receipts (receipt_id, asset_id, gross_base) SELECT receipt_id, asset_id, gross_base FROM fresh;
    RETURN NULL;
END $$;
CREATE TRIGGER receipts_queue AFTER INSERT ON receipts REFERENCING NEW TABLE AS fresh
    FOR EACH STATEMENT EXECUTE FUNCTION queue_receipt();
