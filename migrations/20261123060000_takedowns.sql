-- Takedowns: who wants a dataset to be blocked, what its seller says to that, and what became of it.

-- filed: no operator has looked at it. frozen: the dataset is blocked, and its seller may contest that until due_at; then it is upheld.
-- contested: an operator has until due_at to decide; then it is rejected.
CREATE TABLE takedowns (
    takedown_id uuid PRIMARY KEY,
    dataset_id uuid NOT NULL REFERENCES datasets,
    seller_id uuid NOT NULL REFERENCES accounts,                          -- whose the dataset is
    account_id uuid NOT NULL REFERENCES accounts,                         -- who filed it
    ground text NOT NULL CHECK (ground IN ('copyright', 'personal_data', 'illegal', 'malware', 'other')),
    statement text NOT NULL CHECK (octet_length(statement) BETWEEN 1 AND 8192),
    state text NOT NULL CHECK (state IN ('filed', 'frozen', 'contested', 'upheld', 'rejected', 'dismissed', 'withdrawn')),
    answer text CHECK (octet_length(answer) BETWEEN 1 AND 8192),          -- the seller's words
    reason text CHECK (length(reason) BETWEEN 1 AND 500),                 -- of the operator's last decision
    created_at timestamptz NOT NULL,
    frozen_at timestamptz,
    contested_at timestamptz,
    due_at timestamptz,                                                   -- until when somebody is to say something
    ended_at timestamptz,
    CONSTRAINT takedowns_answer_has_time CHECK ((answer IS NULL) = (contested_at IS NULL)),
    CONSTRAINT takedowns_clock_runs CHECK ((state IN ('frozen', 'contested')) = (due_at IS NOT NULL)),
    CONSTRAINT takedowns_end_has_time CHECK ((state IN ('filed', 'frozen', 'contested')) = (ended_at IS NULL)),
    CONSTRAINT takedowns_by_others CHECK (account_id <> seller_id)
);
CREATE INDEX takedowns_account ON takedowns (account_id, takedown_id);
CREATE INDEX takedowns_seller ON takedowns (seller_id, takedown_id);
CREATE INDEX takedowns_dataset ON takedowns (dataset_id);
CREATE INDEX takedowns_due ON takedowns (due_at) WHERE due_at IS NOT NULL;
-- Who filed one has said it.
CREATE UNIQUE INDEX takedowns_open_once ON takedowns (account_id, dataset_id) WHERE ended_at IS NULL;

CREATE FUNCTION keep_takedowns() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.state <> OLD.state AND (OLD.state, NEW.state) NOT IN (
        ('filed', 'frozen'), ('filed', 'dismissed'), ('filed', 'withdrawn'),
        ('frozen', 'contested'), ('frozen', 'upheld'), ('frozen', 'rejected'), ('contested', 'upheld'), ('contested', 'rejected')) THEN
        RAISE EXCEPTION 'a % takedown does not become %', OLD.state, NEW.state
            USING ERRCODE = 'restrict_violation', CONSTRAINT = 'takedowns_states';
    END IF;
    IF (to_jsonb(OLD) - '{state,answer,reason,frozen_at,contested_at,due_at,ended_at}'::text[])
        IS DISTINCT FROM (to_jsonb(NEW) - '{state,answer,reason,frozen_at,contested_at,due_at,ended_at}'::text[]) OR OLD.ended_at IS NOT NULL THEN
        RAISE EXCEPTION 'a takedown does not change' USING ERRCODE = 'restrict_violation', CONSTRAINT = 'takedowns_stay';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER takedowns_stay BEFORE UPDATE ON takedowns FOR EACH ROW EXECUTE FUNCTION keep_takedowns();
CREATE TRIGGER takedowns_kept BEFORE DELETE OR TRUNCATE ON takedowns FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- The takedown that blocks a dataset, the oldest where there are several. It follows from these; nobody else writes it.
ALTER TABLE datasets ADD COLUMN blocked_by uuid REFERENCES takedowns;
ALTER TABLE datasets ADD COLUMN blocked_at timestamptz;
ALTER TABLE datasets ADD CONSTRAINT datasets_blocked_has_time CHECK ((blocked_by IS NULL) = (blocked_at IS NULL));
CREATE INDEX datasets_blocked ON datasets (dataset_id) WHERE blocked_by IS NOT NULL;

CREATE FUNCTION follow_takedown() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
    -- Two takedowns of one dataset are decided one after the other, and sales that are under way are seen.
    PERFORM FROM datasets WHERE dataset_id = NEW.dataset_id FOR NO KEY UPDATE;
    UPDATE datasets d SET blocked_by = it.takedown_id, blocked_at = it.frozen_at
    FROM (VALUES (1)) AS one LEFT JOIN LATERAL (
        SELECT takedown_id, frozen_at FROM takedowns t WHERE t.dataset_id = NEW.dataset_id AND state IN ('frozen', 'contested', 'upheld')
        ORDER BY frozen_at, takedown_id LIMIT 1
    ) it ON true
    WHERE d.dataset_id = NEW.dataset_id AND d.blocked_by IS DISTINCT FROM it.takedown_id;
    RETURN NULL;
