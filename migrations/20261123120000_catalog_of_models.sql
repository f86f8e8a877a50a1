-- Models are found beside datasets. What is listed is written anew from what it lists, with all that a row shows: nothing of a search looks behind
-- a wall.
DROP TABLE catalog_prices, catalog;
CREATE TABLE catalog (
    item_id uuid PRIMARY KEY,                                             -- of a dataset or a model
    kind text NOT NULL CHECK (kind IN ('dataset', 'model')),
    account_id uuid NOT NULL REFERENCES accounts,                         -- the seller
    name text NOT NULL,
    title text NOT NULL,
    search tsvector NOT NULL,
    tags text[] NOT NULL,
    licence text NOT NULL,
    deprecation text,                                                     -- of the dataset, or of the model's newest version
    created_at timestamptz NOT NULL,
    version_id uuid NOT NULL,                                             -- the newest; of a dataset, that is ready
    number integer NOT NULL,
    -- Of datasets alone.
    files integer,
    bytes bigint,
    rows bigint,                                                          -- of all its tables; NULL: it has none
    formats text[],
    CONSTRAINT catalog_fits_kind CHECK (CASE kind WHEN 'dataset' THEN num_nulls(files, bytes, formats) = 0 ELSE num_nonnulls(files, bytes, rows, formats) = 0 END)
);
CREATE INDEX catalog_kind ON catalog (kind, item_id);
CREATE INDEX catalog_search ON catalog USING gin (search);
CREATE INDEX catalog_tags ON catalog USING gin (tags);
CREATE INDEX catalog_licence ON catalog (licence, item_id);
CREATE INDEX catalog_account ON catalog (account_id, item_id);
CREATE INDEX catalog_bytes ON catalog (bytes);

-- Prices of open offers of datasets, each with the time that it counts for.
CREATE TABLE catalog_prices (
    offer_id uuid NOT NULL REFERENCES offers,
    number integer NOT NULL,
    item_id uuid NOT NULL REFERENCES catalog ON DELETE CASCADE,
    asset_id integer NOT NULL REFERENCES assets,
    kind text NOT NULL,
    price_base numeric(39, 0) NOT NULL,
    counts_from timestamptz NOT NULL,
    counts_until timestamptz NOT NULL,
    PRIMARY KEY (offer_id, number)
);
CREATE INDEX catalog_prices_item ON catalog_prices (item_id, kind, price_base);
CREATE INDEX catalog_prices_cheapest ON catalog_prices (asset_id, kind, price_base, item_id);

CREATE OR REPLACE FUNCTION write_catalog_prices(dataset uuid) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM lock_catalog(dataset);
    DELETE FROM catalog_prices WHERE item_id = dataset;
    -- A price counts until one with a higher number does.
    INSERT INTO catalog_prices (offer_id, number, item_id, asset_id, kind, price_base, counts_from, counts_until)
    SELECT o.offer_id, p.number, c.item_id, o.asset_id, o.kind, p.price_base, p.effective_at, coalesce(min(p.effective_at) OVER (
        PARTITION BY o.offer_id ORDER BY p.number ROWS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING), 'infinity')
    FROM catalog c JOIN offers o ON o.dataset_id = c.item_id JOIN offer_prices p USING (offer_id)
    WHERE c.item_id = dataset AND o.closed_at IS NULL;
END $$;

CREATE OR REPLACE FUNCTION write_catalog(dataset uuid) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM lock_catalog(dataset);
    DELETE FROM catalog WHERE item_id = dataset;
    INSERT INTO catalog (item_id, kind, account_id, name, title, search, tags, licence, deprecation, created_at, version_id, number, files, bytes, rows,
        formats)
    SELECT d.dataset_id, 'dataset', d.account_id, d.name, d.title, catalog_words(d.title, d.name, array_to_string(d.tags, ' '), d.description), d.tags,
        d.licence, d.deprecation, d.created_at, v.version_id, v.number, v.files, v.bytes, f.rows, coalesce(f.formats, '{}')
    FROM datasets d
    JOIN LATERAL (SELECT * FROM dataset_versions v WHERE v.dataset_id = d.dataset_id AND v.state = 'ready' ORDER BY number DESC LIMIT 1) v ON true
    CROSS JOIN LATERAL (
        SELECT least(sum((facts ->> 'rows')::numeric), 9223372036854775807)::bigint AS rows, array_agg(DISTINCT format ORDER BY format) AS formats
        FROM dataset_files WHERE version_id = v.version_id
    ) f
    WHERE d.dataset_id = dataset AND d.state = 'listed' AND d.blocked_by IS NULL;
    PERFORM write_catalog_prices(dataset);
END $$;
DROP TRIGGER datasets_in_catalog ON datasets;
CREATE TRIGGER datasets_in_catalog AFTER UPDATE ON datasets FOR EACH ROW
    WHEN ('listed' IN (OLD.state, NEW.state) AND (OLD.state, OLD.title, OLD.description, OLD.licence, OLD.tags, OLD.deprecation)
        IS DISTINCT FROM (NEW.state, NEW.title, NEW.description, NEW.licence, NEW.tags, NEW.deprecation)) EXECUTE FUNCTION follow_dataset();

CREATE FUNCTION write_catalog_model(model uuid) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM lock_catalog(model);
    DELETE FROM catalog WHERE item_id = model;
    INSERT INTO catalog (item_id, kind, account_id, name, title, search, tags, licence, deprecation, created_at, version_id, number)
    SELECT m.model_id, 'model', m.account_id, m.name, m.title, catalog_words(m.title, m.name, array_to_string(m.tags, ' '), m.description), m.tags,
        m.licence, v.deprecation, m.created_at, v.version_id, v.number
    FROM models m
    JOIN LATERAL (SELECT * FROM model_versions v WHERE v.model_id = m.model_id ORDER BY number DESC LIMIT 1) v ON true
    WHERE m.model_id = model AND m.visibility = 'public';
END $$;
CREATE FUNCTION follow_model() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
    PERFORM write_catalog_model(NEW.model_id);
    RETURN NULL;
END $$;
CREATE TRIGGER models_in_catalog AFTER UPDATE ON models FOR EACH ROW
    WHEN ('public' IN (OLD.visibility, NEW.visibility)) EXECUTE FUNCTION follow_model();
CREATE TRIGGER model_versions_in_catalog AFTER INSERT OR UPDATE ON model_versions FOR EACH ROW EXECUTE FUNCTION follow_model();

REVOKE EXECUTE ON FUNCTION follow_model() FROM PUBLIC;
GRANT SELECT ON catalog, catalog_prices TO comptoir_api;
SELECT write_catalog(dataset_id) FROM datasets WHERE state = 'listed';
SELECT write_catalog_model(model_id) FROM models WHERE visibility = 'public';
