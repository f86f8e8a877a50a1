-- Administrators have messages sent again that were not; what they say is nobody's business.
GRANT SELECT (notice_id, account_id, kind, created_at, attempts, next_attempt_at, sent_at, given_up_at),
    UPDATE (attempts, next_attempt_at, given_up_at) ON notices TO comptoir_admin;
-- Whoever redeems a setup token ends every other way into the account.
GRANT SELECT, DELETE ON password_resets TO comptoir_admin;
