//! References that are judged by statement instead of by foreign keys.

use sqlx::PgPool;

use crate::{
    guards::{RESTRICT_VIOLATION, code},
    harness::{ALICE, Money},
};

const FOREIGN_KEY_VIOLATION: &str = "23503";
const NOTHING: &str = "'00000000-0000-0000-0000-000000000000'";

/// A row that refers to nothing, and the reference that it is refused for.
const ROWS: &[(&str, &str)] = &[
    (
        "quotes_account_id_fkey",
        "quotes (quote_id, account_id, asset_id, spec, spec_sha256, tier, device, meter, madds, price_version_id, amount_atto,
             hold_base, min_memory_bytes, created_at, expires_at)
         VALUES ($0, $0, 1, '{}', sha256(''), 'none', 'cpu', '{}', 0, 1, 0, 0, 0, now(), now())",
    ),
    (
        "jobs_account_id_fkey",
        "jobs (job_id, account_id, quote_id, payer, asset_id, kind, tier, max_cost_base, state, deadline_at, created_at)
         VALUES ($0, $0, $0, decode(repeat('00', 20), 'hex'), 1, 'inference', 'none', 0, 'queued', now(), now())",
    ),
    (
        "replicas_job_id_fkey",
        "replicas (replica_id, job_id, ordinal, state) VALUES ($0, $0, 0, 'queued')",
    ),
    (
        "queue_job_id_fkey",
        "queue (replica_id, job_id, ready_at, device, min_memory_bytes, rate_nano) VALUES ($0, $0, now(), 'cpu', 0, 1)",
    ),
    (
        "attempts_job_id_fkey",
        "attempts (attempt_id, replica_id, job_id, number, worker_id, numeric_class, state, started_at)
         VALUES ($0, $0, $0, 1, $0, 'x', 'running', now())",
    ),
    (
        "attempt_blobs_attempt_id_fkey",
        "attempt_blobs (attempt_id, sha256) VALUES ($0, sha256(''))",
    ),
    (
        "job_events_job_id_fkey",
        "job_events (job_id, seq, kind, data, created_at) VALUES ($0, 1, 'queued', '{}', now())",
    ),
    (
        "verdicts_due_job_id_fkey",
        "verdicts_due (job_id, due_at) VALUES ($0, now())",
    ),
    (
        "verdicts_job_id_fkey",
        "verdicts (job_id, kind, evidence, evidence_sha256, decided_at) VALUES ($0, 'unverified', '{}', sha256(''), now())",
    ),
    (
        "job_outputs_job_id_fkey",
        "job_outputs (job_id, name, sha256) VALUES ($0, 'tensors', sha256(''))",
    ),
    (
        "receipt_splits_receipt_id_fkey",
        "receipt_splits (receipt_id, party, payee, amount_base) VALUES ($0, 0, decode(repeat('00', 20), 'hex'), 1)",
    ),
    (
        "unbatched_receipts_receipt_id_fkey",
        "unbatched_receipts (receipt_id, asset_id, gross_base) VALUES ($0, 1, 1)",
    ),
    (
        "holds_asset_id_fkey",
        "holds (hold_id, asset_id, owner, source_kind, source_id, amount_base, created_at)
         VALUES ($0, 9999, decode(repeat('00', 20), 'hex'), 'job', $0, 1, now())",
    ),
    (
        "releases_asset_id_fkey",
        "releases (release_id, asset_id, owner, kind, amount_base, created_at)
         VALUES ($0, 9999, decode(repeat('00', 20), 'hex'), 'earning', 1, now())",
    ),
    (
        "idempotency_keys_account_id_fkey",
        "idempotency_keys (account_id, method, path, key, body_sha256, status, body, created_at, expires_at)
         VALUES ($0, 'POST', '/v1/jobs', 'key', sha256(''), 201, '', now(), now())",
    ),
];

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_row_that_refers_to_nothing_is_refused(db: PgPool) {
    let money = Money::new(db).await;
    for (constraint, row) in ROWS {
        let statement = format!("INSERT INTO {}", row.replace("$0", NOTHING));
        let error = sqlx::query(sqlx::AssertSqlSafe(statement))
            .execute(&money.owner)
            .await
            .expect_err(row);
        assert_eq!(code(&error), FOREIGN_KEY_VIOLATION, "{row}: {error}");
        let refused = error.as_database_error().and_then(|it| it.constraint());
        assert_eq!(refused, Some(*constraint), "{row}: {error}");
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_may_be_referred_to_is_never_deleted(db: PgPool) {
    let money = Money::new(db).await;
    money.deposit(ALICE, 100).await;
    for table in [
        "accounts",
        "assets",
        "price_versions",
        "quotes",
        "jobs",
        "replicas",
        "attempts",
        "workers",
        "blobs",
        "split_versions",
        "receipts",
        "journal_entries",
        "ledger_accounts",
    ] {
        let error = sqlx::query(sqlx::AssertSqlSafe(format!("DELETE FROM {table}")))
            .execute(&money.owner)
            .await
            .expect_err(table);
        assert_eq!(code(&error), RESTRICT_VIOLATION, "{table}: {error}");
    }
}
