-- Money that goes from one owner to another without being a charge has a leaf as well, or nobody outside could tell such a change of a
-- balance from a theft: what is given back, what a worker forfeits, what the house pays for audits, and dust that is handed out.
-- An entry enters in the statement that makes it, so that no seal can miss one.
CREATE TABLE unbatched_movements (
    journal_entry_id uuid PRIMARY KEY REFERENCES journal_entries,
    asset_id integer NOT NULL REFERENCES assets,
    -- The kind of its leaf. 64: refund, 65: forfeit, 66: pay for an audit, 67: dust of a split that was closed.
    kind smallint NOT NULL CHECK (kind BETWEEN 64 AND 67)
);

-- A movement is settled once, ever: its key is its own. Its place counts among the receipts of the batch.
CREATE TABLE batch_movements (
    journal_entry_id uuid PRIMARY KEY REFERENCES journal_entries,
    asset_id integer NOT NULL REFERENCES assets,
    kind smallint NOT NULL CHECK (kind BETWEEN 64 AND 67),
    batch_id uuid NOT NULL REFERENCES settlement_batches,
    idx bigint NOT NULL CHECK (idx >= 0),
    leaf bytea NOT NULL CHECK (octet_length(leaf) = 32),
    CONSTRAINT batch_movements_index_once UNIQUE (batch_id, idx)
);

CREATE FUNCTION movement_kind(kind text, source_kind text) RETURNS smallint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN source_kind = 'refund' THEN 64
        WHEN kind = 'forfeit' THEN 65
        WHEN kind = 'audit_pay' THEN 66
        WHEN kind = 'split_close' THEN 67
    END::smallint
$$;

CREATE FUNCTION queue_movement() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
    INSERT INTO unbatched_movements (journal_entry_id, asset_id, kind)
    VALUES (NEW.journal_entry_id, NEW.asset_id, movement_kind(NEW.kind, NEW.source_kind));
    RETURN NULL;
END $$;
-- By row, and only for the rare kinds: charges and holds do not pay for it.
CREATE TRIGGER journal_entries_movement AFTER INSERT ON journal_entries FOR EACH ROW
    WHEN (NEW.kind IN ('forfeit', 'audit_pay', 'split_close') OR NEW.source_kind = 'refund') EXECUTE FUNCTION queue_movement();

INSERT INTO unbatched_movements (journal_entry_id, asset_id, kind)
SELECT journal_entry_id, asset_id, movement_kind(kind, source_kind) FROM journal_entries
WHERE movement_kind(kind, source_kind) IS NOT NULL;

GRANT SELECT, INSERT, DELETE ON unbatched_movements, batch_movements TO comptoir_settler;
GRANT SELECT ON batch_movements TO comptoir_api;
