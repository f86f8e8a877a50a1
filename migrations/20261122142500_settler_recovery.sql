-- What the settler needs to take back, to account for and to recover by.

-- The entries by which seals released money, and the batch that each came to: NULL until its batch is stored. A veto reverses
-- those of its batch, or the next batch would grow by them and by its own.
CREATE TABLE seal_entries (
    journal_entry_id uuid PRIMARY KEY REFERENCES journal_entries,
    asset_id integer NOT NULL REFERENCES assets,
    batch_id uuid REFERENCES settlement_batches,
    reversed_at timestamptz
);
CREATE INDEX seal_entries_batch ON seal_entries (batch_id) WHERE reversed_at IS NULL;
CREATE INDEX seal_entries_loose ON seal_entries (asset_id) WHERE batch_id IS NULL;

-- How much of each release such an entry moved.
CREATE TABLE seal_releases (
    journal_entry_id uuid NOT NULL REFERENCES seal_entries,
    release_id uuid NOT NULL REFERENCES releases,
    moved_base numeric(39, 0) NOT NULL CHECK (moved_base > 0),
    PRIMARY KEY (journal_entry_id, release_id)
);

-- A transaction may be wanted for its nonce alone: a gap in the stream of nonces holds up everything after it.
ALTER TABLE eth_intents DROP CONSTRAINT eth_intents_kind_check;
ALTER TABLE eth_intents ADD CONSTRAINT eth_intents_kind_check CHECK (kind IN ('commit', 'answer_exit', 'fill'));
ALTER TABLE eth_intents ADD COLUMN ended_at timestamptz;
-- What it cost, once that is final; NULL where nobody knows (its nonce was used by others).
ALTER TABLE eth_intents ADD COLUMN cost_wei numeric(39, 0) CHECK (cost_wei >= 0);
UPDATE eth_intents SET ended_at = created_at WHERE state <> 'open';
ALTER TABLE eth_intents ADD CONSTRAINT eth_intents_end_has_time CHECK ((state = 'open') = (ended_at IS NULL));
-- A self-transfer that takes the place of a call that nobody wants any more.
ALTER TABLE eth_attempts ADD COLUMN fills boolean NOT NULL DEFAULT false;

-- Where the settler's own nonces begin: those below were used by whoever had the key before, and a person accepted that.
CREATE TABLE settler_nonces (
    chain_id bigint NOT NULL,
    signer bytea NOT NULL CHECK (octet_length(signer) = 20),
    floor bigint NOT NULL CHECK (floor >= 0),
    PRIMARY KEY (chain_id, signer)
);

-- Up to which block every account was compared with the contract.
ALTER TABLE chain_cursors ADD COLUMN reconciled_number bigint NOT NULL DEFAULT 0;
CREATE INDEX deposits_block ON deposits (asset_id, block_number);
CREATE INDEX claims_block ON claims (asset_id, block_number);

GRANT SELECT, INSERT ON seal_releases, seal_entries TO comptoir_settler;
GRANT UPDATE (batch_id, reversed_at) ON seal_entries TO comptoir_settler;
GRANT SELECT, INSERT, UPDATE ON settler_nonces TO comptoir_settler;
-- A withdrawal that was taken back in part is as large as what it had released, once a veto gives that back.
GRANT UPDATE (amount_base) ON releases, holds TO comptoir_settler;
