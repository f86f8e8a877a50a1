CREATE TABLE quotes (
    quote_id uuid PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES accounts,
    asset_id integer NOT NULL REFERENCES assets,
    spec jsonb NOT NULL,
    spec_sha256 bytea NOT NULL CHECK (octet_length(spec_sha256) = 32),
    tier text NOT NULL CHECK (tier IN ('none', 'replicated')),
    device text NOT NULL CHECK (device IN ('cpu', 'cuda')),
    meter jsonb NOT NULL,                -- every term of the price, as told to the client
    madds numeric(39, 0) NOT NULL CHECK (madds >= 0),   -- multiply-adds of one replica
    price_version_id integer NOT NULL REFERENCES price_versions,
    amount_atto numeric(60, 0) NOT NULL CHECK (amount_atto >= 0),   -- 1e-18 base units, all replicas
    hold_base numeric(39, 0) NOT NULL CHECK (hold_base >= 0),       -- `amount_atto`, rounded up
    min_memory_bytes bigint NOT NULL CHECK (min_memory_bytes >= 0),
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE INDEX quotes_account ON quotes (account_id, quote_id);

CREATE TABLE jobs (
    job_id uuid PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES accounts,
    quote_id uuid NOT NULL REFERENCES quotes,   -- specification, meter and price
    payer bytea NOT NULL CHECK (octet_length(payer) = 20),
    asset_id integer NOT NULL REFERENCES assets,
    name text CHECK (length(name) BETWEEN 1 AND 200),
    kind text NOT NULL CHECK (kind IN ('training', 'inference')),
    tier text NOT NULL CHECK (tier IN ('none', 'replicated')),
    max_cost_base numeric(39, 0) NOT NULL,
    numeric_class text,                  -- the class that training settled on with its first lease
    state text NOT NULL CHECK (state IN ('queued', 'leased', 'verifying', 'completed', 'failed', 'cancelled', 'expired')),
    failure_cause text CHECK (failure_cause IN ('client', 'worker', 'operator', 'chain')),
    failure_code text,
    failure_detail text,
    event_seq bigint NOT NULL DEFAULT 0,
    deadline_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL,
    started_at timestamptz,
    finished_at timestamptz,
    CONSTRAINT jobs_quote_once UNIQUE (quote_id),
    CONSTRAINT jobs_end_has_time CHECK ((state IN ('completed', 'failed', 'cancelled', 'expired')) = (finished_at IS NOT NULL)),
    CONSTRAINT jobs_failure_has_cause CHECK ((state = 'failed') = (failure_cause IS NOT NULL AND failure_code IS NOT NULL))
);
CREATE INDEX jobs_account ON jobs (account_id, job_id);
CREATE INDEX jobs_deadline ON jobs (deadline_at) WHERE finished_at IS NULL;

-- One execution that the tier asks for; a third one is added on mismatch.
CREATE TABLE replicas (
    replica_id uuid PRIMARY KEY,
    job_id uuid NOT NULL REFERENCES jobs,
    ordinal smallint NOT NULL CHECK (ordinal >= 0),
    state text NOT NULL CHECK (state IN ('queued', 'leased', 'sealed', 'revealed', 'accepted', 'rejected', 'failed', 'cancelled')),
    owner_account_id uuid REFERENCES accounts,   -- the provider that has it, so that no other replica goes to the same one
    CONSTRAINT replicas_once UNIQUE (job_id, ordinal),
    CONSTRAINT replicas_owner_once UNIQUE (job_id, owner_account_id)
);

-- What changes often, and only that: one row per replica that is not yet ended.
CREATE TABLE queue (
    replica_id uuid PRIMARY KEY REFERENCES replicas,
    job_id uuid NOT NULL REFERENCES jobs,
    priority smallint NOT NULL DEFAULT 0,
    ready_at timestamptz NOT NULL,
    attempt integer NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    attempt_id uuid,
    worker_id uuid REFERENCES workers,
    lease_token uuid,
    lease_expires_at timestamptz,
    -- What a worker must offer, copied from the quote; the numeric class of training is the job's.
    device text NOT NULL,
    min_memory_bytes bigint NOT NULL,
    rate_nano numeric(39, 0) NOT NULL,
    CONSTRAINT queue_lease_is_whole CHECK (
        (lease_token IS NULL) = (lease_expires_at IS NULL)
        AND (lease_token IS NULL) = (worker_id IS NULL)
        AND (lease_token IS NULL) = (attempt_id IS NULL)
    )
) WITH (fillfactor = 50);
CREATE INDEX queue_job ON queue (job_id);
-- Names no column that a lease or a heartbeat changes, so that those updates stay HOT.
CREATE INDEX queue_order ON queue (device, priority, replica_id);

CREATE TABLE attempts (
    attempt_id uuid PRIMARY KEY,
    replica_id uuid NOT NULL REFERENCES replicas,
    job_id uuid NOT NULL REFERENCES jobs,
    number integer NOT NULL CHECK (number >= 1),
    worker_id uuid NOT NULL REFERENCES workers,
    numeric_class text NOT NULL,
    state text NOT NULL CHECK (state IN ('running', 'sealed', 'revealed', 'accepted', 'rejected', 'failed', 'lost', 'cancelled')),
    seal bytea CHECK (octet_length(seal) = 32),
    reveal_by timestamptz,
    salt bytea CHECK (octet_length(salt) = 32),
    result_sha256 bytea CHECK (octet_length(result_sha256) = 32),
    outputs jsonb,
    cause text CHECK (cause IN ('client', 'worker', 'operator', 'chain')),
    code text,
    detail text,
    compute_ms bigint CHECK (compute_ms >= 0),   -- as the worker says; shown, never charged
    event_seq bigint NOT NULL DEFAULT 0,         -- the last event that the worker reported
    started_at timestamptz NOT NULL,
    ended_at timestamptz,
    CONSTRAINT attempts_once UNIQUE (replica_id, number)
);
CREATE INDEX attempts_job ON attempts (job_id);
CREATE INDEX attempts_worker ON attempts (worker_id, attempt_id);
-- What timed steps look through: leases to expire, reveals that are due.
CREATE INDEX attempts_open ON attempts (attempt_id) WHERE ended_at IS NULL;

-- What an attempt uploaded, and so may name as its checkpoint or output.
CREATE TABLE attempt_blobs (
    attempt_id uuid NOT NULL REFERENCES attempts,
    sha256 bytea NOT NULL REFERENCES blobs (sha256),
    PRIMARY KEY (attempt_id, sha256)
);

-- A checkpoint that a worker reached. Each segment of a replica counts once, for whoever ran it first.
CREATE TABLE segments (
    replica_id uuid NOT NULL REFERENCES replicas,
    segment integer NOT NULL CHECK (segment >= 0),
    attempt_id uuid NOT NULL REFERENCES attempts,
    step_from bigint NOT NULL CHECK (step_from >= 0),
    step_to bigint NOT NULL,
    checkpoint_sha256 bytea NOT NULL REFERENCES blobs (sha256),
    created_at timestamptz NOT NULL,
    PRIMARY KEY (replica_id, segment),
    CHECK (step_to > step_from)
);

-- Checkpoints that another owner could not go on from: neither resumed from nor paid for, kept as evidence.
CREATE TABLE segments_voided (
    voided_by uuid NOT NULL REFERENCES attempts,   -- the attempt that resumed from them and failed
    segment integer NOT NULL,
    replica_id uuid NOT NULL REFERENCES replicas,
    attempt_id uuid NOT NULL REFERENCES attempts,  -- the attempt that made it
    step_from bigint NOT NULL,
    step_to bigint NOT NULL,
    checkpoint_sha256 bytea NOT NULL REFERENCES blobs (sha256),
    created_at timestamptz NOT NULL,
    voided_at timestamptz NOT NULL,
    PRIMARY KEY (voided_by, segment)
);

CREATE TABLE job_outputs (
    job_id uuid NOT NULL REFERENCES jobs,
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 100),
    sha256 bytea NOT NULL REFERENCES blobs,
    PRIMARY KEY (job_id, name)
);

