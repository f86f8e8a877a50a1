-- What happened to an account, and who is told. An event is written in the transaction of its cause, and its deliveries with it, so that
-- what is rolled back was never said and what is committed will be. A step of the api sends them. An account without an endpoint has no
-- events: whoever listens to nothing costs nothing.

-- UUIDv7 by the database's clock, to the quarter of a microsecond, so that events have the order in which they were written.
CREATE FUNCTION time_ordered_uuid() RETURNS uuid LANGUAGE sql VOLATILE PARALLEL SAFE AS $$
    SELECT encode(
        substring(int8send(us / 1000) FROM 3 FOR 6)
        || substring(int4send((28672 + (us % 1000) * 4096 / 1000)::integer) FROM 3 FOR 2)
        || substring(uuid_send(gen_random_uuid()) FROM 9 FOR 8), 'hex')::uuid
    FROM (SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS us) it
$$;

CREATE TABLE webhook_endpoints (
    webhook_endpoint_id uuid PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES accounts,
    url text NOT NULL CHECK (length(url) BETWEEN 1 AND 2000),
    description text CHECK (length(description) BETWEEN 1 AND 200),
    event_types text[] CHECK (cardinality(event_types) BETWEEN 1 AND 100),   -- NULL: whatever happens
    state text NOT NULL CHECK (state IN ('enabled', 'disabled')),
    disabled_because text CHECK (disabled_because IN ('owner', 'gone', 'failing')),
    disabled_at timestamptz,
    secret bytea NOT NULL CHECK (octet_length(secret) BETWEEN 1 AND 500),    -- sealed with the service's pepper
    previous_secret bytea CHECK (octet_length(previous_secret) BETWEEN 1 AND 500),
    previous_secret_until timestamptz,
    created_at timestamptz NOT NULL,
    -- What the sender knows of the receiver.
    failing_since timestamptz,           -- the first failure after the last success
    failures integer NOT NULL DEFAULT 0 CHECK (failures >= 0),
    is_slow boolean NOT NULL DEFAULT false,
    paused_until timestamptz,
    CONSTRAINT webhook_endpoints_disabled_has_cause CHECK (
        (state = 'disabled') = (disabled_because IS NOT NULL) AND (state = 'disabled') = (disabled_at IS NOT NULL)),
    CONSTRAINT webhook_endpoints_previous_secret_ends CHECK ((previous_secret IS NULL) = (previous_secret_until IS NULL)),
    CONSTRAINT webhook_endpoints_failing_since CHECK ((failures > 0) = (failing_since IS NOT NULL))
) WITH (fillfactor = 70);
CREATE INDEX webhook_endpoints_account ON webhook_endpoints (account_id, webhook_endpoint_id);

