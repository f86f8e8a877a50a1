-- What touched somebody's security, in a chain of hashes. An event is the canonical JSON of what it says; the database
-- numbers and links it, so that no service chooses its place or its hash, and the chain goes on with
-- sha256(head || number || text). The head goes into the leaf file of each batch.
CREATE TABLE audit_events (
    seq bigint PRIMARY KEY CHECK (seq >= 1),
    body text NOT NULL CHECK (octet_length(body) <= 8192),
    account_id uuid REFERENCES accounts, -- whom it concerns
    hash bytea NOT NULL CHECK (octet_length(hash) = 32),
    action text NOT NULL GENERATED ALWAYS AS (body::jsonb ->> 'action') STORED,
    subject text NOT NULL GENERATED ALWAYS AS (body::jsonb ->> 'subject') STORED,
    CONSTRAINT audit_events_hash_once UNIQUE (hash)
);
CREATE INDEX audit_events_account ON audit_events (account_id, seq) WHERE account_id IS NOT NULL;
CREATE INDEX audit_events_subject ON audit_events (subject, seq);

-- One row: the end of the chain. Whoever appends holds it until its commit.
CREATE TABLE audit_head (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    seq bigint NOT NULL CHECK (seq >= 0),
    hash bytea NOT NULL CHECK (octet_length(hash) = 32)
) WITH (fillfactor = 50);
INSERT INTO audit_head (seq, hash) VALUES (0, decode(repeat('00', 32), 'hex'));

CREATE FUNCTION link_audit_event() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
    UPDATE audit_head SET seq = seq + 1, hash = sha256(hash || int8send(seq + 1) || convert_to(NEW.body, 'UTF8'))
    RETURNING seq, hash INTO STRICT NEW.seq, NEW.hash;
    RETURN NEW;
END $$;
CREATE TRIGGER audit_events_linked BEFORE INSERT ON audit_events FOR EACH ROW EXECUTE FUNCTION link_audit_event();
CREATE TRIGGER audit_events_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER audit_head_stays BEFORE DELETE OR TRUNCATE ON audit_head FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

GRANT INSERT (body, account_id) ON audit_events TO comptoir_api, comptoir_scheduler, comptoir_settler;
GRANT SELECT (seq, hash) ON audit_events TO comptoir_scheduler, comptoir_settler;
GRANT SELECT ON audit_events TO comptoir_api;
GRANT SELECT ON audit_head TO comptoir_api, comptoir_scheduler, comptoir_settler;
