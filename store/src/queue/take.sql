-- Takes queue rows. Conditions on attempts are inside aggregates, so that attempts are looked up by job or replica, and never by worker,
-- who may have millions.
WITH ready AS MATERIALIZED (
    SELECT queue.replica_id, queue.job_id
    FROM queue JOIN jobs ON jobs.job_id = queue.job_id
    -- A worker that was paused or revoked, or whose account is frozen, gets nothing.
    WHERE NOT EXISTS (SELECT FROM worker_controls WHERE worker_id = $1)
      AND EXISTS (SELECT FROM workers LEFT JOIN account_controls USING (account_id)
          WHERE worker_id = $1 AND revoked_at IS NULL AND frozen_at IS NULL)
      AND queue.device = $3 AND queue.ready_at <= clock_timestamp() - $13::interval
      AND queue.lease_token IS NULL AND queue.min_memory_bytes <= $4 AND queue.rate_nano >= $5
      AND (jobs.numeric_class IS NULL OR jobs.numeric_class = $6)
      -- No class is held to a program that it is marked as unstable for. The marks of the class are read once, when the first job of a
      -- verified tier is reached; while there are none, no program is looked up.
      AND (jobs.tier = 'none' OR (
          SELECT decode(spec ->> 'program', 'hex') FROM quotes WHERE quotes.quote_id = jobs.quote_id
      ) NOT IN (SELECT program_sha256 FROM unstable_classes WHERE numeric_class = $6 AND marked_at > $14))
      -- An owner gets one replica of a job,
      AND NOT EXISTS (
          SELECT FROM replicas other WHERE other.job_id = queue.job_id AND other.owner_account_id = $2
      )
      -- and none of a job whose other replicas have segments of his.
      AND NOT (
          SELECT coalesce(bool_or(workers.account_id = $2), false)
          FROM attempts tried
          JOIN segments ON segments.replica_id = tried.replica_id AND segments.attempt_id = tried.attempt_id
          JOIN workers ON workers.worker_id = tried.worker_id
          WHERE tried.job_id = queue.job_id AND tried.replica_id <> queue.replica_id
      )
      -- A worker does not at once get what it has just failed, nor an owner what he failed for the client's fault, unless it was on
      -- another's checkpoint.
      AND (queue.attempt = 0 OR NOT (
          SELECT coalesce(bool_or(
              tried.worker_id = $1 AND tried.state = 'failed' AND queue.ready_at > clock_timestamp() - $11::interval
              OR workers.account_id = $2 AND tried.cause = 'client'
                  AND NOT EXISTS (SELECT FROM segments_voided WHERE voided_by = tried.attempt_id)
          ), false) FROM attempts tried JOIN workers USING (worker_id) WHERE tried.replica_id = queue.replica_id
      ))
    ORDER BY queue.priority, queue.replica_id
    LIMIT $7
    FOR NO KEY UPDATE OF queue, jobs SKIP LOCKED
), single AS (SELECT DISTINCT ON (job_id) replica_id FROM ready ORDER BY job_id, replica_id
), numbered AS (SELECT replica_id, row_number() OVER () AS place FROM single
), leased AS (
    UPDATE queue
    SET attempt = attempt + 1, attempt_id = fresh.attempt_id, worker_id = $1,
        lease_token = fresh.lease_token, lease_expires_at = clock_timestamp() + $10::interval
    FROM numbered
    JOIN unnest($8::uuid[], $9::uuid[]) WITH ORDINALITY AS fresh (attempt_id, lease_token, place) USING (place)
    WHERE queue.replica_id = numbered.replica_id
    RETURNING queue.replica_id, queue.job_id, queue.attempt, queue.attempt_id
), tried AS (
    INSERT INTO attempts (attempt_id, replica_id, job_id, number, worker_id, numeric_class, state, started_at)
    SELECT attempt_id, replica_id, job_id, attempt, $1, $6, 'running', $12 FROM leased
), owned AS (
    UPDATE replicas SET state = 'leased', owner_account_id = $2
    FROM leased WHERE replicas.replica_id = leased.replica_id
)
SELECT job_id FROM leased
