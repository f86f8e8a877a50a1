//! Jobs that get a result are completed together; what stands in the way of one concerns no other.

use comptoir_domain::job::{JobState, Tier};
use sqlx::PgPool;

use crate::harness::{BUDGET, Bench, compute, inference};

/// Names each rule of the ledger that is broken.
async fn broken_rules(bench: &Bench) -> Vec<String> {
    sqlx::query_scalar(
        "SELECT 'the balances do not sum to zero' FROM ledger_accounts HAVING sum(balance_base) <> 0
         UNION ALL
         SELECT 'version or balance of ' || code FROM ledger_accounts la CROSS JOIN LATERAL (
             SELECT count(*) AS lines, coalesce(sum(amount_base), 0) AS total, coalesce(max(account_version), 0) AS last
             FROM postings p WHERE p.ledger_account_id = la.ledger_account_id
         ) p WHERE (la.version, la.balance_base, la.version) IS DISTINCT FROM (p.lines, p.total, p.last)
         UNION ALL
         SELECT 'chain of ' || ledger_account_id FROM (
             SELECT ledger_account_id, balance_after_base - amount_base AS before,
                 lag(balance_after_base, 1, 0) OVER (PARTITION BY ledger_account_id ORDER BY account_version) AS previous
             FROM postings
         ) p WHERE before <> previous
         UNION ALL
         SELECT 'held is not what open holds lock' FROM ledger_accounts la WHERE code = 'held' AND balance_base <> (
             SELECT coalesce(sum(amount_base - moved_base), 0) FROM holds WHERE holds.owner = la.owner AND ended_at IS NULL
         )
         UNION ALL
         SELECT 'receipt without its charge' FROM receipts WHERE NOT EXISTS (
             SELECT FROM journal_entries e WHERE e.journal_entry_id = receipts.journal_entry_id AND e.kind = 'charge'
         )",
    )
    .fetch_all(&bench.owner)
    .await
    .unwrap()
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn jobs_of_several_tiers_complete_in_one_round(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let (one, two) = (bench.worker(0xa1).await, bench.worker(0xb0).await);
    let mut jobs = Vec::new();
    for _ in 0..6 {
        jobs.push(bench.submit(client, &inference(), Tier::None).await);
        compute(&[(&one, &[1.0])]).await;
    }
    jobs.push(bench.submit(client, &inference(), Tier::Replicated).await);
    compute(&[(&one, &[1.0]), (&two, &[1.0])]).await;
    assert_eq!(bench.rule().await, jobs.len());
    let mut charged = 0;
    for job in &jobs {
        let found = bench.job(client, *job).await;
        assert_eq!(found.state, JobState::Completed);
        assert_eq!(found.outputs.len(), 1);
        let charge = found.charge.unwrap();
        assert_eq!(charge.receipt, bench.receipt(*job).await.id);
        charged += charge.amount.base();
    }
    assert_eq!(bench.available(client.address).await, BUDGET - charged);
    assert_eq!(broken_rules(&bench).await, [""; 0]);
    assert_eq!(bench.rule().await, 0);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_job_that_cannot_be_paid_for_keeps_no_other_from_its_result(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let worker = bench.worker(0xa1).await;
    let mut jobs = Vec::new();
    for _ in 0..4 {
        jobs.push(bench.submit(client, &inference(), Tier::None).await);
        compute(&[(&worker, &[1.0])]).await;
    }
    // Something that must not happen: the hold of one is gone.
    sqlx::query("UPDATE holds SET ended_at = created_at WHERE source_id = $1")
        .bind(jobs[1].0)
        .execute(&bench.owner)
        .await
        .unwrap();
    assert_eq!(bench.rule().await, 3);
    for (place, job) in jobs.iter().enumerate() {
        let expected = if place == 1 {
            JobState::Verifying
        } else {
            JobState::Completed
        };
        assert_eq!(bench.job(client, *job).await.state, expected, "{place}");
    }
    let receipts: i64 = sqlx::query_scalar("SELECT count(*) FROM receipts")
        .fetch_one(&bench.owner)
        .await
        .unwrap();
    assert_eq!(receipts, 3);
}
