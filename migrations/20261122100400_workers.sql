CREATE TABLE join_tokens (
    join_token_id uuid PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES accounts,
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 100),
    secret_sha256 bytea NOT NULL CHECK (octet_length(secret_sha256) = 32),
    max_uses integer NOT NULL CHECK (max_uses BETWEEN 1 AND 1000),
    uses integer NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    revoked_at timestamptz,
    CONSTRAINT join_tokens_not_overused CHECK (uses BETWEEN 0 AND max_uses)
);
CREATE INDEX join_tokens_account ON join_tokens (account_id, join_token_id);

CREATE TABLE workers (
    worker_id uuid PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES accounts,
    join_token_id uuid NOT NULL REFERENCES join_tokens,
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 100),
    public_key bytea NOT NULL CHECK (octet_length(public_key) = 32),   -- Ed25519
    device text NOT NULL CHECK (device IN ('cpu', 'cuda')),
    device_name text NOT NULL,
    memory_bytes bigint NOT NULL CHECK (memory_bytes > 0),
    threads integer NOT NULL CHECK (threads BETWEEN 1 AND 1024),       -- per job; part of the numeric class
    numeric_class text NOT NULL CHECK (length(numeric_class) BETWEEN 1 AND 100),
    libtorch text NOT NULL,
    version text NOT NULL,
    price_floor_nano numeric(39, 0) NOT NULL DEFAULT 0 CHECK (price_floor_nano >= 0),
    token_issued_at bigint NOT NULL DEFAULT 0,   -- unix milliseconds named by the last accepted token request
    joined_at timestamptz NOT NULL,
    revoked_at timestamptz,
    CONSTRAINT workers_key_once UNIQUE (public_key)
);
CREATE INDEX workers_account ON workers (account_id, worker_id);

-- Written at every exchange; a table of its own, so that it stays small and its updates HOT.
CREATE TABLE worker_heartbeats (
    worker_id uuid PRIMARY KEY REFERENCES workers,
    seen_at timestamptz NOT NULL
) WITH (fillfactor = 50);

GRANT SELECT, INSERT, UPDATE ON join_tokens TO comptoir_api;
GRANT SELECT ON join_tokens TO comptoir_scheduler;
GRANT UPDATE (uses) ON join_tokens TO comptoir_scheduler;
GRANT SELECT, INSERT ON workers TO comptoir_scheduler;
GRANT UPDATE ON workers TO comptoir_scheduler;
GRANT SELECT ON workers, worker_heartbeats TO comptoir_api;
GRANT UPDATE (revoked_at) ON workers TO comptoir_api;
GRANT SELECT, INSERT, UPDATE ON worker_heartbeats TO comptoir_scheduler;
