-- The receipt of a window of calls has the window's identifier, so that each call can name it before it is written. Those that were written before
-- this keep theirs.
ALTER TABLE receipts ADD CONSTRAINT receipts_of_calls_named CHECK (kind <> 6 OR receipt_id = window_id) NOT VALID;
