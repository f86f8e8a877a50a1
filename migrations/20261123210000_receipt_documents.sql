-- What a sale or a reward gave, and what made it final: the documents whose digests are in the receipt's leaf. A job's result and verdict are kept with it.
-- Receipts that were written before have their digests alone.
ALTER TABLE receipts
    ADD COLUMN right_given jsonb,
    ADD COLUMN finality jsonb,
    ADD CONSTRAINT receipts_documents_of_no_job CHECK ((right_given IS NULL) = (finality IS NULL) AND (right_given IS NULL OR job_id IS NULL));