CREATE TABLE webhook_events (
    webhook_event_id uuid PRIMARY KEY DEFAULT time_ordered_uuid(),
    account_id uuid NOT NULL,            -- accounts stay
    kind text NOT NULL CHECK (kind ~ '^[a-z_]+\.[a-z_]+$' AND length(kind) <= 50),
    subject_id uuid,                     -- what it is about, where that has an identifier
    asset_id integer,                    -- what amounts in `data` are of
    data jsonb NOT NULL CHECK (jsonb_typeof(data) = 'object'),
    created_at timestamptz NOT NULL
);
CREATE INDEX webhook_events_account ON webhook_events (account_id, webhook_event_id);
CREATE INDEX webhook_events_age ON webhook_events (created_at);
CREATE TRIGGER webhook_events_stay BEFORE UPDATE OR TRUNCATE ON webhook_events FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- One event on its way to one endpoint.
CREATE TABLE webhook_deliveries (
    webhook_delivery_id uuid PRIMARY KEY DEFAULT time_ordered_uuid(),
    webhook_endpoint_id uuid NOT NULL REFERENCES webhook_endpoints ON DELETE CASCADE,
    webhook_event_id uuid NOT NULL REFERENCES webhook_events ON DELETE CASCADE,
    account_id uuid NOT NULL,
    state text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'delivered', 'failed', 'cancelled')),
    attempts smallint NOT NULL DEFAULT 0 CHECK (attempts >= 0),  -- of all time
    tries smallint NOT NULL DEFAULT 0 CHECK (tries >= 0),        -- since it was last begun: the place in the schedule
    next_attempt_at timestamptz,
    lease_token uuid,
    lease_expires_at timestamptz,
    created_at timestamptz NOT NULL,
    ended_at timestamptz,
    CONSTRAINT webhook_deliveries_once UNIQUE (webhook_endpoint_id, webhook_event_id),
    CONSTRAINT webhook_deliveries_end_has_time CHECK ((state = 'pending') = (ended_at IS NULL) AND (state = 'pending') = (next_attempt_at IS NOT NULL)),
    CONSTRAINT webhook_deliveries_lease_is_whole CHECK (
        (lease_token IS NULL) = (lease_expires_at IS NULL) AND (lease_token IS NULL OR state = 'pending'))
) WITH (fillfactor = 70);
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (webhook_endpoint_id, next_attempt_at) WHERE state = 'pending';
CREATE INDEX webhook_deliveries_endpoint ON webhook_deliveries (webhook_endpoint_id, webhook_delivery_id);
CREATE INDEX webhook_deliveries_event ON webhook_deliveries (webhook_event_id);

-- What came of each attempt.
CREATE TABLE webhook_attempts (
    webhook_delivery_id uuid NOT NULL REFERENCES webhook_deliveries ON DELETE CASCADE,
    number smallint NOT NULL CHECK (number >= 1),
    account_id uuid NOT NULL,
    started_at timestamptz NOT NULL,
    latency_ms integer NOT NULL CHECK (latency_ms >= 0),
    status smallint CHECK (status BETWEEN 100 AND 999),   -- NULL: no answer
    error text CHECK (length(error) BETWEEN 1 AND 100),   -- NULL: an answer of 2xx
    answer bytea CHECK (octet_length(answer) <= 1024),    -- its beginning
    PRIMARY KEY (webhook_delivery_id, number)
);

-- Below which available balance an account wants to be told.
CREATE TABLE balance_alerts (
    account_id uuid PRIMARY KEY REFERENCES accounts,
    asset_id integer NOT NULL REFERENCES assets,
    threshold_base numeric(39, 0) NOT NULL CHECK (threshold_base > 0),
    created_at timestamptz NOT NULL
);

-- Workers of which it was said that they are not heard of.
CREATE TABLE worker_absences (
    worker_id uuid PRIMARY KEY REFERENCES workers,
    account_id uuid NOT NULL REFERENCES accounts,
    last_seen_at timestamptz NOT NULL
);

CALL wall('webhook_endpoints', 'sees_account(account_id)');
CALL wall('webhook_events', 'sees_account(account_id)');
CALL wall('webhook_deliveries', 'sees_account(account_id)');
CALL wall('webhook_attempts', 'sees_account(account_id)');
CALL wall('balance_alerts', 'sees_account(account_id)');
CALL wall('worker_absences', 'sees_account(account_id)');
GRANT SELECT, INSERT, DELETE ON webhook_endpoints, webhook_deliveries TO comptoir_api;
GRANT UPDATE (url, description, event_types, state, disabled_because, disabled_at, secret, previous_secret, previous_secret_until,
    failing_since, failures, is_slow, paused_until) ON webhook_endpoints TO comptoir_api;
GRANT UPDATE (state, attempts, tries, next_attempt_at, lease_token, lease_expires_at, ended_at) ON webhook_deliveries TO comptoir_api;
-- What happened in jobs, on the chain and in the ledger is written by triggers: no service says it of its own.
GRANT SELECT, INSERT (account_id, kind, subject_id, asset_id, data, created_at), DELETE ON webhook_events TO comptoir_api;
GRANT SELECT, INSERT ON webhook_attempts TO comptoir_api;
GRANT SELECT, INSERT, UPDATE (asset_id, threshold_base), DELETE ON balance_alerts TO comptoir_api;
GRANT SELECT, INSERT, DELETE ON worker_absences TO comptoir_api;
-- Operators see how much waits.
GRANT SELECT ON webhook_endpoints, webhook_deliveries TO comptoir_admin;

