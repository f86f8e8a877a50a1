-- What is listed, as it is searched. The walls of `datasets` and its parts keep a search from its indexes (`@@` and `@>` are not leakproof, so
-- they wait until a policy has looked at each row); this holds what everybody who signed in may see, and nothing else, and needs no wall.
CREATE TABLE catalog (
    dataset_id uuid PRIMARY KEY REFERENCES datasets,
    account_id uuid NOT NULL REFERENCES accounts,                         -- the seller
    search tsvector NOT NULL,
    tags text[] NOT NULL,
    licence text NOT NULL,
    version_id uuid NOT NULL REFERENCES dataset_versions,                 -- the newest that is ready
    number integer NOT NULL,
    files integer NOT NULL,
    bytes bigint NOT NULL,
    rows bigint,                                                          -- of all its tables; NULL: it has none
    formats text[] NOT NULL
);
CREATE INDEX catalog_search ON catalog USING gin (search);
CREATE INDEX catalog_tags ON catalog USING gin (tags);
CREATE INDEX catalog_licence ON catalog (licence, dataset_id);
CREATE INDEX catalog_account ON catalog (account_id, dataset_id);
CREATE INDEX catalog_bytes ON catalog (bytes);

-- Prices of open offers, each with the time that it counts for.
CREATE TABLE catalog_prices (
    offer_id uuid NOT NULL REFERENCES offers,
    number integer NOT NULL,
    dataset_id uuid NOT NULL REFERENCES catalog ON DELETE CASCADE,
    asset_id integer NOT NULL REFERENCES assets,
    kind text NOT NULL,
    price_base numeric(39, 0) NOT NULL,
    counts_from timestamptz NOT NULL,
    counts_until timestamptz NOT NULL,
    PRIMARY KEY (offer_id, number)
);
CREATE INDEX catalog_prices_dataset ON catalog_prices (dataset_id, kind, price_base);
CREATE INDEX catalog_prices_cheapest ON catalog_prices (asset_id, kind, price_base, dataset_id);

-- Words in all forms of theirs, and names, titles and tags as they are written too: those may be of stop words alone.
CREATE FUNCTION catalog_words(title text, name text, tags text, description text) RETURNS tsvector LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT setweight(to_tsvector('english', title), 'A') || setweight(to_tsvector('english', name), 'B')
        || setweight(to_tsvector('english', tags), 'C') || setweight(to_tsvector('english', description), 'D')
        || setweight(to_tsvector('simple', title), 'A') || setweight(to_tsvector('simple', name), 'B') || setweight(to_tsvector('simple', tags), 'C')
$$;

-- Both at once would let a word that is excluded in one form through in the other.
CREATE FUNCTION catalog_query(words text) RETURNS tsquery LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN numnode(websearch_to_tsquery('english', words)) > 0
        THEN websearch_to_tsquery('english', words) ELSE websearch_to_tsquery('simple', words) END
$$;

-- Changes of one dataset's entry wait for each other, so that each sees what the one before it wrote.
CREATE FUNCTION lock_catalog(dataset uuid) RETURNS void LANGUAGE sql AS $$
    SELECT pg_advisory_xact_lock(hashtextextended('catalog ' || dataset::text, 0))
$$;

CREATE FUNCTION write_catalog_prices(dataset uuid) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM lock_catalog(dataset);
    DELETE FROM catalog_prices WHERE dataset_id = dataset;
    -- A price counts until one with a higher number does.
    INSERT INTO catalog_prices (offer_id, number, dataset_id, asset_id, kind, price_base, counts_from, counts_until)
    SELECT o.offer_id, p.number, o.dataset_id, o.asset_id, o.kind, p.price_base, p.effective_at, coalesce(min(p.effective_at) OVER (
        PARTITION BY o.offer_id ORDER BY p.number ROWS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING), 'infinity')
    FROM catalog c JOIN offers o USING (dataset_id) JOIN offer_prices p USING (offer_id)
    WHERE c.dataset_id = dataset AND o.closed_at IS NULL;
END $$;

CREATE FUNCTION write_catalog(dataset uuid) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM lock_catalog(dataset);
    DELETE FROM catalog WHERE dataset_id = dataset;
    INSERT INTO catalog (dataset_id, account_id, search, tags, licence, version_id, number, files, bytes, rows, formats)
    SELECT d.dataset_id, d.account_id, catalog_words(d.title, d.name, array_to_string(d.tags, ' '), d.description), d.tags, d.licence,
        v.version_id, v.number, v.files, v.bytes, f.rows, coalesce(f.formats, '{}')
    FROM datasets d
    JOIN LATERAL (SELECT * FROM dataset_versions v WHERE v.dataset_id = d.dataset_id AND v.state = 'ready' ORDER BY number DESC LIMIT 1) v ON true
    CROSS JOIN LATERAL (
        SELECT least(sum((facts ->> 'rows')::numeric), 9223372036854775807)::bigint AS rows, array_agg(DISTINCT format ORDER BY format) AS formats
        FROM dataset_files WHERE version_id = v.version_id
    ) f
    WHERE d.dataset_id = dataset AND d.state = 'listed';
    PERFORM write_catalog_prices(dataset);
END $$;

CREATE FUNCTION follow_dataset() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
    PERFORM write_catalog(NEW.dataset_id);
    RETURN NULL;
END $$;
CREATE FUNCTION follow_offer() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
    PERFORM write_catalog_prices(o.dataset_id) FROM offers o WHERE o.offer_id = NEW.offer_id;
    RETURN NULL;
END $$;
CREATE TRIGGER datasets_in_catalog AFTER UPDATE ON datasets FOR EACH ROW
    WHEN ('listed' IN (OLD.state, NEW.state) AND (OLD.state, OLD.title, OLD.description, OLD.licence, OLD.tags)
        IS DISTINCT FROM (NEW.state, NEW.title, NEW.description, NEW.licence, NEW.tags)) EXECUTE FUNCTION follow_dataset();
CREATE TRIGGER dataset_versions_in_catalog AFTER UPDATE ON dataset_versions FOR EACH ROW
    WHEN (OLD.state <> NEW.state AND 'ready' IN (OLD.state, NEW.state)) EXECUTE FUNCTION follow_dataset();
CREATE TRIGGER offers_in_catalog AFTER UPDATE ON offers FOR EACH ROW EXECUTE FUNCTION follow_offer();
CREATE TRIGGER offer_prices_in_catalog AFTER INSERT ON offer_prices FOR EACH ROW EXECUTE FUNCTION follow_offer();

REVOKE EXECUTE ON FUNCTION follow_dataset(), follow_offer() FROM PUBLIC;
GRANT SELECT ON catalog, catalog_prices TO comptoir_api;
SELECT write_catalog(dataset_id) FROM datasets WHERE state = 'listed';