END $$;
CREATE TRIGGER takedowns_block AFTER UPDATE OF state ON takedowns FOR EACH ROW EXECUTE FUNCTION follow_takedown();

-- Which of some datasets are blocked, by what and since when. No freeze passes before the transaction ends: what it charges as not blocked was
-- earned before. Locks come in one order, before those of the ledger.
CREATE FUNCTION blocks(wanted uuid[]) RETURNS TABLE (dataset_id uuid, blocked_by uuid, blocked_at timestamptz)
LANGUAGE sql SECURITY DEFINER SET search_path = public AS $$
    -- Materialized: those that are not blocked are to be locked too, and a condition that is pushed into the locking part would skip them.
    WITH locked AS MATERIALIZED (
        SELECT d.dataset_id, d.blocked_by, d.blocked_at FROM datasets d WHERE d.dataset_id = ANY (wanted) ORDER BY d.dataset_id FOR SHARE
    )
    SELECT locked.dataset_id, locked.blocked_by, locked.blocked_at FROM locked WHERE locked.blocked_by IS NOT NULL
$$;
REVOKE EXECUTE ON FUNCTION blocks FROM PUBLIC;
GRANT EXECUTE ON FUNCTION blocks TO comptoir_api, comptoir_scheduler;

-- What is sold or computed while a dataset is blocked, and of what was under way when it was: held back until that is decided. Released to who
-- earned it when the dataset is back, forfeited to who paid when the takedown is upheld.
CREATE TABLE held_proceeds (
    source_kind text NOT NULL CHECK (source_kind IN ('purchase', 'job')),
    source_id uuid NOT NULL,
    owner bytea NOT NULL CHECK (octet_length(owner) = 20),                -- who earned it; of the fee, the platform
    dataset_id uuid NOT NULL REFERENCES datasets,
    asset_id integer NOT NULL REFERENCES assets,
    payer bytea NOT NULL CHECK (octet_length(payer) = 20),
    amount_base numeric(39, 0) NOT NULL CHECK (amount_base > 0),
    state text NOT NULL DEFAULT 'held' CHECK (state IN ('held', 'released', 'forfeited')),
    created_at timestamptz NOT NULL,
    ended_at timestamptz,
    PRIMARY KEY (source_id, source_kind, owner),
    CONSTRAINT held_proceeds_end_has_time CHECK ((state = 'held') = (ended_at IS NULL))
);
CREATE INDEX held_proceeds_held ON held_proceeds (dataset_id) WHERE state = 'held';
CREATE FUNCTION keep_held_proceeds() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (to_jsonb(OLD) - '{state,ended_at}'::text[]) IS DISTINCT FROM (to_jsonb(NEW) - '{state,ended_at}'::text[]) OR OLD.state <> 'held' THEN
        RAISE EXCEPTION 'proceeds are released or forfeited once' USING ERRCODE = 'restrict_violation', CONSTRAINT = 'held_proceeds_stay';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER held_proceeds_stay BEFORE UPDATE ON held_proceeds FOR EACH ROW EXECUTE FUNCTION keep_held_proceeds();
CREATE TRIGGER held_proceeds_kept BEFORE DELETE OR TRUNCATE ON held_proceeds FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- From when on an owner that leaves gets what is held back for it, whoever has decided what.
CREATE FUNCTION exit_last_call(due timestamptz, seen timestamptz, margin interval) RETURNS timestamptz LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT due - greatest(margin, (due - seen) / 3)
$$;
-- Does a payee wait for its part of what a dataset earned while it was blocked?
CREATE FUNCTION proceeds_wait(dataset uuid, asset integer, payee bytea, margin interval, at timestamptz) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT EXISTS (SELECT FROM takedowns t WHERE t.dataset_id = dataset AND t.state IN ('frozen', 'contested'))
        AND NOT EXISTS (SELECT FROM exits x WHERE x.asset_id = asset AND x.owner = payee AND x.answered_block_number IS NULL
            AND exit_last_call(x.due_at, x.seen_at, margin) <= at)
$$;

-- What is blocked is not searched.
CREATE OR REPLACE FUNCTION write_catalog(dataset uuid) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM lock_catalog(dataset);
    DELETE FROM catalog WHERE dataset_id = dataset;
    INSERT INTO catalog (dataset_id, account_id, search, tags, licence, version_id, number, files, bytes, rows, formats)
    SELECT d.dataset_id, d.account_id, catalog_words(d.title, d.name, array_to_string(d.tags, ' '), d.description), d.tags, d.licence,
        v.version_id, v.number, v.files, v.bytes, f.rows, coalesce(f.formats, '{}')
    FROM datasets d
    JOIN LATERAL (SELECT * FROM dataset_versions v WHERE v.dataset_id = d.dataset_id AND v.state = 'ready' ORDER BY number DESC LIMIT 1) v ON true
    CROSS JOIN LATERAL (
        SELECT least(sum((facts ->> 'rows')::numeric), 9223372036854775807)::bigint AS rows, array_agg(DISTINCT format ORDER BY format) AS formats
        FROM dataset_files WHERE version_id = v.version_id
    ) f
    WHERE d.dataset_id = dataset AND d.state = 'listed' AND d.blocked_by IS NULL;
    PERFORM write_catalog_prices(dataset);
