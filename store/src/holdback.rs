//! Pay that is held back: kept at the charge, released after later results or once its worker has stopped, forfeited to
//! the clients it came from when its worker is barred. And what the house owes for confirming runs.

use std::collections::BTreeMap;

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    id::{AttemptId, JobId, WorkerId},
    ledger::{AccountKey, Entry, EntryKind, Lines, Source},
    policy::{
        audit::POLICY,
        holdback::{DISPUTE_WINDOW, EXIT_MARGIN},
    },
};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    PgTransaction, assets,
    codec::{to_address, to_amount, to_numeric},
    ledger::{self, PostError},
    queue::interval,
    releases::{self, NewRelease, ReleaseKind},
};

/// Entries of one transaction at most.
const AT_ONCE: i64 = 200;

/// Whose pay is held back: the worker that earned it for an owner, and the number of the result among its results.
pub type Earners = BTreeMap<Address, (WorkerId, i64)>;

/// What became of an owner's pay for a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holdback {
    /// Who earned it.
    pub owner: Address,
    /// How much.
    pub amount: Amount,
    /// `held`, `released` or `forfeited`.
    pub state: String,
}

/// Why held-back pay, or pay for an audit, was not moved.
#[derive(Debug, thiserror::Error)]
pub enum HoldbackError {
    /// The entry was refused.
    #[error("post held-back pay")]
    Post(#[from] PostError),
    /// No such asset.
    #[error("read the asset")]
    Asset(#[from] assets::AssetError),
    /// A statement failed.
    #[error("move held-back pay")]
    Database(#[from] sqlx::Error),
}

/// Writes down what a charge holds back. Its money is in the owners' `held_back` already.
pub(crate) async fn keep(
    tx: &mut PgTransaction<'_>,
    (job, asset_id, payer): (JobId, i32, Address),
    earned: &[(Address, Amount)],
    earners: &Earners,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    for (owner, amount) in earned.iter().filter(|(_, amount)| !amount.is_zero()) {
        let Some((worker, number)) = earners.get(owner) else {
            continue;
        };
        sqlx::query!(
            "INSERT INTO holdbacks (job_id, owner, worker_id, number, asset_id, payer, amount_base, created_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            job.0,
            owner.as_slice(),
            worker.0,
            number,
            asset_id,
            payer.as_slice(),
            to_numeric(*amount),
            now,
        )
        .execute(&mut **tx)
        .await?;
    }
    Ok(())
}

/// What became of the pay for a job, by owner.
pub async fn of_job(conn: &mut PgConnection, job: JobId) -> sqlx::Result<Vec<Holdback>> {
    let rows = sqlx::query!(
        "SELECT owner, amount_base, state FROM holdbacks WHERE job_id = $1 ORDER BY owner",
        job.0,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Holdback {
                owner: to_address("owner", &row.owner)?,
                amount: to_amount("amount_base", &row.amount_base)?,
                state: row.state,
            })
        })
        .collect()
}

/// What becomes of held-back pay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Its owner may spend it.
    Released,
    /// It goes to the client that it came from.
    Forfeited,
}

/// Workers with pay that is due to meet this fate.
pub async fn due(
    conn: &mut PgConnection,
    fate: Fate,
    now: OffsetDateTime,
    limit: i64,
) -> sqlx::Result<Vec<WorkerId>> {
    let rows = sqlx::query_scalar!(
        "SELECT DISTINCT worker_id
         FROM holdbacks h JOIN worker_records records USING (worker_id) JOIN workers USING (worker_id)
             LEFT JOIN worker_heartbeats beats USING (worker_id)
         WHERE h.state = 'held' AND CASE WHEN $1 THEN barred_at IS NOT NULL ELSE barred_at IS NULL AND (
             number + $2 <= results
             OR created_at < $3 AND (workers.revoked_at IS NOT NULL OR beats.seen_at < $3)
             OR EXISTS (
                 SELECT FROM exits x WHERE x.asset_id = h.asset_id AND x.owner = h.owner
                     AND x.answered_block_number IS NULL AND (h.created_at < $3 OR x.due_at - $4::interval <= $5)
             )
         ) END
         ORDER BY worker_id LIMIT $6",
        fate == Fate::Forfeited,
        i64::try_from(POLICY.holdback).unwrap_or(i64::MAX),
        now.saturating_sub(DISPUTE_WINDOW),
        interval(EXIT_MARGIN),
        now,
        limit,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(WorkerId).collect())
}

struct Held {
    job: JobId,
    owner: Address,
    payer: Address,
    asset_id: i32,
    amount: Amount,
}

/// Moves what is due of one worker's held-back pay, the oldest first; how many jobs' pay that was. Barring the worker waits
/// for it, and it for that.
pub async fn move_due(
    tx: &mut PgTransaction<'_>,
    worker: WorkerId,
    fate: Fate,
    now: OffsetDateTime,
) -> Result<usize, HoldbackError> {
    let barred = sqlx::query_scalar!(
        r#"SELECT barred_at IS NOT NULL AS "barred!" FROM worker_records WHERE worker_id = $1 FOR SHARE"#,
        worker.0,
    )
    .fetch_optional(&mut **tx)
    .await?;
    if barred != Some(fate == Fate::Forfeited) {
        return Ok(0);
    }
    let held = lock_due(tx, worker, fate, now).await?;
    let assets: std::collections::BTreeSet<i32> = held.iter().map(|it| it.asset_id).collect();
    for asset_id in assets {
        let of_asset: Vec<&Held> = held.iter().filter(|it| it.asset_id == asset_id).collect();
        move_held(tx, asset_id, &of_asset, fate, now).await?;
    }
    Ok(held.len())
}

