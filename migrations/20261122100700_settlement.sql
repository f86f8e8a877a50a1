-- What was seen on the chain, what was sealed for it, and what was sent to it. Written by the settler alone.

-- One leader per asset. Each of its transactions share-locks the row and compares the epoch, so that a process that was
-- paused while another took over changes nothing.
CREATE TABLE settler_leases (
    asset_id integer PRIMARY KEY REFERENCES assets,
    epoch bigint NOT NULL CHECK (epoch >= 1),
    holder text NOT NULL,
    taken_at timestamptz NOT NULL
);

-- A contradiction between ledger and chain. While one is open nothing is sealed or sent; a person clears it.
CREATE TABLE settler_halts (
    halt_id uuid PRIMARY KEY,
    asset_id integer NOT NULL REFERENCES assets,
    reason text NOT NULL,
    detail text NOT NULL,
    halted_at timestamptz NOT NULL,
    cleared_at timestamptz
);
CREATE UNIQUE INDEX settler_halts_one_open ON settler_halts (asset_id) WHERE cleared_at IS NULL;

-- The newest blocks, by which a reorganisation is recognised and walked back.
CREATE TABLE chain_blocks (
    asset_id integer NOT NULL REFERENCES assets,
    number bigint NOT NULL CHECK (number >= 0),
    hash bytea NOT NULL CHECK (octet_length(hash) = 32),
    parent_hash bytea NOT NULL CHECK (octet_length(parent_hash) = 32),
    PRIMARY KEY (asset_id, number)
);

-- Every event of the contract. `event_seq` is dense, which proves that none was missed.
CREATE TABLE chain_events (
    asset_id integer NOT NULL REFERENCES assets,
    block_hash bytea NOT NULL CHECK (octet_length(block_hash) = 32),
    log_index bigint NOT NULL CHECK (log_index >= 0),
    block_number bigint NOT NULL,
    tx_hash bytea NOT NULL CHECK (octet_length(tx_hash) = 32),
    event_seq bigint NOT NULL CHECK (event_seq >= 1),
    kind text NOT NULL,
    payload jsonb NOT NULL,
    seen_at timestamptz NOT NULL,
    orphaned_at timestamptz,             -- its block left the chain
    PRIMARY KEY (asset_id, block_hash, log_index)
);
CREATE UNIQUE INDEX chain_events_seq_once ON chain_events (asset_id, event_seq) WHERE orphaned_at IS NULL;

CREATE TABLE chain_cursors (
    asset_id integer PRIMARY KEY REFERENCES assets,
    head_number bigint NOT NULL,
    head_hash bytea NOT NULL CHECK (octet_length(head_hash) = 32),
    head_event_seq bigint NOT NULL,
    final_number bigint NOT NULL,
    final_hash bytea NOT NULL CHECK (octet_length(final_hash) = 32),
    final_event_seq bigint NOT NULL,
    final_depth bigint CHECK (final_depth >= 0), -- NULL: the node says what is final
    updated_at timestamptz NOT NULL,
    CHECK (final_number <= head_number AND final_event_seq <= head_event_seq)
);

-- A deposit is shown when it is seen and credited when it is final. One that leaves the chain before is deleted.
CREATE TABLE deposits (
    deposit_id uuid PRIMARY KEY,
    asset_id integer NOT NULL REFERENCES assets,
    event_seq bigint NOT NULL,
    deposit_seq bigint NOT NULL,
    owner bytea NOT NULL CHECK (octet_length(owner) = 20),
    sender bytea NOT NULL CHECK (octet_length(sender) = 20),
    amount_base numeric(39, 0) NOT NULL CHECK (amount_base > 0),
    block_number bigint NOT NULL,
    tx_hash bytea NOT NULL CHECK (octet_length(tx_hash) = 32),
    seen_at timestamptz NOT NULL,
    credited_at timestamptz,
    CONSTRAINT deposits_event_once UNIQUE (asset_id, event_seq),
    CONSTRAINT deposits_seq_once UNIQUE (asset_id, deposit_seq)
);
CREATE INDEX deposits_owner ON deposits (asset_id, owner, deposit_id);
CREATE INDEX deposits_pending ON deposits (asset_id, event_seq) WHERE credited_at IS NULL;
-- The ledger has its entry: it neither goes away nor is it credited again.
CREATE TRIGGER deposits_credited_stay BEFORE UPDATE OR DELETE ON deposits FOR EACH ROW WHEN (OLD.credited_at IS NOT NULL)
    EXECUTE FUNCTION refuse_change();

