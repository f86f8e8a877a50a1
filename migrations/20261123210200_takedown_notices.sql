-- A seller is told by mail, and not by webhooks alone, what becomes of its dataset: money and a clock hang on it. Written in the transaction of its
-- cause, whoever that is; put into words where notices are sent. What the seller did itself it knows, and what was dismissed never touched it.
CREATE FUNCTION notify_seller() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
    INSERT INTO notices (notice_id, account_id, recipient, kind, facts, created_at, next_attempt_at)
    SELECT time_ordered_uuid(), a.account_id, a.email, 'takedown', jsonb_build_object(
            'takedown', NEW.takedown_id, 'dataset', d.name, 'ground', NEW.ground, 'state', NEW.state, 'reason', NEW.reason,
            'due_at', to_char(NEW.due_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')), at, at
    FROM accounts a JOIN datasets d ON d.dataset_id = NEW.dataset_id,
        LATERAL (SELECT greatest(NEW.ended_at, NEW.contested_at, NEW.frozen_at, NEW.created_at) AS at) it
    WHERE a.account_id = NEW.seller_id AND a.email IS NOT NULL;
    RETURN NULL;
END $$;
CREATE TRIGGER takedowns_notify AFTER INSERT ON takedowns FOR EACH ROW EXECUTE FUNCTION notify_seller();
CREATE TRIGGER takedowns_notify_later AFTER UPDATE OF state ON takedowns FOR EACH ROW
    WHEN (NEW.state <> OLD.state AND NEW.state IN ('frozen', 'upheld', 'rejected')) EXECUTE FUNCTION notify_seller();
REVOKE EXECUTE ON FUNCTION notify_seller() FROM PUBLIC;
