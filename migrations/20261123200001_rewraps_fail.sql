-- A key of a seller that does not open is tried again later, behind those that nobody tried yet.
ALTER TABLE tenant_keys ADD COLUMN rewrap_failed_at timestamptz;
GRANT UPDATE (rewrap_failed_at) ON tenant_keys TO comptoir_api;
