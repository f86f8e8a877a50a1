-- References of the tables that every job writes to are judged by statement: a foreign key asks once per row, which was more than half
-- of what a job cost the server. A row that is referred to is never deleted, so a reference that was good stays good.

CREATE FUNCTION pg_temp.judge_references(child text, columns text[]) RETURNS void LANGUAGE plpgsql AS $outer$
DECLARE
    it record;
    checks text := '';
BEGIN
    FOR it IN
        SELECT c.conname, a.attname AS referrer, c.confrelid::regclass::text AS parent, p.attname AS referred
        FROM pg_constraint c
        JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
        JOIN pg_attribute p ON p.attrelid = c.confrelid AND p.attnum = c.confkey[1]
        WHERE c.contype = 'f' AND c.conrelid = child::regclass AND a.attname = ANY (columns) AND cardinality(c.conkey) = 1
        ORDER BY c.conname
    LOOP
        EXECUTE format('ALTER TABLE %I DROP CONSTRAINT %I', child, it.conname);
        checks := checks || format($check$
            IF EXISTS (SELECT FROM fresh f WHERE f.%1$I IS NOT NULL
                AND NOT EXISTS (SELECT FROM %2$s parent WHERE parent.%3$I = f.%1$I)) THEN
                RAISE EXCEPTION 'a row of %4$s refers to nothing in %2$s'
                    USING ERRCODE = 'foreign_key_violation', CONSTRAINT = %5$L, TABLE = %4$L;
            END IF;$check$, it.referrer, it.parent, it.referred, child, it.conname);
        columns := array_remove(columns, it.referrer::text);
    END LOOP;
    IF cardinality(columns) > 0 THEN
        RAISE EXCEPTION 'no foreign key of % is on %', child, columns;
    END IF;
    -- By primary keys alone: the plans are pinned whatever the session thinks of them.
    EXECUTE format($make$
        CREATE FUNCTION %1$I() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public
        SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $body$
        BEGIN %2$s
            RETURN NULL;
        END $body$$make$, 'assert_references_of_' || child, checks);
    EXECUTE format('CREATE TRIGGER %I AFTER INSERT ON %I REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT EXECUTE FUNCTION %I()',
        child || '_refer', child, 'assert_references_of_' || child);
END $outer$;

SELECT pg_temp.judge_references(child, columns) FROM (VALUES
    ('quotes', '{account_id, asset_id, price_version_id}'::text[]),
    ('jobs', '{account_id, quote_id, asset_id}'),
    ('replicas', '{job_id}'),
    ('queue', '{replica_id, job_id}'),
    ('attempts', '{replica_id, job_id, worker_id}'),
    ('attempt_blobs', '{attempt_id, sha256}'),
    ('job_events', '{job_id}'),
    ('verdicts_due', '{job_id}'),
    ('verdicts', '{job_id}'),
    ('job_outputs', '{job_id, sha256}'),
    ('receipts', '{account_id, asset_id, job_id, journal_entry_id, split_version_id}'),
    ('receipt_splits', '{receipt_id}'),
    ('unbatched_receipts', '{receipt_id, asset_id}'),
    ('holds', '{asset_id}'),
    ('releases', '{asset_id, account_id}'),
    ('journal_entries', '{asset_id, reverses}'),
    ('idempotency_keys', '{account_id}')
) AS it (child, columns);

-- A queue row is leased together with an attempt, which names the same worker.
ALTER TABLE queue DROP CONSTRAINT queue_worker_id_fkey;

-- What is referred to stays; receipts, journal entries and ledger accounts do already.
CREATE FUNCTION pg_temp.keep_rows(parent text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE TRIGGER %I BEFORE DELETE OR TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()',
        parent || '_stay', parent);
END $$;
SELECT pg_temp.keep_rows(parent) FROM UNNEST(ARRAY[
    'accounts', 'assets', 'price_versions', 'quotes', 'jobs', 'replicas', 'attempts', 'workers', 'blobs', 'split_versions'
]) AS it (parent);

-- Room on their pages for the versions that a job makes of its rows within a second, so that they stay on their pages and touch no index.
ALTER TABLE jobs SET (fillfactor = 50);
ALTER TABLE replicas SET (fillfactor = 40);
ALTER TABLE attempts SET (fillfactor = 35);
