-- A worker whose owner lets jobs run without walls says so when it joins.
ALTER TABLE workers ADD COLUMN unsandboxed boolean NOT NULL DEFAULT false;
