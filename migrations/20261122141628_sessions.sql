-- Somebody who signed in, until it ends. Access tokens and refresh tokens name their session, and end with it.
CREATE TABLE sessions (
    session_id uuid PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES accounts,
    method text NOT NULL CHECK (method IN ('password', 'siwe')),
    cookie_sha256 bytea CHECK (octet_length(cookie_sha256) = 32),   -- NULL: it has refresh tokens instead
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    ended_at timestamptz,
    end_reason text CHECK (end_reason IN ('logout', 'token_reused', 'password_reset', 'operator')),
    CONSTRAINT sessions_cookie_once UNIQUE (cookie_sha256),
    CONSTRAINT sessions_end_has_reason CHECK ((ended_at IS NULL) = (end_reason IS NULL))
);
CREATE INDEX sessions_account ON sessions (account_id) WHERE ended_at IS NULL;
CREATE INDEX sessions_expiry ON sessions (expires_at);

INSERT INTO sessions (session_id, account_id, method, created_at, expires_at, ended_at, end_reason)
SELECT family_id, account_id, 'password', min(created_at), max(expires_at), max(revoked_at),
    CASE WHEN max(revoked_at) IS NOT NULL THEN 'logout' END
FROM refresh_tokens GROUP BY family_id, account_id;

-- A family of refresh tokens is a session; that one says when it ended.
ALTER TABLE refresh_tokens
    ADD CONSTRAINT refresh_tokens_session FOREIGN KEY (family_id) REFERENCES sessions ON DELETE CASCADE,
    DROP COLUMN revoked_at;

-- An account has an e-mail address and a password, or a wallet that signs in, or both.
ALTER TABLE accounts
    ALTER COLUMN email DROP NOT NULL,
    ALTER COLUMN password_hash DROP NOT NULL,
    ADD CONSTRAINT accounts_password_needs_email CHECK ((email IS NULL) = (password_hash IS NULL)),
    ADD CONSTRAINT accounts_can_sign_in CHECK (email IS NOT NULL OR address IS NOT NULL);

GRANT SELECT, INSERT, UPDATE, DELETE ON sessions TO comptoir_api;