-- Whoever writes an event writes nothing else: its deliveries are made here. A test goes to the endpoint that it tests, and nowhere else.
CREATE FUNCTION deliver_webhook_events() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    INSERT INTO webhook_deliveries (webhook_endpoint_id, webhook_event_id, account_id, next_attempt_at, created_at)
    SELECT e.webhook_endpoint_id, f.webhook_event_id, f.account_id, f.created_at, f.created_at
    FROM fresh f JOIN webhook_endpoints e ON e.account_id = f.account_id
    WHERE e.state = 'enabled' AND (e.event_types IS NULL OR f.kind = ANY (e.event_types)) AND f.kind <> 'webhook.test'
        OR f.kind = 'webhook.test' AND e.webhook_endpoint_id = f.subject_id;
    RETURN NULL;
END $$;
CREATE TRIGGER webhook_events_deliver AFTER INSERT ON webhook_events REFERENCING NEW TABLE AS fresh
    FOR EACH STATEMENT EXECUTE FUNCTION deliver_webhook_events();

-- Jobs: by statement, since many are committed together. What is told of one by one, metrics and progress, is told by the job's own stream.
CREATE FUNCTION say_job_events() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM webhook_endpoints) THEN
        RETURN NULL;
    END IF;
    INSERT INTO webhook_events (account_id, kind, subject_id, data, created_at)
    SELECT j.account_id, 'job.' || f.kind, f.job_id,
        jsonb_strip_nulls(jsonb_build_object('seq', f.seq, 'cause', f.data -> 'cause', 'code', f.data -> 'code')), f.created_at
    FROM fresh f JOIN jobs j ON j.job_id = f.job_id
    WHERE f.kind IN ('queued', 'leased', 'verifying', 'completed', 'failed', 'cancelled', 'expired', 'refunded')
        AND EXISTS (SELECT FROM webhook_endpoints e WHERE e.account_id = j.account_id)
    ORDER BY f.job_id, f.seq;
    RETURN NULL;
END $$;
CREATE TRIGGER job_events_say AFTER INSERT ON job_events REFERENCING NEW TABLE AS fresh
    FOR EACH STATEMENT EXECUTE FUNCTION say_job_events();

-- Money: whoever falls below what he wants to be told of, once for each time. A statement posts whole entries; what counts is where
-- the account stood before the first of its lines and stands after the last.
CREATE FUNCTION say_balance_low() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM balance_alerts) THEN
        RETURN NULL;
    END IF;
    INSERT INTO webhook_events (account_id, kind, asset_id, data, created_at)
    SELECT it.account_id, 'balance.low', it.asset_id,
        jsonb_build_object('available_base', it.stands_at::text, 'threshold_base', it.threshold_base::text), it.posted_at
    FROM (
        SELECT al.account_id, al.asset_id, al.threshold_base, max(en.posted_at) AS posted_at,
            (array_agg(f.balance_after_base - f.amount_base ORDER BY f.account_version))[1] AS stood_at,
            (array_agg(f.balance_after_base ORDER BY f.account_version DESC))[1] AS stands_at
        FROM fresh f
        JOIN journal_entries en ON en.journal_entry_id = f.journal_entry_id
        JOIN ledger_accounts la ON la.ledger_account_id = f.ledger_account_id
        JOIN accounts a ON a.address = la.owner
        JOIN balance_alerts al ON al.account_id = a.account_id
        WHERE la.code = 'available' AND al.asset_id = la.asset_id
        GROUP BY al.account_id, al.asset_id, al.threshold_base
    ) it
    WHERE it.stood_at >= it.threshold_base AND it.stands_at < it.threshold_base
        AND EXISTS (SELECT FROM webhook_endpoints e WHERE e.account_id = it.account_id);
    RETURN NULL;