-- What the contract paid out.
CREATE TABLE claims (
    asset_id integer NOT NULL REFERENCES assets,
    event_seq bigint NOT NULL,
    kind text NOT NULL CHECK (kind IN ('claimed', 'escaped')),
    owner bytea NOT NULL CHECK (octet_length(owner) = 20),
    batch_number bigint,                 -- NULL for an escape
    amount_base numeric(39, 0) NOT NULL CHECK (amount_base > 0),
    cumulative_base numeric(39, 0) NOT NULL,
    block_number bigint NOT NULL,
    tx_hash bytea NOT NULL CHECK (octet_length(tx_hash) = 32),
    seen_at timestamptz NOT NULL,
    PRIMARY KEY (asset_id, event_seq)
);
CREATE INDEX claims_owner ON claims (asset_id, owner, event_seq);

-- Who asked the contract to leave. Nothing is spent for an owner with an open exit.
CREATE TABLE exits (
    asset_id integer NOT NULL REFERENCES assets,
    event_seq bigint NOT NULL,
    owner bytea NOT NULL CHECK (octet_length(owner) = 20),
    block_number bigint NOT NULL,
    due_at timestamptz NOT NULL,
    seen_at timestamptz NOT NULL,
    answered_block_number bigint,
    PRIMARY KEY (asset_id, event_seq)
);
CREATE UNIQUE INDEX exits_open ON exits (asset_id, owner) WHERE answered_block_number IS NULL;

CREATE TABLE settlement_batches (
    batch_id uuid PRIMARY KEY,
    asset_id integer NOT NULL REFERENCES assets,
    number bigint NOT NULL CHECK (number >= 1),
    generation bigint NOT NULL CHECK (generation >= 0),
    state text NOT NULL CHECK (state IN ('sealed', 'signed', 'broadcast', 'mined', 'safe', 'anchored', 'claimable', 'cancelled', 'halted')),
    hash bytea NOT NULL CHECK (octet_length(hash) = 32),
    prev_hash bytea NOT NULL CHECK (octet_length(prev_hash) = 32),
    receipts_root bytea NOT NULL CHECK (octet_length(receipts_root) = 32),
    accounts_root bytea NOT NULL CHECK (octet_length(accounts_root) = 32),
    data_hash bytea NOT NULL CHECK (octet_length(data_hash) = 32),
    data_bytes bigint NOT NULL CHECK (data_bytes > 0),
    receipt_count bigint NOT NULL CHECK (receipt_count >= 0),
    account_count bigint NOT NULL CHECK (account_count >= 0),
    deposit_seq_seen bigint NOT NULL CHECK (deposit_seq_seen >= 0),
    total_payable_base numeric(39, 0) NOT NULL,
    total_available_base numeric(39, 0) NOT NULL,
    deposits_seen_base numeric(39, 0) NOT NULL,
    sealed_at timestamptz NOT NULL,
    active_at timestamptz,               -- as the contract says, once it holds the batch
    anchored_at timestamptz,
    CONSTRAINT settlement_batches_once UNIQUE (asset_id, number, generation),
    CONSTRAINT settlement_batches_hash_once UNIQUE (hash),
    CONSTRAINT settlement_batches_balance CHECK (total_payable_base + total_available_base = deposits_seen_base)
);
-- A number that was not cancelled has one batch.
CREATE UNIQUE INDEX settlement_batches_number_once ON settlement_batches (asset_id, number) WHERE state <> 'cancelled';

