-- Datasets, their versions and the files of these. A version is a draft until it is published, and never changes afterwards.

-- What the data keys of a seller's versions are wrapped with; itself wrapped with a root key that is not in the database.
CREATE TABLE tenant_keys (
    account_id uuid PRIMARY KEY REFERENCES accounts,
    root_key text NOT NULL,
    wrapped bytea NOT NULL CHECK (octet_length(wrapped) = 60),
    created_at timestamptz NOT NULL
);

CREATE TABLE datasets (
    dataset_id uuid PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES accounts,
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 64),
    title text NOT NULL CHECK (length(title) BETWEEN 1 AND 200),
    description text NOT NULL CHECK (octet_length(description) <= 65536), -- Markdown, by a stranger: never rendered here
    licence text NOT NULL CHECK (length(licence) BETWEEN 1 AND 200),      -- an SPDX expression
    provenance text NOT NULL CHECK (octet_length(provenance) <= 16384),
    tags text[] NOT NULL CHECK (cardinality(tags) <= 20),
    state text NOT NULL CHECK (state IN ('draft', 'listed', 'withdrawn')),
    deprecation text CHECK (length(deprecation) BETWEEN 1 AND 1000),      -- NULL: not deprecated
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    CONSTRAINT datasets_name_once UNIQUE (account_id, name)
);
CREATE INDEX datasets_account ON datasets (account_id, dataset_id);

CREATE TABLE dataset_versions (
    version_id uuid PRIMARY KEY,
    dataset_id uuid NOT NULL REFERENCES datasets,
    account_id uuid NOT NULL REFERENCES accounts,
    number integer CHECK (number >= 1),                                   -- given when it is ready
    state text NOT NULL CHECK (state IN ('draft', 'checking', 'ready', 'refused', 'shredded')),
    notes text NOT NULL CHECK (octet_length(notes) <= 16384),
    licence text CHECK (length(licence) BETWEEN 1 AND 200),               -- the dataset's when this was submitted
    wrapped_key bytea CHECK (octet_length(wrapped_key) = 60),             -- NULL: shredded, and nobody reads its files again
    manifest_root bytea CHECK (octet_length(manifest_root) = 32),
    files integer NOT NULL DEFAULT 0 CHECK (files BETWEEN 0 AND 10000),
    bytes bigint NOT NULL DEFAULT 0 CHECK (bytes >= 0),
    refusals jsonb,                                                       -- why it was refused, file by file
    check_token uuid,                                                     -- who checks it now,
    check_until timestamptz,                                              -- and until when, by the database's clock
    created_at timestamptz NOT NULL,
    submitted_at timestamptz,
    published_at timestamptz,
    shredded_at timestamptz,
    objects_removed_at timestamptz,                                       -- what was encrypted with the key is gone too
    CONSTRAINT dataset_versions_number_once UNIQUE (dataset_id, number),
    CONSTRAINT dataset_versions_key_fits_state CHECK ((wrapped_key IS NULL) = (state = 'shredded')),
    CONSTRAINT dataset_versions_shredded CHECK ((shredded_at IS NOT NULL) = (state = 'shredded')),
    CONSTRAINT dataset_versions_published CHECK ((number IS NOT NULL) = (manifest_root IS NOT NULL)
        AND (number IS NOT NULL) = (published_at IS NOT NULL) AND (state <> 'ready' OR number IS NOT NULL)),
    CONSTRAINT dataset_versions_refusals_say_why CHECK (state <> 'refused' OR refusals IS NOT NULL),
    CONSTRAINT dataset_versions_check_fits_state CHECK ((check_token IS NULL) = (check_until IS NULL) AND (check_token IS NULL OR state = 'checking'))
);
CREATE INDEX dataset_versions_dataset ON dataset_versions (dataset_id, version_id);
CREATE INDEX dataset_versions_stored ON dataset_versions (account_id) INCLUDE (bytes) WHERE state <> 'shredded';
CREATE INDEX dataset_versions_checking ON dataset_versions (submitted_at) WHERE state = 'checking';
CREATE INDEX dataset_versions_unpublished ON dataset_versions (created_at) WHERE state IN ('draft', 'refused');
CREATE INDEX dataset_versions_to_remove ON dataset_versions (shredded_at) WHERE state = 'shredded' AND objects_removed_at IS NULL;

