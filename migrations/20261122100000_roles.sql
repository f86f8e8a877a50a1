-- One database role per service. Each service connects as a login that may only become its own role.
-- Roles belong to the cluster, so another database's migration may create them in the same moment.
DO $$
DECLARE
    service text;
BEGIN
    FOREACH service IN ARRAY ARRAY['comptoir_api', 'comptoir_scheduler', 'comptoir_settler'] LOOP
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', service);
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;
        END;
    END LOOP;
END $$;

GRANT USAGE ON SCHEMA public TO comptoir_api, comptoir_scheduler, comptoir_settler;

-- What a table is made append-only with, besides the missing right.
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation', CONSTRAINT = 'append_only';
END $$;