END $$;
CREATE TRIGGER datasets_blocked_in_catalog AFTER UPDATE OF blocked_by ON datasets FOR EACH ROW
    WHEN ((OLD.blocked_by IS NULL) <> (NEW.blocked_by IS NULL)) EXECUTE FUNCTION follow_dataset();

-- Filing, contesting, taking back, and both clocks are the api's; what an operator decides is the operator's.
GRANT SELECT, INSERT, UPDATE (state, answer, reason, contested_at, due_at, ended_at) ON takedowns TO comptoir_api;
GRANT SELECT, UPDATE (state, reason, frozen_at, due_at, ended_at) ON takedowns TO comptoir_admin;
GRANT SELECT ON takedowns TO comptoir_scheduler;
GRANT SELECT, INSERT ON held_proceeds TO comptoir_api, comptoir_scheduler;
GRANT UPDATE (state, ended_at) ON held_proceeds TO comptoir_scheduler;
GRANT SELECT ON held_proceeds TO comptoir_admin;
CALL wall('takedowns', 'CASE WHEN (SELECT sees_all()) THEN true ELSE sees_account(account_id) OR sees_account(seller_id) END');
CALL wall('held_proceeds', 'sees_all()');
CREATE POLICY takedowns_filed ON takedowns AS RESTRICTIVE FOR INSERT TO comptoir_api
    WITH CHECK (state = 'filed' AND CASE WHEN (SELECT sees_all()) THEN true ELSE sees_account(account_id) END);
-- The seller contests, who filed it takes it back, and clocks, which see everybody, decide.
CREATE POLICY takedowns_api ON takedowns AS RESTRICTIVE FOR UPDATE TO comptoir_api WITH CHECK (CASE state
    WHEN 'contested' THEN sees_account(seller_id) WHEN 'withdrawn' THEN sees_account(account_id)
    WHEN 'upheld' THEN (SELECT sees_all()) WHEN 'rejected' THEN (SELECT sees_all()) ELSE false END);

-- Both sides are told, in the transaction that it happens in; and everybody who has a right to the dataset, when it is blocked or back.
CREATE FUNCTION say_takedowns() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.state = OLD.state OR NOT EXISTS (SELECT FROM webhook_endpoints) THEN
        RETURN NULL;
    END IF;
    INSERT INTO webhook_events (account_id, kind, subject_id, data, created_at)
    SELECT it.account_id, 'takedown.' || NEW.state, NEW.takedown_id, jsonb_strip_nulls(jsonb_build_object(
            'dataset_id', NEW.dataset_id, 'ground', NEW.ground, 'reason', NEW.reason)),
        greatest(NEW.ended_at, NEW.contested_at, NEW.frozen_at, NEW.created_at)
    FROM (VALUES (NEW.account_id), (NEW.seller_id)) AS it (account_id)
    WHERE EXISTS (SELECT FROM webhook_endpoints e WHERE e.account_id = it.account_id);
    RETURN NULL;
END $$;
CREATE TRIGGER takedowns_say AFTER INSERT OR UPDATE OF state ON takedowns FOR EACH ROW EXECUTE FUNCTION say_takedowns();

CREATE FUNCTION say_blocked() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
    INSERT INTO webhook_events (account_id, kind, subject_id, data, created_at)
    SELECT DISTINCT e.account_id, CASE WHEN NEW.blocked_by IS NULL THEN 'dataset.restored' ELSE 'dataset.blocked' END, NEW.dataset_id, '{}'::jsonb, clock_timestamp()
    FROM webhook_endpoints e
    WHERE e.account_id = NEW.account_id OR EXISTS (
        SELECT FROM entitlements r WHERE r.account_id = e.account_id AND r.dataset_id = NEW.dataset_id AND r.ended_at IS NULL
            AND (r.ends_at IS NULL OR r.ends_at > clock_timestamp()));
    RETURN NULL;
END $$;
CREATE TRIGGER datasets_say_blocked AFTER UPDATE OF blocked_by ON datasets FOR EACH ROW
    WHEN ((OLD.blocked_by IS NULL) <> (NEW.blocked_by IS NULL)) EXECUTE FUNCTION say_blocked();
REVOKE EXECUTE ON FUNCTION follow_takedown(), say_takedowns(), say_blocked() FROM PUBLIC;