CREATE TABLE dataset_files (
    file_id uuid PRIMARY KEY,
    version_id uuid NOT NULL REFERENCES dataset_versions,
    path text NOT NULL CHECK (octet_length(path) BETWEEN 1 AND 512),
    path_folded text NOT NULL,                                            -- the same for paths that differ in case alone
    format text NOT NULL CHECK (format IN ('safetensors', 'csv', 'parquet', 'json_lines', 'other')),
    bytes bigint NOT NULL CHECK (bytes > 0),
    sha256 bytea NOT NULL CHECK (octet_length(sha256) = 32),              -- as announced; checked before the version is ready
    part_bytes integer NOT NULL CHECK (part_bytes > 0 AND part_bytes % 65536 = 0),
    is_sample boolean NOT NULL,                                           -- shown to everybody
    facts jsonb,                                                          -- columns and rows, found by reading it
    created_at timestamptz NOT NULL,
    CONSTRAINT dataset_files_path_once UNIQUE (version_id, path_folded)
);
CREATE INDEX dataset_files_version ON dataset_files (version_id, file_id);

-- A sealed part of a file that is in the object store, whole.
CREATE TABLE dataset_parts (
    file_id uuid NOT NULL REFERENCES dataset_files ON DELETE CASCADE,
    part integer NOT NULL CHECK (part >= 0),
    salt bytea NOT NULL CHECK (octet_length(salt) = 16),
    stored_at timestamptz NOT NULL,
    PRIMARY KEY (file_id, part)
);

-- A version goes from draft over checking to ready or refused, and from each but checking to shredded. What it is stays as it is once it is no draft.
CREATE FUNCTION keep_dataset_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.state <> OLD.state AND (OLD.state, NEW.state) NOT IN (
        ('draft', 'checking'), ('checking', 'ready'), ('checking', 'refused'),
        ('draft', 'shredded'), ('ready', 'shredded'), ('refused', 'shredded')) THEN
        RAISE EXCEPTION 'a % version does not become %', OLD.state, NEW.state
            USING ERRCODE = 'restrict_violation', CONSTRAINT = 'dataset_versions_states';
    END IF;
    IF (OLD.version_id, OLD.dataset_id, OLD.account_id, OLD.created_at) IS DISTINCT FROM (NEW.version_id, NEW.dataset_id, NEW.account_id, NEW.created_at)
        OR (NEW.wrapped_key IS DISTINCT FROM OLD.wrapped_key AND NEW.state <> 'shredded')
        OR (OLD.state <> 'draft' AND (OLD.notes, OLD.files, OLD.bytes, OLD.submitted_at, OLD.licence) IS DISTINCT FROM (NEW.notes, NEW.files, NEW.bytes, NEW.submitted_at, NEW.licence))
        OR (OLD.state NOT IN ('draft', 'checking') AND (OLD.number, OLD.manifest_root, OLD.refusals, OLD.published_at) IS DISTINCT FROM (NEW.number, NEW.manifest_root, NEW.refusals, NEW.published_at)) THEN
        RAISE EXCEPTION 'a version does not change' USING ERRCODE = 'restrict_violation', CONSTRAINT = 'dataset_versions_stay';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER dataset_versions_stay BEFORE UPDATE ON dataset_versions FOR EACH ROW EXECUTE FUNCTION keep_dataset_version();
CREATE TRIGGER dataset_versions_kept BEFORE DELETE OR TRUNCATE ON dataset_versions FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Files come and go while their version is a draft; what is found in them is written while it is checked.
CREATE FUNCTION keep_dataset_files() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    version text;
BEGIN
    SELECT state INTO version FROM dataset_versions WHERE version_id = coalesce(NEW.version_id, OLD.version_id);
    IF TG_OP = 'UPDATE' AND version = 'checking' AND (OLD.file_id, OLD.version_id, OLD.path, OLD.path_folded, OLD.format, OLD.bytes, OLD.sha256, OLD.part_bytes,
        OLD.is_sample, OLD.created_at) IS NOT DISTINCT FROM (NEW.file_id, NEW.version_id, NEW.path, NEW.path_folded, NEW.format, NEW.bytes, NEW.sha256, NEW.part_bytes,
        NEW.is_sample, NEW.created_at) THEN
        RETURN NEW;
    END IF;
    IF TG_OP = 'UPDATE' OR version IS DISTINCT FROM 'draft' THEN
        RAISE EXCEPTION 'the files of a version do not change' USING ERRCODE = 'restrict_violation', CONSTRAINT = 'dataset_files_stay';
    END IF;
    RETURN coalesce(NEW, OLD);
