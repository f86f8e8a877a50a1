//! Locks on a part of an owner's balance: a budget of a job or of calls, a withdrawal on its way, the price of a purchase,
//! or the reward of a contribution.

use std::collections::{BTreeSet, HashMap, HashSet};

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    id::{AllowanceId, ContributionId, HoldId, JobId, PurchaseId, ReleaseId},
    ledger::{AccountKey, Entry, EntryKind, Lines, Source},
};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    PgTransaction,
    codec::{to_address, to_amount, to_numeric},
    exits,
    ledger::{self, PostError},
};

/// What a hold is for. Each has one hold, ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldSource {
    /// The budget of a job.
    Job(JobId),
    /// Money on its way out.
    Withdrawal(ReleaseId),
    /// The price of a purchase.
    Purchase(PurchaseId),
    /// The reward of a contribution.
    Contribution(ContributionId),
    /// The budget of calls.
    Allowance(AllowanceId),
}

/// A lock that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    /// What it is for.
    pub source: HoldSource,
    /// Whose money.
    pub owner: Address,
    /// Row of `assets`.
    pub asset_id: i32,
    /// How much.
    pub amount: Amount,
}

/// A lock that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlacedHold {
    /// Its row.
    pub id: HoldId,
    /// What was asked for.
    pub hold: Hold,
    /// What still stands in the owner's `held` for it while it is open.
    pub left: Amount,
    /// When it ended.
    pub ended_at: Option<OffsetDateTime>,
}

