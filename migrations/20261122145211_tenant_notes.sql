-- What a tenant's transaction notes may concern nobody, or somebody else: it is kept, and read by those whom it concerns.
DROP POLICY tenant ON audit_events;
CREATE POLICY tenant ON audit_events FOR SELECT TO comptoir_api USING (sees_account(account_id));
CREATE POLICY tenant_notes ON audit_events FOR INSERT TO comptoir_api WITH CHECK (true);
