-- Why a stuck job waits is told with the records of workers.
GRANT SELECT ON worker_records TO comptoir_admin;