END $$;
CREATE TRIGGER postings_say AFTER INSERT ON postings REFERENCING NEW TABLE AS fresh
    FOR EACH STATEMENT EXECUTE FUNCTION say_balance_low();

-- The chain: a batch that is anchored, to everybody who pays or is paid in it.
CREATE FUNCTION say_batch_anchored() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM webhook_endpoints) THEN
        RETURN NULL;
    END IF;
    -- Once over the batch, and not once for every endpoint: the settler waits for this.
    INSERT INTO webhook_events (account_id, kind, subject_id, data, created_at)
    SELECT it.account_id, 'batch.anchored', NEW.batch_id,
        jsonb_build_object('number', NEW.number, 'hash', '0x' || encode(NEW.hash, 'hex')), NEW.anchored_at
    FROM (
        SELECT r.account_id FROM batch_items i JOIN receipts r ON r.receipt_id = i.receipt_id WHERE i.batch_id = NEW.batch_id
        UNION
        SELECT a.account_id FROM batch_items i
        JOIN receipt_splits s ON s.receipt_id = i.receipt_id JOIN accounts a ON a.address = s.payee
        WHERE i.batch_id = NEW.batch_id
    ) it
    WHERE EXISTS (SELECT FROM webhook_endpoints e WHERE e.account_id = it.account_id);
    RETURN NULL;
END $$;
CREATE TRIGGER settlement_batches_say AFTER UPDATE OF anchored_at ON settlement_batches FOR EACH ROW
    WHEN (OLD.anchored_at IS NULL AND NEW.anchored_at IS NOT NULL) EXECUTE FUNCTION say_batch_anchored();

-- What the contract paid out is said once it is final: before, a reorganisation may take it back.
CREATE FUNCTION say_payouts_paid() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
    INSERT INTO webhook_events (account_id, kind, asset_id, data, created_at)
    SELECT a.account_id, 'payout.paid', c.asset_id, jsonb_strip_nulls(jsonb_build_object(
            'amount_base', c.amount_base::text, 'address', '0x' || encode(c.owner, 'hex'), 'batch_number', c.batch_number,
            'block_number', c.block_number, 'tx_hash', '0x' || encode(c.tx_hash, 'hex'))), NEW.updated_at
    FROM claims c JOIN accounts a ON a.address = c.owner
    WHERE c.asset_id = NEW.asset_id AND c.block_number > OLD.final_number AND c.block_number <= NEW.final_number
        AND EXISTS (SELECT FROM webhook_endpoints e WHERE e.account_id = a.account_id)
    ORDER BY c.event_seq;
    RETURN NULL;
END $$;
CREATE TRIGGER chain_cursors_say AFTER UPDATE OF final_number ON chain_cursors FOR EACH ROW
    WHEN (NEW.final_number > OLD.final_number) EXECUTE FUNCTION say_payouts_paid();

CREATE FUNCTION say_deposit_credited() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
    INSERT INTO webhook_events (account_id, kind, subject_id, asset_id, data, created_at)
    SELECT a.account_id, 'deposit.credited', NEW.deposit_id, NEW.asset_id, jsonb_build_object(
        'amount_base', NEW.amount_base::text, 'block_number', NEW.block_number, 'tx_hash', '0x' || encode(NEW.tx_hash, 'hex')), NEW.credited_at
    FROM accounts a
    WHERE a.address = NEW.owner AND EXISTS (SELECT FROM webhook_endpoints e WHERE e.account_id = a.account_id);
    RETURN NULL;
END $$;
CREATE TRIGGER deposits_say AFTER UPDATE OF credited_at ON deposits FOR EACH ROW
    WHEN (OLD.credited_at IS NULL AND NEW.credited_at IS NOT NULL) EXECUTE FUNCTION say_deposit_credited();
