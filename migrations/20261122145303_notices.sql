-- Messages to owners of accounts: written in the transaction of their cause, sent by a step of the api service.
CREATE TABLE notices (
    notice_id uuid PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES accounts,
    recipient text NOT NULL CHECK (length(recipient) BETWEEN 3 AND 254),   -- as it was then: a thief may have changed it since
    kind text NOT NULL CHECK (length(kind) BETWEEN 1 AND 50),
    facts jsonb NOT NULL,
    secret bytea,                        -- sealed with the service's pepper; gone once it is sent
    created_at timestamptz NOT NULL,
    attempts smallint NOT NULL DEFAULT 0,
    next_attempt_at timestamptz NOT NULL,
    sent_at timestamptz,
    given_up_at timestamptz,
    CONSTRAINT notices_end_once CHECK (sent_at IS NULL OR given_up_at IS NULL),
    CONSTRAINT notices_secret_ends CHECK (secret IS NULL OR (sent_at IS NULL AND given_up_at IS NULL))
);
CREATE INDEX notices_due ON notices (next_attempt_at) WHERE sent_at IS NULL AND given_up_at IS NULL;
CREATE INDEX notices_ended ON notices (coalesce(sent_at, given_up_at)) WHERE sent_at IS NOT NULL OR given_up_at IS NOT NULL;

-- Somebody asked to replace the password of the account with this e-mail address, if there is one. What is asked for an
-- unknown address is written too, so that both take as long.
CREATE TABLE password_reset_requests (
    email text PRIMARY KEY CHECK (email = lower(email) AND length(email) BETWEEN 3 AND 254),
    requested_at timestamptz NOT NULL
);

CREATE TABLE password_resets (
    token_sha256 bytea PRIMARY KEY CHECK (octet_length(token_sha256) = 32),
    account_id uuid NOT NULL REFERENCES accounts,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    CONSTRAINT password_resets_one_each UNIQUE (account_id)
);
CREATE INDEX password_resets_expiry ON password_resets (expires_at);

-- An account that is paid at one address and asked to be paid at another: it waits, so that its owner can take it back.
CREATE TABLE address_changes (
    address_change_id uuid PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES accounts,
    old_address bytea NOT NULL CHECK (octet_length(old_address) = 20),
    new_address bytea NOT NULL CHECK (octet_length(new_address) = 20),
    requested_at timestamptz NOT NULL,
    effective_at timestamptz NOT NULL,
    state text NOT NULL CHECK (state IN ('pending', 'applied', 'cancelled', 'refused')),
    ended_at timestamptz,
    CONSTRAINT address_changes_differ CHECK (old_address <> new_address),
    CONSTRAINT address_changes_wait CHECK (effective_at >= requested_at + interval '24 hours'),
    CONSTRAINT address_changes_end_has_time CHECK ((state = 'pending') = (ended_at IS NULL)),
    CONSTRAINT address_changes_apply_after CHECK (state <> 'applied' OR ended_at >= effective_at)
);
CREATE UNIQUE INDEX address_changes_one_pending ON address_changes (account_id) WHERE state = 'pending';
CREATE INDEX address_changes_due ON address_changes (effective_at) WHERE state = 'pending';
CREATE INDEX address_changes_applied ON address_changes (ended_at) WHERE state = 'applied';

-- A bound address changes by a change whose time has come, and in no other way, whoever may update the table.
CREATE FUNCTION guard_address() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM address_changes
        WHERE account_id = NEW.account_id AND state = 'applied' AND old_address = OLD.address AND new_address = NEW.address
            AND ended_at = NEW.address_bound_at
    ) THEN
        RAISE EXCEPTION 'the address of account % is not changed by an address change', NEW.account_id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'accounts_address_guarded';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER accounts_address_guarded BEFORE UPDATE OF address ON accounts FOR EACH ROW
    WHEN (OLD.address IS NOT NULL AND NEW.address IS DISTINCT FROM OLD.address) EXECUTE FUNCTION guard_address();

-- What a wallet signs to sign in (EIP-4361): each is good once.
CREATE TABLE siwe_nonces (
    nonce_sha256 bytea PRIMARY KEY CHECK (octet_length(nonce_sha256) = 32),
    expires_at timestamptz NOT NULL
);
CREATE INDEX siwe_nonces_expiry ON siwe_nonces (expires_at);

GRANT SELECT, INSERT, UPDATE, DELETE ON notices TO comptoir_api;
GRANT SELECT, INSERT, DELETE ON siwe_nonces TO comptoir_api;
GRANT SELECT, INSERT, UPDATE, DELETE ON password_reset_requests, password_resets TO comptoir_api;
GRANT SELECT, INSERT, UPDATE (state, ended_at) ON address_changes TO comptoir_api;