-- Jobs whose results are all shown and wait for their verdict.
CREATE TABLE verdicts_due (
    job_id uuid PRIMARY KEY REFERENCES jobs,
    due_at timestamptz NOT NULL
);

CREATE TABLE verdicts (
    job_id uuid PRIMARY KEY REFERENCES jobs,
    kind text NOT NULL CHECK (kind IN ('unverified', 'bitwise', 'tolerance', 'unstable')),
    evidence jsonb NOT NULL,
    evidence_sha256 bytea NOT NULL CHECK (octet_length(evidence_sha256) = 32),
    decided_at timestamptz NOT NULL
);

-- What a client sees happen, in order and without gaps.
CREATE TABLE job_events (
    job_id uuid NOT NULL REFERENCES jobs,
    seq bigint NOT NULL CHECK (seq >= 1),
    kind text NOT NULL,
    data jsonb NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (job_id, seq)
);

CREATE TRIGGER verdicts_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON verdicts
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER job_events_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON job_events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

GRANT SELECT ON quotes, jobs, replicas, queue, attempts, attempt_blobs, segments, segments_voided, job_outputs, verdicts, job_events TO comptoir_api, comptoir_scheduler;
GRANT SELECT ON jobs TO comptoir_settler;
GRANT INSERT ON quotes, jobs, replicas, queue, job_events TO comptoir_api;
GRANT UPDATE ON jobs, replicas TO comptoir_api;
GRANT UPDATE (state, ended_at) ON attempts TO comptoir_api;
GRANT UPDATE (priority), DELETE ON queue TO comptoir_api;   -- it updates nothing, but locks
GRANT INSERT ON replicas, queue, attempts, attempt_blobs, segments, segments_voided, job_outputs, verdicts, job_events TO comptoir_scheduler;
GRANT UPDATE ON jobs, replicas, queue, attempts TO comptoir_scheduler;
GRANT DELETE ON queue, segments TO comptoir_scheduler;
GRANT SELECT, INSERT, UPDATE, DELETE ON verdicts_due TO comptoir_scheduler;
