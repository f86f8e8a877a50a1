CREATE TABLE accounts (
    account_id uuid PRIMARY KEY,
    email text NOT NULL CHECK (email = lower(email) AND length(email) BETWEEN 3 AND 254),
    password_hash text NOT NULL,
    roles text[] NOT NULL DEFAULT '{user}'
        CHECK (roles <@ ARRAY['user', 'provider', 'platform'] AND cardinality(roles) BETWEEN 1 AND 3),
    address bytea CHECK (octet_length(address) = 20),   -- NULL: none bound yet
    address_bound_at timestamptz,
    -- Earnings are released on-chain at each seal without being asked for.
    auto_release boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL,
    CONSTRAINT accounts_email_once UNIQUE (email),
    CONSTRAINT accounts_address_once UNIQUE (address),
    CONSTRAINT accounts_binding_has_time CHECK ((address IS NULL) = (address_bound_at IS NULL))
);

CREATE TABLE address_challenges (
    challenge_id uuid PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES accounts,
    address bytea NOT NULL CHECK (octet_length(address) = 20),
    message text NOT NULL,
    expires_at timestamptz NOT NULL,
    used_at timestamptz
);

CREATE INDEX address_challenges_expiry ON address_challenges (expires_at);

CREATE TABLE refresh_tokens (
    refresh_token_id uuid PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES accounts,
    family_id uuid NOT NULL,             -- all that descend from one sign-in
    token_sha256 bytea NOT NULL CHECK (octet_length(token_sha256) = 32),
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    used_at timestamptz,
    revoked_at timestamptz,
    CONSTRAINT refresh_tokens_hash_once UNIQUE (token_sha256)
);
CREATE INDEX refresh_tokens_family ON refresh_tokens (family_id);
CREATE INDEX refresh_tokens_expiry ON refresh_tokens (expires_at);

CREATE TABLE api_keys (
    api_key_id uuid PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES accounts,
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 100),
    prefix text NOT NULL,                -- what is shown of the key
    key_hmac bytea NOT NULL CHECK (octet_length(key_hmac) = 32),
    scopes text[] NOT NULL CHECK (cardinality(scopes) BETWEEN 1 AND 32),
    created_at timestamptz NOT NULL,
    expires_at timestamptz,
    last_used_at timestamptz,
    revoked_at timestamptz,
    CONSTRAINT api_keys_hmac_once UNIQUE (key_hmac)
);
CREATE INDEX api_keys_account ON api_keys (account_id, api_key_id);

-- The reply of a money-moving request, written in the transaction of its effect.
CREATE TABLE idempotency_keys (
    account_id uuid NOT NULL REFERENCES accounts,
    method text NOT NULL,
    path text NOT NULL,
    key text NOT NULL CHECK (length(key) BETWEEN 1 AND 255),
    body_sha256 bytea NOT NULL CHECK (octet_length(body_sha256) = 32),
    status smallint NOT NULL,
    location text,
    body bytea NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (account_id, method, path, key)
);
CREATE INDEX idempotency_keys_expiry ON idempotency_keys (expires_at);

GRANT SELECT, INSERT, UPDATE ON accounts, address_challenges, refresh_tokens, api_keys TO comptoir_api;
GRANT SELECT, INSERT, DELETE ON idempotency_keys TO comptoir_api;
GRANT DELETE ON address_challenges, refresh_tokens TO comptoir_api; -- what has expired
GRANT SELECT ON accounts TO comptoir_scheduler, comptoir_settler;
GRANT UPDATE (roles) ON accounts TO comptoir_scheduler;