-- A receipt settles once, ever: its key is its own. The rows of a cancelled batch are deleted; its leaf file stays.
CREATE TABLE batch_items (
    receipt_id uuid PRIMARY KEY REFERENCES receipts,
    batch_id uuid NOT NULL REFERENCES settlement_batches,
    idx bigint NOT NULL CHECK (idx >= 0),
    leaf bytea NOT NULL CHECK (octet_length(leaf) = 32),
    CONSTRAINT batch_items_index_once UNIQUE (batch_id, idx)
);

-- The receipts that no standing batch has. A receipt enters in the transaction that makes it, so that no seal can miss one.
CREATE TABLE unbatched_receipts (
    receipt_id uuid PRIMARY KEY REFERENCES receipts,
    asset_id integer NOT NULL REFERENCES assets,
    gross_base numeric(39, 0) NOT NULL
);
CREATE FUNCTION queue_receipt() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
    INSERT INTO unbatched_receipts (receipt_id, asset_id, gross_base) VALUES (NEW.receipt_id, NEW.asset_id, NEW.gross_base);
    RETURN NULL;
END $$;
CREATE TRIGGER receipts_queue AFTER INSERT ON receipts FOR EACH ROW EXECUTE FUNCTION queue_receipt();

-- One transaction that we want on the chain. Its nonce is its own for ever; replacements keep nonce and calldata.
CREATE TABLE eth_intents (
    intent_id uuid PRIMARY KEY,
    asset_id integer NOT NULL REFERENCES assets,
    chain_id bigint NOT NULL,
    kind text NOT NULL CHECK (kind IN ('commit', 'answer_exit')),
    subject text NOT NULL,
    batch_id uuid REFERENCES settlement_batches,
    signer bytea NOT NULL CHECK (octet_length(signer) = 20),
    nonce bigint NOT NULL CHECK (nonce >= 0),
    target bytea NOT NULL CHECK (octet_length(target) = 20),
    calldata bytea NOT NULL,
    -- 'done': its effect is final. 'failed': its nonce was used without the effect, and that is final.
    state text NOT NULL CHECK (state IN ('open', 'done', 'failed')),
    created_at timestamptz NOT NULL,
    CONSTRAINT eth_intents_subject_once UNIQUE (kind, subject),
    CONSTRAINT eth_intents_nonce_once UNIQUE (chain_id, signer, nonce)
);
CREATE INDEX eth_intents_open ON eth_intents (asset_id, nonce) WHERE state = 'open';

-- The signed bytes are here before they are anywhere else.
CREATE TABLE eth_attempts (
    tx_hash bytea PRIMARY KEY CHECK (octet_length(tx_hash) = 32),
    intent_id uuid NOT NULL REFERENCES eth_intents,
    raw_tx bytea NOT NULL,
    gas_limit bigint NOT NULL,
    fee_cap_wei numeric(39, 0) NOT NULL,
    tip_wei numeric(39, 0) NOT NULL,
    created_at timestamptz NOT NULL,
    first_sent_block bigint,
    last_sent_block bigint,
    last_error text
);
CREATE INDEX eth_attempts_intent ON eth_attempts (intent_id, created_at);

GRANT SELECT, INSERT, UPDATE ON settler_leases, settler_halts, chain_cursors, eth_intents, eth_attempts, settlement_batches, chain_events,
    exits TO comptoir_settler;
GRANT SELECT, INSERT, UPDATE, DELETE ON chain_blocks, deposits TO comptoir_settler;
GRANT DELETE ON exits TO comptoir_settler;
GRANT SELECT, INSERT, DELETE ON claims, batch_items, unbatched_receipts TO comptoir_settler;
GRANT SELECT ON settler_halts, chain_cursors, deposits, claims, exits, settlement_batches, batch_items, eth_intents, eth_attempts TO comptoir_api;
GRANT SELECT ON exits TO comptoir_scheduler;