END $$;
CREATE TRIGGER dataset_files_stay BEFORE INSERT OR UPDATE OR DELETE ON dataset_files FOR EACH ROW EXECUTE FUNCTION keep_dataset_files();
CREATE TRIGGER dataset_files_kept BEFORE TRUNCATE ON dataset_files FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Where a part is changes while its version is a draft; parts of what was shredded are forgotten. (A part whose file goes finds no version.)
CREATE FUNCTION keep_dataset_parts() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    version text;
BEGIN
    SELECT state INTO version FROM dataset_files JOIN dataset_versions USING (version_id) WHERE file_id = coalesce(NEW.file_id, OLD.file_id);
    IF version = 'draft' OR (TG_OP = 'DELETE' AND coalesce(version, 'shredded') = 'shredded') THEN
        RETURN coalesce(NEW, OLD);
    END IF;
    RAISE EXCEPTION 'the parts of a version do not change' USING ERRCODE = 'restrict_violation', CONSTRAINT = 'dataset_parts_stay';
END $$;
CREATE TRIGGER dataset_parts_stay BEFORE INSERT OR UPDATE OR DELETE ON dataset_parts FOR EACH ROW EXECUTE FUNCTION keep_dataset_parts();
CREATE TRIGGER dataset_parts_kept BEFORE TRUNCATE ON dataset_parts FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Bytes that count towards an account's limit: blobs that it may read, and files of its versions that are not shredded.
CREATE FUNCTION stored_bytes(account uuid) RETURNS bigint LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT ((SELECT coalesce(sum(bytes), 0) FROM blob_owners JOIN blobs USING (sha256) WHERE account_id = account)
        + (SELECT coalesce(sum(bytes), 0) FROM dataset_versions WHERE account_id = account AND state <> 'shredded'))::bigint
$$;

GRANT SELECT, INSERT, UPDATE (root_key, wrapped) ON tenant_keys TO comptoir_api;
GRANT SELECT, INSERT, UPDATE (title, description, licence, provenance, tags, state, deprecation, updated_at) ON datasets TO comptoir_api;
GRANT SELECT, INSERT, UPDATE (state, number, licence, wrapped_key, manifest_root, files, bytes, refusals, check_token, check_until, submitted_at, published_at,
    shredded_at, objects_removed_at) ON dataset_versions TO comptoir_api;
GRANT SELECT, INSERT, UPDATE (facts), DELETE ON dataset_files TO comptoir_api;
GRANT SELECT, INSERT, UPDATE (salt, stored_at), DELETE ON dataset_parts TO comptoir_api;
GRANT SELECT ON dataset_versions TO comptoir_admin;

CALL wall('tenant_keys', 'sees_account(account_id)');
CALL wall('datasets', 'sees_account(account_id)');
CALL wall('dataset_versions', 'sees_account(account_id)');
CALL wall('dataset_files', 'CASE WHEN (SELECT sees_all()) THEN true
    ELSE EXISTS (SELECT FROM dataset_versions AS v WHERE v.version_id = dataset_files.version_id AND sees_account(v.account_id)) END');
CALL wall('dataset_parts', 'CASE WHEN (SELECT sees_all()) THEN true
    ELSE EXISTS (SELECT FROM dataset_files AS f JOIN dataset_versions AS v USING (version_id) WHERE f.file_id = dataset_parts.file_id AND sees_account(v.account_id)) END');
-- What is listed may be looked at by everybody who signed in: cards, and what ready versions have in them. Bytes are another matter.
CREATE POLICY listed ON datasets FOR SELECT TO comptoir_api USING (state = 'listed');
CREATE POLICY listed ON dataset_versions FOR SELECT TO comptoir_api USING (
    state = 'ready' AND EXISTS (SELECT FROM datasets AS d WHERE d.dataset_id = dataset_versions.dataset_id AND d.state = 'listed'));
CREATE POLICY listed ON dataset_files FOR SELECT TO comptoir_api USING (
    EXISTS (SELECT FROM dataset_versions AS v WHERE v.version_id = dataset_files.version_id AND v.state = 'ready'));
