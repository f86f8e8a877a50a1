-- An account's jobs of a day are counted where they are.
DROP TABLE account_days;

-- The administrators, who are few.
CREATE INDEX accounts_platform ON accounts (account_id) WHERE 'platform' = ANY (roles);

-- What is shown of a job says what was given back of it.
GRANT SELECT ON refunds TO comptoir_scheduler;
