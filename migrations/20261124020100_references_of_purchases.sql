-- References of purchases and rights are judged by statement, as those of jobs are: a foreign key asks once per row, nine times for a purchase.

CREATE OR REPLACE FUNCTION pg_temp.judge_references(child text, columns text[]) RETURNS void LANGUAGE plpgsql AS $outer$
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
    ('purchases', '{account_id, asset_id, seller_id, dataset_id, version_id, subscription_id, split_version_id}'::text[]),
    ('entitlements', '{account_id, dataset_id, version_id, purchase_id}')
) AS it (child, columns);

-- What is referred to stays.
CREATE OR REPLACE FUNCTION pg_temp.keep_rows(parent text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE TRIGGER %I BEFORE DELETE OR TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()',
        parent || '_stay', parent);
END $$;
SELECT pg_temp.keep_rows(parent) FROM UNNEST(ARRAY['datasets', 'subscriptions']) AS it (parent);
CREATE TRIGGER purchases_refer_still BEFORE UPDATE OF account_id, asset_id, seller_id, dataset_id, version_id, subscription_id, split_version_id
    ON purchases FOR EACH STATEMENT EXECUTE FUNCTION keep_references();
CREATE TRIGGER entitlements_refer_still BEFORE UPDATE OF account_id, dataset_id, version_id, purchase_id
    ON entitlements FOR EACH STATEMENT EXECUTE FUNCTION keep_references();
