-- Where a worker asked for its last token from, as a block of addresses: trust that was earned out of another one does not count.
ALTER TABLE workers ADD COLUMN network text CHECK (length(network) BETWEEN 1 AND 64);
ALTER TABLE worker_records ADD COLUMN network text CHECK (length(network) BETWEEN 1 AND 64);
-- Whom a program is refused to verify for: what classes of workers could not agree about, without whose jobs it was.
GRANT SELECT (program_sha256, numeric_class, marked_at) ON unstable_classes TO comptoir_api;
