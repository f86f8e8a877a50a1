-- Both sides are told by mail where a takedown stands, by every step of it: who filed it waits for an answer as the seller does, and what the other
-- side, an operator or a clock did is heard from nobody else. Whoever did it has it in writing.
CREATE FUNCTION notify_of_takedown() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
    INSERT INTO notices (notice_id, account_id, recipient, kind, facts, created_at, next_attempt_at)
    SELECT time_ordered_uuid(), a.account_id, a.email, 'takedown', jsonb_build_object(
            'takedown', NEW.takedown_id, 'dataset', d.name, 'ground', NEW.ground, 'state', NEW.state, 'reason', NEW.reason,
            'due_at', to_char(NEW.due_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
            'to_claimant', a.account_id = NEW.account_id), at, at
    FROM accounts a JOIN datasets d ON d.dataset_id = NEW.dataset_id,
        LATERAL (SELECT greatest(NEW.ended_at, NEW.contested_at, NEW.frozen_at, NEW.created_at) AS at) it
    WHERE a.account_id IN (NEW.seller_id, NEW.account_id) AND a.email IS NOT NULL;
    RETURN NULL;
END $$;
REVOKE EXECUTE ON FUNCTION notify_of_takedown() FROM PUBLIC;
DROP TRIGGER takedowns_notify ON takedowns;
DROP TRIGGER takedowns_notify_later ON takedowns;
DROP FUNCTION notify_seller();
CREATE TRIGGER takedowns_notify AFTER INSERT ON takedowns FOR EACH ROW EXECUTE FUNCTION notify_of_takedown();
CREATE TRIGGER takedowns_notify_later AFTER UPDATE OF state ON takedowns FOR EACH ROW
    WHEN (NEW.state <> OLD.state) EXECUTE FUNCTION notify_of_takedown();
