-- Nobody takes anything of a frozen account. What was taken before stays.

-- Buyers do not see what is written of other accounts; what they are refused for it, they meet.
CREATE FUNCTION is_frozen(who uuid) RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE SECURITY DEFINER SET search_path = public AS $$
    SELECT EXISTS (SELECT FROM account_controls WHERE account_id = who AND frozen_at IS NOT NULL)
$$;

ALTER TABLE subscriptions DROP CONSTRAINT subscriptions_ended_because_check;
ALTER TABLE subscriptions ADD CONSTRAINT subscriptions_ended_because_check CHECK (ended_because IN
    ('cancelled', 'price_above_cap', 'insufficient_funds', 'offer_closed', 'withdrawn', 'leaving', 'refused', 'taken_down', 'seller_frozen'));
