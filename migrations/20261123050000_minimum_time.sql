-- The seconds of a rental or a period that are charged at least, however early it ends, once something was read. Offers that were made before
-- promised none.
ALTER TABLE offers ADD COLUMN minimum_seconds integer NOT NULL DEFAULT 0;
ALTER TABLE offers ADD CONSTRAINT offers_minimum_within_period CHECK (minimum_seconds BETWEEN 0 AND coalesce(period_seconds, 0));
