-- Models that are called: their cards, versions that never change, and prices by number.
CREATE TABLE models (
    model_id uuid PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES accounts,
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 64),
    title text NOT NULL CHECK (length(title) BETWEEN 1 AND 200),
    description text NOT NULL CHECK (octet_length(description) <= 65536), -- Markdown, by a stranger: never rendered here
    licence text NOT NULL CHECK (length(licence) BETWEEN 1 AND 200),      -- an SPDX expression
    provenance text NOT NULL CHECK (octet_length(provenance) <= 16384),
    tags text[] NOT NULL CHECK (cardinality(tags) <= 20),
    visibility text NOT NULL CHECK (visibility IN ('private', 'unlisted', 'public')),
    shown_at timestamptz,                                                 -- when others could call it first
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    CONSTRAINT models_shown CHECK (visibility = 'private' OR shown_at IS NOT NULL),
    CONSTRAINT models_name_once UNIQUE (account_id, name)
);
CREATE INDEX models_account ON models (account_id, model_id);
CREATE INDEX models_public ON models (model_id) WHERE visibility = 'public';

CREATE TABLE model_versions (
    version_id uuid PRIMARY KEY,
    model_id uuid NOT NULL REFERENCES models,
    account_id uuid NOT NULL REFERENCES accounts,
    number integer NOT NULL CHECK (number >= 1),
    manifest jsonb NOT NULL,                                              -- programs, weights and labels, by their digests
    manifest_sha256 bytea NOT NULL CHECK (octet_length(manifest_sha256) = 32),
    job_id uuid REFERENCES jobs,                                          -- that trained it; NULL: it was put together from blobs
    licence text NOT NULL CHECK (length(licence) BETWEEN 1 AND 200),      -- the model's when this was published
    notes text NOT NULL CHECK (octet_length(notes) <= 16384),
    created_at timestamptz NOT NULL,
    deprecation text CHECK (length(deprecation) BETWEEN 1 AND 1000),      -- NULL: not deprecated
    retires_at timestamptz,                                               -- from then on it is not called any more
    CONSTRAINT model_versions_number_once UNIQUE (model_id, number),
    CONSTRAINT model_versions_manifest_once UNIQUE (model_id, manifest_sha256),
    CONSTRAINT model_versions_retirement_says_why CHECK (retires_at IS NULL OR deprecation IS NOT NULL)
);

-- What a version is stays; only whether it is recommended changes, and a retirement that was announced is taken back or put off, never brought forward.
CREATE FUNCTION keep_model_versions() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (to_jsonb(OLD) - '{deprecation,retires_at}'::text[]) IS DISTINCT FROM (to_jsonb(NEW) - '{deprecation,retires_at}'::text[]) THEN
        RAISE EXCEPTION 'a version of a model does not change' USING ERRCODE = 'restrict_violation', CONSTRAINT = 'model_versions_stay';
    END IF;
    IF NEW.retires_at < OLD.retires_at THEN
        RAISE EXCEPTION 'a retirement is not brought forward' USING ERRCODE = 'restrict_violation', CONSTRAINT = 'model_versions_retire_later';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER model_versions_stay BEFORE UPDATE ON model_versions FOR EACH ROW EXECUTE FUNCTION keep_model_versions();
CREATE TRIGGER model_versions_kept BEFORE DELETE OR TRUNCATE ON model_versions FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Prices by number, all in nano base units; the newest that is in effect counts. Who shares a charge is part of it.
CREATE TABLE model_prices (
    model_id uuid NOT NULL REFERENCES models,
    number integer NOT NULL CHECK (number >= 1),
    asset_id integer NOT NULL REFERENCES assets,
    call_nano numeric(39, 0) NOT NULL CHECK (call_nano >= 0),
    row_nano numeric(39, 0) NOT NULL CHECK (row_nano >= 0),
    input_token_nano numeric(39, 0) NOT NULL CHECK (input_token_nano >= 0),
    output_token_nano numeric(39, 0) NOT NULL CHECK (output_token_nano >= 0),
    giga_madds_nano numeric(39, 0) NOT NULL CHECK (giga_madds_nano >= 0), -- of 10^9 multiply-adds
    free_calls_per_day bigint NOT NULL CHECK (free_calls_per_day BETWEEN 0 AND 4294967295),
    platform_ppm integer NOT NULL CHECK (platform_ppm BETWEEN 0 AND 200000),
    worker_ppm integer NOT NULL CHECK (worker_ppm BETWEEN 50000 AND 700000),
    payees bytea[] NOT NULL CHECK (cardinality(payees) BETWEEN 1 AND 100), -- addresses that share the rest,
    weights bigint[] NOT NULL CHECK (0 < ALL (weights)),                  -- by these
    effective_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (model_id, number),
    CONSTRAINT model_prices_payees_have_weights CHECK (cardinality(payees) = cardinality(weights))
);
CREATE TRIGGER model_prices_stay BEFORE UPDATE OR DELETE OR TRUNCATE ON model_prices FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

GRANT SELECT, INSERT, UPDATE (title, description, licence, provenance, tags, visibility, shown_at, updated_at) ON models TO comptoir_api;
GRANT SELECT, INSERT, UPDATE (deprecation, retires_at) ON model_versions TO comptoir_api;
GRANT SELECT, INSERT ON model_prices TO comptoir_api;
GRANT SELECT ON models, model_versions, model_prices TO comptoir_scheduler, comptoir_admin;

CALL wall('models', 'sees_account(account_id)');
CALL wall('model_versions', 'sees_account(account_id)');
CALL wall('model_prices', 'CASE WHEN (SELECT sees_all()) THEN true
    ELSE EXISTS (SELECT FROM models m WHERE m.model_id = model_prices.model_id AND sees_account(m.account_id) OFFSET 0) END');
-- What is not private may be looked at by everybody who knows of it. What is in its blobs is another matter.
CREATE POLICY listed ON models FOR SELECT TO comptoir_api USING (visibility <> 'private');
CREATE POLICY listed ON model_versions FOR SELECT TO comptoir_api USING (
    EXISTS (SELECT FROM models m WHERE m.model_id = model_versions.model_id AND m.visibility <> 'private' OFFSET 0));
CREATE POLICY listed ON model_prices FOR SELECT TO comptoir_api USING (
    EXISTS (SELECT FROM models m WHERE m.model_id = model_prices.model_id AND m.visibility <> 'private' OFFSET 0));
