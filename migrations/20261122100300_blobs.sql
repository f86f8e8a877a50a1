-- Content-addressed bytes in the object store. A row means that the bytes are there, whole and checked.
CREATE TABLE blobs (
    sha256 bytea PRIMARY KEY CHECK (octet_length(sha256) = 32),
    bytes bigint NOT NULL CHECK (bytes >= 0),
    created_at timestamptz NOT NULL
);

-- Who may read a blob: whoever uploaded it or received it as a result.
CREATE TABLE blob_owners (
    account_id uuid NOT NULL REFERENCES accounts,
    sha256 bytea NOT NULL REFERENCES blobs,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (account_id, sha256)
);

-- What a `.pt2` blob was found to be: the facts that a price needs, by the version of the rules that read it.
CREATE TABLE programs (
    sha256 bytea NOT NULL REFERENCES blobs,
    facts_version integer NOT NULL,
    facts jsonb NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (sha256, facts_version)
);

GRANT SELECT, INSERT ON blobs, blob_owners TO comptoir_api, comptoir_scheduler;
GRANT SELECT, INSERT ON programs TO comptoir_api;
GRANT SELECT ON programs TO comptoir_scheduler;
