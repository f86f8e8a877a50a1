//! What a seal moves to `payable`: everything that owners who leave have available, then the queued releases (earnings,
//! the platform's fees, withdrawals), oldest first; never more than the contract lets a batch grow by.

use std::collections::{BTreeMap, BTreeSet};

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    id::{BatchId, ReleaseId},
    ledger::{AccountKey, EntryKind, Lines, Source},
};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    PgTransaction,
    codec::{to_address, to_amount, to_enum, to_numeric},
    exits, ledger,
    ledger::PostError,
};

/// Releases that one seal looks at; the rest waits for the next.
const RELEASES_MAX: i64 = 5_000;
/// Exits that one seal serves.
const EXITS_MAX: i64 = 1_000;

/// Why nothing was released.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// The entry was refused.
    #[error("post what the seal releases")]
    Post(#[from] PostError),
    /// A statement failed.
    #[error("release for a seal")]
    Database(#[from] sqlx::Error),
}

/// A queued release: how much of it is left, and the account that it comes from.
struct Queued {
    id: ReleaseId,
    owner: Address,
    from: AccountKey,
    left: Amount,
}

/// What becomes of a queued release.
struct Part {
    id: ReleaseId,
    amount: Amount,
    state: &'static str,
}

/// Moves up to `cap`, in one entry named after the batch to be sealed. Returns how much.
///
/// # Errors
/// When the entry is refused.
pub async fn release(
    tx: &mut PgTransaction<'_>,
    asset: i32,
    (batch, cap): (BatchId, Amount),
    now: OffsetDateTime,
) -> Result<Amount, ReleaseError> {
    let leaving = exits::open(tx, asset, EXITS_MAX).await?;
    let mut queue = queued(tx, asset).await?;
    let accounts = leaving
        .iter()
        .flat_map(|exit| {
            [
                AccountKey::Available(exit.owner),
                AccountKey::Payable(exit.owner),
            ]
        })
        .chain(
            queue
                .iter()
                .flat_map(|release| [release.from, AccountKey::Payable(release.owner)]),
        );
    ledger::lock(tx, asset, accounts).await?;
    // What was cancelled meanwhile is left out, now that its accounts stand still.
    let standing = lock_queued(tx, &queue).await?;
    queue.retain(|release| standing.contains(&release.id.0));

    let owners = leaving
        .iter()
        .map(|exit| exit.owner)
        .chain(queue.iter().map(|release| release.owner));
    let mut sources = sources(tx, asset, owners.collect()).await?;
    let mut left = cap;
    let mut lines = Lines::default();
    for owner in leaving.into_iter().map(|exit| exit.owner) {
        let from = AccountKey::Available(owner);
        let amount = take(&mut left, sources.entry(from).or_default());
        lines = lines
            .debit(from, amount)
            .credit(AccountKey::Payable(owner), amount);
    }
    let mut parts = Vec::with_capacity(queue.len());
    for release in queue {
        let part = allot(
            &release,
            &mut left,
            sources.entry(release.from).or_default(),
        );
        lines = lines
            .debit(release.from, part.amount)
            .credit(AccountKey::Payable(release.owner), part.amount);
        parts.push(part);
    }
    let moved = cap
        .checked_sub(left)
        .expect("what is left is part of the cap");
    if !moved.is_zero() {
        let entry = lines
            .into_entry(EntryKind::Release, Source::Seal(batch.to_string()))
            .map_err(PostError::from)?;
        ledger::post(tx, asset, &entry, now).await?;
    }
    record(tx, &parts, now).await?;
    Ok(moved)
}

/// Takes what is there and allowed out of both.
fn take(allowed: &mut Amount, there: &mut Amount) -> Amount {
    let amount = (*allowed).min(*there);
    *allowed = allowed
        .checked_sub(amount)
        .expect("no more than what is allowed");
    *there = there
        .checked_sub(amount)
        .expect("no more than what is there");
    amount
}

/// An earning may have been spent since it was queued; what is not there any more ends the release.
fn allot(release: &Queued, allowed: &mut Amount, there: &mut Amount) -> Part {
    let mut wanted = release.left.min(*there);
    let amount = take(allowed, &mut wanted);
    *there = there
        .checked_sub(amount)
        .expect("no more than what is there");
    let state = if !wanted.is_zero() {
        "queued"
    } else if amount.is_zero() {
        "cancelled"
    } else {
        "released"
    };
    Part {
        id: release.id,
        amount,
        state,
    }
}

async fn queued(tx: &mut PgTransaction<'_>, asset: i32) -> sqlx::Result<Vec<Queued>> {
    sqlx::query!(
        r#"SELECT release_id, owner, kind, amount_base - released_base AS "left!" FROM releases
           WHERE asset_id = $1 AND state = 'queued' ORDER BY release_id LIMIT $2"#,
        asset,
        RELEASES_MAX
    )
    .fetch_all(&mut **tx)
    .await?
    .into_iter()
    .map(|row| {
        let owner = to_address("owner", &row.owner)?;
        Ok(Queued {
            id: ReleaseId(row.release_id),
            owner,
            from: to_enum("kind", &row.kind, |kind| match kind {
                "earning" => Some(AccountKey::Available(owner)),
                "fees" => Some(AccountKey::Fees),
                "withdrawal" => Some(AccountKey::Held(owner)),
                _ => None,
            })?,
            left: to_amount("left", &row.left)?,
        })
    })
    .collect()
}

/// Locks the releases that are still queued.
async fn lock_queued(tx: &mut PgTransaction<'_>, queue: &[Queued]) -> sqlx::Result<BTreeSet<Uuid>> {
    let ids: Vec<_> = queue.iter().map(|release| release.id.0).collect();
    let standing = sqlx::query_scalar!(
        "SELECT release_id FROM releases
         WHERE release_id = ANY ($1) AND state = 'queued' ORDER BY release_id FOR NO KEY UPDATE",
        &ids
    )
    .fetch_all(&mut **tx)
    .await?;
    Ok(standing.into_iter().collect())
}

/// What the accounts hold that a seal takes from.
async fn sources(
    tx: &mut PgTransaction<'_>,
    asset: i32,
    owners: BTreeSet<Address>,
) -> sqlx::Result<BTreeMap<AccountKey, Amount>> {
    let owners: Vec<Vec<u8>> = owners.into_iter().map(|owner| owner.to_vec()).collect();
    let rows = sqlx::query!(
        "SELECT owner, code, balance_base FROM ledger_accounts
         WHERE asset_id = $1 AND (code = 'fees' OR (code IN ('available', 'held') AND owner = ANY ($2)))",
        asset,
        &owners
    )
    .fetch_all(&mut **tx)
    .await?;
    let mut sources = BTreeMap::new();
    for row in rows {
        let owner = row
            .owner
            .map(|owner| to_address("owner", &owner))
            .transpose()?;
        let key = match (owner, row.code.as_str()) {
            (Some(owner), "available") => AccountKey::Available(owner),
            (Some(owner), _) => AccountKey::Held(owner),
            (None, _) => AccountKey::Fees,
        };
        sources.insert(key, to_amount("balance_base", &row.balance_base)?);
    }
    Ok(sources)
}

async fn record(
    tx: &mut PgTransaction<'_>,
    parts: &[Part],
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    let ids: Vec<_> = parts.iter().map(|part| part.id.0).collect();
    let amounts: Vec<_> = parts.iter().map(|part| to_numeric(part.amount)).collect();
    let states: Vec<_> = parts.iter().map(|part| part.state.to_owned()).collect();
    sqlx::query!(
        "UPDATE releases r
         SET released_base = r.released_base + part.amount, state = part.state,
             released_at = CASE WHEN part.state = 'released' THEN $4::timestamptz END
         FROM UNNEST($1::uuid[], $2::numeric[], $3::text[]) AS part (id, amount, state)
         WHERE r.release_id = part.id AND r.state = 'queued' AND (part.amount > 0 OR part.state <> 'queued')",
        &ids,
        &amounts,
        &states,
        now,
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "UPDATE holds h
         SET moved_base = h.moved_base + part.amount,
             ended_at = CASE WHEN h.moved_base + part.amount = h.amount_base THEN $3::timestamptz END
         FROM UNNEST($1::uuid[], $2::numeric[]) AS part (id, amount)
         WHERE h.source_kind = 'withdrawal' AND h.source_id = part.id AND part.amount > 0",
        &ids,
        &amounts,
        now,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}
