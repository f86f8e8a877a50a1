-- A worker that was refuted is let work again by an operator.
GRANT UPDATE (barred_at, barred_for, trusted) ON worker_records TO comptoir_admin;
