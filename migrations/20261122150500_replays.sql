-- Audits of training replay a piece of it, and what the API reads of verification is walled off by tenant.

-- A replica that replays a piece of another one's run, from its checkpoint (NULL: from the start) up to a step.
ALTER TABLE replicas
    ADD COLUMN replay_piece integer CHECK (replay_piece >= 0),
    ADD COLUMN replay_from bigint CHECK (replay_from >= 0),
    ADD COLUMN replay_until bigint,
    ADD COLUMN replay_ends boolean,                    -- it ends with the trained weights, not with a checkpoint
    ADD COLUMN replay_checkpoint bytea REFERENCES blobs (sha256),
    ADD CONSTRAINT replicas_replay_is_whole CHECK (
        (replay_piece IS NULL) = (replay_from IS NULL)
        AND (replay_piece IS NULL) = (replay_until IS NULL)
        AND (replay_piece IS NULL) = (replay_ends IS NULL)
        AND (replay_piece IS NULL OR replay_until > replay_from)
        AND (replay_checkpoint IS NOT NULL) = (coalesce(replay_from, 0) > 0)
    );
-- Which piece an audit of training begins with.
ALTER TABLE draws ADD COLUMN piece integer CHECK (piece >= 0);

REVOKE SELECT ON audit_pays, unstable_classes FROM comptoir_api;
DO $$
DECLARE
    walled text;
BEGIN
    FOREACH walled IN ARRAY ARRAY['draws', 'holdbacks'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', walled);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', walled);
        EXECUTE format('CREATE POLICY tenant ON %I TO comptoir_api USING (
            CASE WHEN sees_all() THEN true ELSE EXISTS (SELECT FROM jobs WHERE jobs.job_id = %I.job_id) END)', walled, walled);
        EXECUTE format('CREATE POLICY services ON %I TO comptoir_scheduler, comptoir_settler, comptoir_admin, CURRENT_USER USING (true)', walled);
    END LOOP;
END $$;
