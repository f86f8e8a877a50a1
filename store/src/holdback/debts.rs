//! What the house owes: for runs that confirmed another's result, and its own part of a price whose pay was forfeited.

use std::collections::BTreeMap;

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    id::{AttemptId, JobId},
    ledger::{AccountKey, EntryKind, Lines, Source},
};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{AT_ONCE, HoldbackError, earning};
use crate::{
    PgTransaction, assets,
    codec::{to_address, to_amount, to_numeric},
    ledger::{self, PostError},
    releases,
};

/// Writes down that the house owes an owner for a run that confirmed another's result.
pub async fn owe(
    tx: &mut PgTransaction<'_>,
    (attempt, job): (AttemptId, JobId),
    asset_id: i32,
    owner: Address,
    amount: Amount,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    if amount.is_zero() {
        return Ok(());
    }
    sqlx::query!(
        "INSERT INTO audit_pays (attempt_id, job_id, owner, asset_id, amount_base, created_at)
         VALUES ($1, $2, $3, $4, $5, $6)",
        attempt.0,
        job.0,
        owner.as_slice(),
        asset_id,
        to_numeric(amount),
        now,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}

/// What the house owes for runs, over all assets: how many runs.
pub async fn owed(conn: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar!(r#"SELECT count(*) AS "owed!" FROM audit_pays WHERE paid_at IS NULL"#)
        .fetch_one(conn)
        .await
}

struct Owed {
    attempt: AttemptId,
    owner: Address,
    amount: Amount,
    /// Does a client get back what it paid? Else it was earned.
    of_client: bool,
}

/// Pays what the house owes for runs, the oldest first, as far as its fees and the platform's own money go. How many.
pub async fn pay_owed(
    tx: &mut PgTransaction<'_>,
    now: OffsetDateTime,
) -> Result<usize, HoldbackError> {
    let rows = sqlx::query!(
        r#"SELECT attempt_id, owner, asset_id, amount_base,
             EXISTS (
                 SELECT FROM holdbacks h
                 WHERE h.job_id = audit_pays.job_id AND h.payer = audit_pays.owner AND h.state = 'forfeited'
             ) AS "of_client!"
           FROM audit_pays WHERE paid_at IS NULL
           ORDER BY created_at, attempt_id LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED"#,
        AT_ONCE,
    )
    .fetch_all(&mut **tx)
    .await?;
    let mut by_asset: BTreeMap<i32, Vec<Owed>> = BTreeMap::new();
    for row in rows {
        by_asset.entry(row.asset_id).or_default().push(Owed {
            attempt: AttemptId(row.attempt_id),
            owner: to_address("owner", &row.owner)?,
            amount: to_amount("amount_base", &row.amount_base)?,
            of_client: row.of_client,
        });
    }
    let mut paid = 0;
    for (asset_id, owed) in by_asset {
        paid += pay(tx, asset_id, &owed, now).await?;
    }
    Ok(paid)
}

async fn pay(
    tx: &mut PgTransaction<'_>,
    asset_id: i32,
    owed: &[Owed],
    now: OffsetDateTime,
) -> Result<usize, HoldbackError> {
    let platform = assets::platform(tx, asset_id).await?;
    let own = AccountKey::Available(platform);
    let payees = owed.iter().map(|it| AccountKey::Available(it.owner));
    ledger::lock(tx, asset_id, payees.chain([AccountKey::Fees, own])).await?;
    let mut fees = ledger::house_balances(tx, asset_id).await?.fees;
    let mut available = ledger::balances(tx, platform, asset_id).await?.available;
    let (mut entries, mut paid) = (Vec::new(), Vec::new());
    for it in owed {
        let of_fees = fees.min(it.amount);
        let rest = it.amount.checked_sub(of_fees).expect("at most the amount");
        let Some(left) = available.checked_sub(rest) else {
            break;
        };
        fees = fees.checked_sub(of_fees).expect("at most the fees");
        available = left;
        let lines = Lines::default()
            .debit(AccountKey::Fees, of_fees)
            .debit(own, rest)
            .credit(AccountKey::Available(it.owner), it.amount);
        // What the platform earns from its own money moves nothing.
        if it.owner != platform || !of_fees.is_zero() {
            let entry = lines
                .into_entry(EntryKind::AuditPay, Source::AuditPay(it.attempt))
                .map_err(PostError::from)?;
            entries.push(entry);
        }
        paid.push(it);
    }
    if paid.is_empty() {
        return Ok(0);
    }
    let posted = ledger::post_all_locked(tx, asset_id, &entries, now).await?;
    if posted.iter().any(Option::is_none) {
        return Err(PostError::AlreadyPosted.into());
    }
    let attempts: Vec<Uuid> = paid.iter().map(|it| it.attempt.0).collect();
    sqlx::query!(
        "UPDATE audit_pays SET paid_at = $2 WHERE attempt_id = ANY ($1)",
        &attempts,
        now,
    )
    .execute(&mut **tx)
    .await?;
    let earned = paid.iter().filter(|it| !it.of_client);
    let earned: Vec<_> = earned.map(|it| earning(it.owner, it.amount)).collect();
    releases::queue(tx, asset_id, &earned, now).await?;
    Ok(paid.len())
}

/// The house owes the clients its own part of what they paid for, in proportion to what is forfeited: it neither gains by a fraud
/// nor by a worker that it frames. What the data of a job earned and a takedown holds back is not its part, and what it refunded it owes no more.
pub(super) async fn make_whole(
    tx: &mut PgTransaction<'_>,
    (jobs, owners): (&[Uuid], &[Vec<u8>]),
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO audit_pays (attempt_id, job_id, owner, asset_id, amount_base, created_at)
         SELECT attempt_id, job_id, payer, asset_id, least(base, unpaid), $3 FROM (
             SELECT last.attempt_id, h.job_id, h.payer, h.asset_id, part.base,
                 gross_base - given_back(receipt_id) - sum(part.base) OVER (PARTITION BY h.job_id ORDER BY h.owner) + part.base AS unpaid
             FROM UNNEST($1::uuid[], $2::bytea[]) AS it (job, owner)
             JOIN holdbacks h ON h.job_id = it.job AND h.owner = it.owner
             JOIN receipts ON receipts.job_id = h.job_id
             CROSS JOIN LATERAL (
                 SELECT attempt_id FROM attempts WHERE attempts.job_id = h.job_id AND attempts.worker_id = h.worker_id
                 ORDER BY state = 'accepted' DESC, attempt_id LIMIT 1
             ) AS last
             CROSS JOIN LATERAL (SELECT sum(amount_base) AS base FROM holdbacks earned WHERE earned.job_id = h.job_id) AS earned
             CROSS JOIN LATERAL (
                 SELECT coalesce(sum(amount_base), 0) AS base FROM held_proceeds p
                 WHERE p.source_kind = 'job' AND p.source_id = h.job_id AND p.state <> 'released'
             ) AS data
             CROSS JOIN LATERAL (SELECT div((gross_base - data.base - earned.base) * h.amount_base, earned.base) AS base) AS part
         ) AS owed
         WHERE least(base, unpaid) > 0
         ON CONFLICT (attempt_id) DO NOTHING",
        jobs,
        owners,
        now,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}
