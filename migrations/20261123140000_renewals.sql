-- A subscription is counted against the key that made it, and ends where its subscriber may not spend, or has the dataset for good.
ALTER TABLE subscriptions ADD COLUMN api_key_id uuid REFERENCES api_keys;    -- whose limit counts; NULL: made without one
ALTER TABLE subscriptions DROP CONSTRAINT subscriptions_ended_because_check;
ALTER TABLE subscriptions ADD CONSTRAINT subscriptions_ended_because_check CHECK (ended_because IN
    ('cancelled', 'price_above_cap', 'insufficient_funds', 'offer_closed', 'withdrawn', 'leaving', 'refused', 'taken_down', 'seller_frozen',
     'frozen', 'spend_limit', 'owned'));
