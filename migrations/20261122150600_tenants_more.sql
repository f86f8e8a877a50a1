-- Gives a table its wall: what `condition` says is what a tenant's transaction of the API may touch. For later migrations too.
CREATE PROCEDURE wall(walled regclass, condition text) LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', walled);
    EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', walled);
    EXECUTE format('CREATE POLICY tenant ON %s TO comptoir_api USING (%s)', walled, condition);
    EXECUTE format('CREATE POLICY services ON %s TO comptoir_scheduler, comptoir_settler, comptoir_admin, CURRENT_USER USING (true)', walled);
END $$;
CALL wall('address_changes', 'sees_account(account_id)');
CALL wall('notices', 'sees_account(account_id)');
CALL wall('password_resets', 'sees_account(account_id)');
