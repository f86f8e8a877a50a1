-- Gated models: everybody who may find one looks at it, and its creator decides who calls it.
ALTER TABLE models ADD COLUMN is_gated boolean NOT NULL DEFAULT false;
GRANT UPDATE (is_gated) ON models TO comptoir_api;

-- That an account may call a gated model, or asked for it. Denied and revoked are final: whoever asks again has another one.
CREATE TABLE admissions (
    admission_id uuid PRIMARY KEY,
    model_id uuid NOT NULL REFERENCES models,
    creator_id uuid NOT NULL REFERENCES accounts,                         -- whose the model is
    account_id uuid NOT NULL REFERENCES accounts,                         -- who asked
    state text NOT NULL CHECK (state IN ('requested', 'granted', 'denied', 'revoked')),
    note text CHECK (octet_length(note) BETWEEN 1 AND 4096),              -- words to the creator
    reason text CHECK (length(reason) BETWEEN 1 AND 1000),                -- why it was denied or revoked
    created_at timestamptz NOT NULL,
    answered_at timestamptz,                                              -- granted or denied
    ended_at timestamptz,                                                 -- denied or revoked
    CONSTRAINT admissions_by_others CHECK (account_id <> creator_id),
    CONSTRAINT admissions_answer_has_time CHECK ((state = 'requested') = (answered_at IS NULL)),
    CONSTRAINT admissions_end_has_time CHECK ((state IN ('denied', 'revoked')) = (ended_at IS NOT NULL))
);
CREATE INDEX admissions_account ON admissions (account_id, admission_id);
CREATE INDEX admissions_creator ON admissions (creator_id, admission_id);
-- Nobody asks twice, and nobody asks who is let in. Whether an account may call a model is looked up by it.
CREATE UNIQUE INDEX admissions_open_once ON admissions (account_id, model_id) WHERE state IN ('requested', 'granted');

CREATE FUNCTION keep_admissions() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (OLD.state, NEW.state) NOT IN (('requested', 'granted'), ('requested', 'denied'), ('granted', 'revoked')) THEN
        RAISE EXCEPTION 'a % admission does not become %', OLD.state, NEW.state
            USING ERRCODE = 'restrict_violation', CONSTRAINT = 'admissions_states';
    END IF;
    IF (to_jsonb(OLD) - '{state,reason,answered_at,ended_at}'::text[]) IS DISTINCT FROM (to_jsonb(NEW) - '{state,reason,answered_at,ended_at}'::text[]) THEN
        RAISE EXCEPTION 'an admission does not change' USING ERRCODE = 'restrict_violation', CONSTRAINT = 'admissions_stay';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER admissions_stay BEFORE UPDATE ON admissions FOR EACH ROW EXECUTE FUNCTION keep_admissions();
CREATE TRIGGER admissions_kept BEFORE DELETE OR TRUNCATE ON admissions FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

GRANT SELECT, INSERT, UPDATE (state, reason, answered_at, ended_at) ON admissions TO comptoir_api;
GRANT SELECT ON admissions TO comptoir_admin;
CALL wall('admissions', 'CASE WHEN (SELECT sees_all()) THEN true ELSE sees_account(account_id) OR sees_account(creator_id) END');

-- Both sides are told.
CREATE FUNCTION say_admissions() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM webhook_endpoints) THEN
        RETURN NULL;
    END IF;
    INSERT INTO webhook_events (account_id, kind, subject_id, data, created_at)
    SELECT it.account_id, 'admission.' || NEW.state, NEW.admission_id, jsonb_strip_nulls(jsonb_build_object('model_id', NEW.model_id, 'reason', NEW.reason)),
        coalesce(NEW.ended_at, NEW.answered_at, NEW.created_at)
    FROM (VALUES (NEW.account_id), (NEW.creator_id)) AS it (account_id)
    WHERE EXISTS (SELECT FROM webhook_endpoints e WHERE e.account_id = it.account_id);
    RETURN NULL;
END $$;
CREATE TRIGGER admissions_say AFTER INSERT OR UPDATE OF state ON admissions FOR EACH ROW EXECUTE FUNCTION say_admissions();
REVOKE EXECUTE ON FUNCTION say_admissions() FROM PUBLIC;