async fn lock_due(
    tx: &mut PgTransaction<'_>,
    worker: WorkerId,
    fate: Fate,
    now: OffsetDateTime,
) -> sqlx::Result<Vec<Held>> {
    let rows = sqlx::query!(
        "SELECT job_id, h.owner, payer, h.asset_id, amount_base
         FROM holdbacks h JOIN worker_records records USING (worker_id) JOIN workers USING (worker_id)
             LEFT JOIN worker_heartbeats beats USING (worker_id)
         WHERE worker_id = $7 AND h.state = 'held' AND ($1 OR number + $2 <= results
             OR created_at < $3 AND (workers.revoked_at IS NOT NULL OR beats.seen_at < $3)
             OR EXISTS (
                 SELECT FROM exits x WHERE x.asset_id = h.asset_id AND x.owner = h.owner
                     AND x.answered_block_number IS NULL AND (h.created_at < $3 OR x.due_at - $4::interval <= $5)
             ))
         ORDER BY number, job_id, h.owner LIMIT $6 FOR NO KEY UPDATE OF h",
        fate == Fate::Forfeited,
        i64::try_from(POLICY.holdback).unwrap_or(i64::MAX),
        now.saturating_sub(DISPUTE_WINDOW),
        interval(EXIT_MARGIN),
        now,
        AT_ONCE,
        worker.0,
    )
    .fetch_all(&mut **tx)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Held {
                job: JobId(row.job_id),
                owner: to_address("owner", &row.owner)?,
                payer: to_address("payer", &row.payer)?,
                asset_id: row.asset_id,
                amount: to_amount("amount_base", &row.amount_base)?,
            })
        })
        .collect()
}

async fn move_held(
    tx: &mut PgTransaction<'_>,
    asset_id: i32,
    held: &[&Held],
    fate: Fate,
    now: OffsetDateTime,
) -> Result<(), HoldbackError> {
    let to = |it: &Held| match fate {
        Fate::Released => it.owner,
        Fate::Forfeited => it.payer,
    };
    let entries = held
        .iter()
        .map(|it| {
            let (kind, source) = match fate {
                Fate::Released => (
                    EntryKind::HoldbackRelease,
                    Source::HoldbackRelease(it.job, it.owner),
                ),
                Fate::Forfeited => (EntryKind::Forfeit, Source::Forfeit(it.job, it.owner)),
            };
            Lines::default()
                .debit(AccountKey::HeldBack(it.owner), it.amount)
                .credit(AccountKey::Available(to(it)), it.amount)
                .into_entry(kind, source)
        })
        .collect::<Result<Vec<Entry>, _>>()
        .map_err(PostError::from)?;
    post(tx, asset_id, &entries, now).await?;
    let (jobs, owners): (Vec<Uuid>, Vec<Vec<u8>>) =
        held.iter().map(|it| (it.job.0, it.owner.to_vec())).unzip();
    sqlx::query!(
        "UPDATE holdbacks SET state = $3, ended_at = $4
         FROM UNNEST($1::uuid[], $2::bytea[]) AS it (job, owner)
         WHERE job_id = it.job AND holdbacks.owner = it.owner",
        &jobs,
        &owners,
        match fate {
            Fate::Released => "released",
            Fate::Forfeited => "forfeited",
        },
        now,
    )
    .execute(&mut **tx)
    .await?;
    if fate == Fate::Released {
        let earned: Vec<_> = held.iter().map(|it| earning(it.owner, it.amount)).collect();
        releases::queue(tx, asset_id, &earned, now).await?;
    }
    Ok(())
}

/// Locks the accounts of entries and posts all; each has its money and its source to itself.
async fn post(
    tx: &mut PgTransaction<'_>,
    asset_id: i32,
    entries: &[Entry],
    now: OffsetDateTime,
) -> Result<(), PostError> {
    let accounts = entries.iter().flat_map(Entry::lines).map(|(key, _)| *key);
    ledger::lock(tx, asset_id, accounts).await?;
    let posted = ledger::post_all_locked(tx, asset_id, entries, now).await?;
    if posted.iter().all(Option::is_some) {
        Ok(())
    } else {
        Err(PostError::AlreadyPosted)
    }
}

const fn earning(owner: Address, amount: Amount) -> NewRelease {
    NewRelease {
        owner,
        kind: ReleaseKind::Earning,
        amount,
    }
}

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
}

/// Pays what the house owes for runs, the oldest first, as far as its fees and the platform's own money go. How many.
pub async fn pay_owed(
    tx: &mut PgTransaction<'_>,
    now: OffsetDateTime,
) -> Result<usize, HoldbackError> {
    let rows = sqlx::query!(
        "SELECT attempt_id, owner, asset_id, amount_base FROM audit_pays WHERE paid_at IS NULL
         ORDER BY created_at, attempt_id LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED",
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
    let earned: Vec<_> = paid.iter().map(|it| earning(it.owner, it.amount)).collect();
    releases::queue(tx, asset_id, &earned, now).await?;
    Ok(paid.len())
}
