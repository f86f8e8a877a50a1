//! Locks on a part of an owner's balance: a budget of a job, or a withdrawal on its way.

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    id::{HoldId, JobId, ReleaseId},
    ledger::{AccountKey, EntryKind, Lines, Source},
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
    let Hold {
        source,
        owner,
        asset_id,
        amount,
    } = *wanted;
    let (available, held) = (AccountKey::Available(owner), AccountKey::Held(owner));
    ledger::lock(tx, asset_id, [available, held]).await?;
    if exits::is_leaving(tx, asset_id, owner).await? {
        return Err(HoldError::Leaving);
    }
    let balance = ledger::balances(tx, owner, asset_id).await?.available;
    if balance < amount {
        return Err(HoldError::InsufficientFunds { available: balance });
    }
    let entry = Lines::default()
        .debit(available, amount)
        .credit(held, amount)
        .into_entry(EntryKind::Hold, source.placed())
        .map_err(PostError::from)?;
    match ledger::post_locked(tx, asset_id, &entry, now).await {
        Err(PostError::AlreadyPosted) => return Err(HoldError::AlreadyPlaced),
        posted => posted?,
    };
    let id = HoldId::generate();
    sqlx::query!(
        "INSERT INTO holds (hold_id, asset_id, owner, source_kind, source_id, amount_base, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        id.0,
        asset_id,
        owner.as_slice(),
        source.kind(),
        source.id(),
        to_numeric(amount),
        now,
    )
    .execute(&mut **tx)
    .await?;
    Ok(id)
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
    let row = sqlx::query!(
        r#"SELECT hold_id, asset_id, owner, amount_base, amount_base - moved_base AS "left_base!", ended_at
           FROM holds WHERE source_kind = $1 AND source_id = $2"#,
        source.kind(),
        source.id(),
    )
    .fetch_optional(conn)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let hold = Hold {
        source,
        owner: to_address("owner", &row.owner)?,
        asset_id: row.asset_id,
        amount: to_amount("amount_base", &row.amount_base)?,
    };
    let left = to_amount("left_base", &row.left_base)?;
    Ok(Some(PlacedHold {
        id: HoldId(row.hold_id),
        hold,
        left,
        ended_at: row.ended_at,
    }))
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

impl HoldSource {
    const fn kind(self) -> &'static str {
        match self {
            Self::Job(_) => "job",
            Self::Withdrawal(_) => "withdrawal",
        }
    }

    const fn id(self) -> Uuid {
        match self {
            Self::Job(id) => id.0,
            Self::Withdrawal(id) => id.0,
        }
    }

    const fn placed(self) -> Source {
        match self {
            Self::Job(id) => Source::JobHold(id),
            Self::Withdrawal(id) => Source::WithdrawalHold(id),
        }
    }

    const fn released(self) -> Source {
        match self {
            Self::Job(id) => Source::JobHoldRelease(id),
            Self::Withdrawal(id) => Source::WithdrawalHoldRelease(id),
        }
    }
}
