-- Where an API key may be used from, and what the jobs that it submits may cost.
ALTER TABLE api_keys
    ADD COLUMN allowed_ips text[] NOT NULL DEFAULT '{}' CHECK (cardinality(allowed_ips) <= 32),  -- networks; none: anywhere
    ADD COLUMN spend_limit_base numeric(39, 0) CHECK (spend_limit_base >= 0),
    ADD COLUMN spend_period text CHECK (spend_period IN ('day', 'lifetime')),
    ADD CONSTRAINT api_keys_limit_has_period CHECK ((spend_limit_base IS NULL) = (spend_period IS NULL));

-- What jobs of a key with a limit were charged, once they ended, by the period that they were submitted in.
CREATE TABLE api_key_spending (
    api_key_id uuid NOT NULL REFERENCES api_keys,
    starts_on date NOT NULL,             -- UTC; of a lifetime: the day the key was made
    charged_base numeric(39, 0) NOT NULL CHECK (charged_base >= 0),
    PRIMARY KEY (api_key_id, starts_on)
) WITH (fillfactor = 70);

-- Jobs of such keys that are not counted there yet: what they hold counts, until it is known what they were charged.
CREATE TABLE api_key_jobs (
    job_id uuid PRIMARY KEY REFERENCES jobs,
    api_key_id uuid NOT NULL REFERENCES api_keys,
    starts_on date NOT NULL,
    held_base numeric(39, 0) NOT NULL CHECK (held_base > 0)
);
CREATE INDEX api_key_jobs_key ON api_key_jobs (api_key_id, starts_on);

GRANT SELECT, INSERT, UPDATE ON api_key_spending TO comptoir_api;
GRANT SELECT, INSERT, DELETE ON api_key_jobs TO comptoir_api;