/// Why a hold was not placed or released.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// The owner has less available.
    #[error("insufficient funds: {available} base units are available")]
    InsufficientFunds {
        /// What the owner has.
        available: Amount,
    },
    /// The owner asked the contract to leave: nothing is spent for it until that is answered.
    #[error("the owner is leaving")]
    Leaving,
    /// The source has its hold already.
    #[error("the source has its hold already")]
    AlreadyPlaced,
    /// Nothing is held for the source, or no longer.
    #[error("nothing is held for the source")]
    NotHeld,
    /// The entry was refused.
    #[error("post the hold")]
    Post(#[from] PostError),
    /// A statement failed.
    #[error("write the hold")]
    Database(#[from] sqlx::Error),
}

/// Moves money from `available` to `held`.
///
/// # Errors
/// When the owner has less available or is leaving; the transaction stays usable.
pub async fn place(
    tx: &mut PgTransaction<'_>,
    wanted: &Hold,
    now: OffsetDateTime,
) -> Result<HoldId, HoldError> {
    let placed = place_all(tx, std::slice::from_ref(wanted), now).await?;
    placed.into_iter().next().ok_or(HoldError::NotHeld)?
}

/// Moves money from `available` to `held`, one hold after the other, all in a few statements. Each has its own outcome;
/// what one is refused for does not concern the others.
///
/// # Errors
/// When a statement fails: then none is placed, and the transaction is over.
pub async fn place_all(
    tx: &mut PgTransaction<'_>,
    wanted: &[Hold],
    now: OffsetDateTime,
) -> Result<Vec<Result<HoldId, HoldError>>, HoldError> {
    let mut outcomes: Vec<Option<Result<HoldId, HoldError>>> =
        wanted.iter().map(|_| None).collect();
    let assets: BTreeSet<i32> = wanted.iter().map(|hold| hold.asset_id).collect();
    for asset in assets {
        let of_asset: Vec<_> = wanted
            .iter()
            .enumerate()
            .filter(|(_, hold)| hold.asset_id == asset)
            .collect();
        for (place, outcome) in place_of_asset(tx, asset, of_asset, now).await? {
            outcomes[place] = Some(outcome);
        }
    }
    let outcomes = outcomes.into_iter();
    Ok(outcomes
        .map(|outcome| outcome.unwrap_or(Err(HoldError::NotHeld)))
        .collect())
}

async fn place_of_asset(
    tx: &mut PgTransaction<'_>,
    asset_id: i32,
    wanted: Vec<(usize, &Hold)>,
    now: OffsetDateTime,
) -> Result<Vec<(usize, Result<HoldId, HoldError>)>, HoldError> {
    let owners: BTreeSet<_> = wanted.iter().map(|(_, hold)| hold.owner).collect();
    let accounts = owners
        .iter()
        .flat_map(|owner| [AccountKey::Available(*owner), AccountKey::Held(*owner)]);
    ledger::lock(tx, asset_id, accounts).await?;
    let leaving = exits::leaving(tx, asset_id, &owners).await?;
    let mut left = ledger::spendable(tx, asset_id, &owners).await?;
    let (mut outcomes, mut covered, mut entries) = (Vec::new(), Vec::new(), Vec::new());
    for (place, hold) in wanted {
        let available = left.entry(hold.owner).or_default();
        match judge(hold, *available, leaving.contains(&hold.owner)) {
            Ok((entry, rest)) => {
                *available = rest;
                entries.push(entry);
                covered.push((place, hold));
            }
            Err(refused) => outcomes.push((place, Err(refused))),
        }
    }
    let posted = ledger::post_all_locked(tx, asset_id, &entries, now).await?;
    let mut placed = Vec::with_capacity(covered.len());
    for ((place, hold), posted) in covered.into_iter().zip(posted) {
        match posted {
            Some(_) => placed.push((place, HoldId::generate(), hold)),
            None => outcomes.push((place, Err(HoldError::AlreadyPlaced))),
        }
    }
    insert_all(tx, &placed, now).await?;
    outcomes.extend(placed.into_iter().map(|(place, id, _)| (place, Ok(id))));
    Ok(outcomes)
}

/// The entry of a hold, and what its owner has left after it.
fn judge(hold: &Hold, available: Amount, is_leaving: bool) -> Result<(Entry, Amount), HoldError> {
    if is_leaving {
        return Err(HoldError::Leaving);
    }
    let rest = available
        .checked_sub(hold.amount)
        .ok_or(HoldError::InsufficientFunds { available })?;
    let entry = Lines::default()
        .debit(AccountKey::Available(hold.owner), hold.amount)
        .credit(AccountKey::Held(hold.owner), hold.amount)
        .into_entry(EntryKind::Hold, hold.source.placed())
        .map_err(PostError::from)?;
    Ok((entry, rest))
}

async fn insert_all(
    tx: &mut PgTransaction<'_>,
    placed: &[(usize, HoldId, &Hold)],
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    let ids: Vec<_> = placed.iter().map(|(_, id, _)| id.0).collect();
    let holds = || placed.iter().map(|(_, _, hold)| *hold);
    let assets: Vec<_> = holds().map(|it| it.asset_id).collect();
    let owners: Vec<_> = holds().map(|it| it.owner.to_vec()).collect();
    let kinds: Vec<_> = holds().map(|it| it.source.kind().to_owned()).collect();
    let sources: Vec<_> = holds().map(|it| it.source.id()).collect();
    let amounts: Vec<_> = holds().map(|it| to_numeric(it.amount)).collect();
    sqlx::query!(
        "INSERT INTO holds (hold_id, asset_id, owner, source_kind, source_id, amount_base, created_at)
         SELECT it.id, it.asset, it.owner, it.source_kind, it.source_id, it.amount, $7
         FROM UNNEST($1::uuid[], $2::integer[], $3::bytea[], $4::text[], $5::uuid[], $6::numeric[])
             AS it (id, asset, owner, source_kind, source_id, amount)",
        &ids,
        &assets,
        &owners,
        &kinds,
        &sources,
        &amounts,
        now,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}

/// Moves what is left of a hold back to `available` and ends it.
///
/// # Errors
/// When nothing is held for the source, or no longer; the transaction stays usable.
pub async fn release(
    tx: &mut PgTransaction<'_>,
    source: HoldSource,
    now: OffsetDateTime,
) -> Result<Amount, HoldError> {
    let Hold {
        owner, asset_id, ..
    } = find(tx, source).await?.ok_or(HoldError::NotHeld)?.hold;
    let (available, held) = (AccountKey::Available(owner), AccountKey::Held(owner));
    ledger::lock(tx, asset_id, [available, held]).await?;
    let left = end(tx, source, now).await?;
    let entry = Lines::default()
        .debit(held, left)
        .credit(available, left)
        .into_entry(EntryKind::HoldRelease, source.released())
        .map_err(PostError::from)?;
    ledger::post_locked(tx, asset_id, &entry, now).await?;
    Ok(left)
}

/// The hold of a source.
///
/// # Errors
/// When the statement fails.
pub async fn find(conn: &mut PgConnection, source: HoldSource) -> sqlx::Result<Option<PlacedHold>> {
    let mut found = find_all(conn, &[source]).await?;
    Ok(found.remove(&source.id()))
}

/// The holds of sources of one kind, by the source's identifier.
///
/// # Errors
/// When the statement fails.
pub(crate) async fn find_all(
    conn: &mut PgConnection,
    sources: &[HoldSource],
) -> sqlx::Result<HashMap<Uuid, PlacedHold>> {
    let kinds: Vec<_> = sources.iter().map(|it| it.kind().to_owned()).collect();
    let ids: Vec<_> = sources.iter().map(|it| it.id()).collect();
    let by_id: HashMap<_, _> = sources.iter().map(|it| (it.id(), *it)).collect();
    let rows = sqlx::query!(
        r#"SELECT holds.source_id, hold_id, asset_id, owner, amount_base, amount_base - moved_base AS "left_base!", ended_at
           FROM UNNEST($1::text[], $2::uuid[]) AS it (source_kind, source_id) JOIN holds USING (source_kind, source_id)"#,
        &kinds,
        &ids,
    )
    .fetch_all(conn)
    .await?;
    let mut found = HashMap::with_capacity(rows.len());
    for row in rows {
        let Some(source) = by_id.get(&row.source_id) else {
            continue;
        };
        let hold = Hold {
            source: *source,
            owner: to_address("owner", &row.owner)?,
            asset_id: row.asset_id,
            amount: to_amount("amount_base", &row.amount_base)?,
        };
        let placed = PlacedHold {
            id: HoldId(row.hold_id),
            hold,
            left: to_amount("left_base", &row.left_base)?,
            ended_at: row.ended_at,
        };
        found.insert(row.source_id, placed);
    }
    Ok(found)
}

/// Ends an open hold: what was left of it. The caller has locked the owner's `held` and posts what becomes of it.
pub(crate) async fn end(
    tx: &mut PgTransaction<'_>,
    source: HoldSource,
    now: OffsetDateTime,
) -> Result<Amount, HoldError> {
    let left = sqlx::query_scalar!(
        r#"UPDATE holds SET ended_at = $3
           WHERE source_kind = $1 AND source_id = $2 AND ended_at IS NULL
           RETURNING amount_base - moved_base AS "left_base!""#,
        source.kind(),
        source.id(),
        now,
    )
    .fetch_optional(&mut **tx)
    .await?;
    Ok(to_amount("left_base", &left.ok_or(HoldError::NotHeld)?)?)
}

/// Ends holds that are open; which those were. The caller has locked the owners' `held` and posts what becomes of them.
pub(crate) async fn end_all(
    tx: &mut PgTransaction<'_>,
    holds: &[HoldId],
    now: OffsetDateTime,
) -> sqlx::Result<HashSet<HoldId>> {
    let ids: Vec<_> = holds.iter().map(|it| it.0).collect();
    let ended = sqlx::query_scalar!(
        "UPDATE holds SET ended_at = $2 WHERE hold_id = ANY ($1) AND ended_at IS NULL RETURNING hold_id",
        &ids,
        now,
    )
    .fetch_all(&mut **tx)
    .await?;
    Ok(ended.into_iter().map(HoldId).collect())
}

impl HoldSource {
    pub(crate) const fn kind(self) -> &'static str {
        match self {
            Self::Job(_) => "job",
            Self::Withdrawal(_) => "withdrawal",
            Self::Purchase(_) => "purchase",
            Self::Contribution(_) => "contribution",
            Self::Allowance(_) => "allowance",
        }
    }

    pub(crate) const fn id(self) -> Uuid {
        match self {
            Self::Job(id) => id.0,
            Self::Withdrawal(id) => id.0,
            Self::Purchase(id) => id.0,
            Self::Contribution(id) => id.0,
            Self::Allowance(id) => id.0,
        }
    }

    const fn placed(self) -> Source {
        match self {
            Self::Job(id) => Source::JobHold(id),
            Self::Withdrawal(id) => Source::WithdrawalHold(id),
            Self::Purchase(id) => Source::PurchaseHold(id),
            Self::Contribution(id) => Source::ContributionHold(id),
            Self::Allowance(id) => Source::AllowanceHold(id),
        }
    }

    const fn released(self) -> Source {
        match self {
            Self::Job(id) => Source::JobHoldRelease(id),
            Self::Withdrawal(id) => Source::WithdrawalHoldRelease(id),
            Self::Purchase(id) => Source::PurchaseHoldRelease(id),
            Self::Contribution(id) => Source::ContributionHoldRelease(id),
            Self::Allowance(id) => Source::AllowanceHoldRelease(id),
        }
    }
}
