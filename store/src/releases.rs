//! Money on its way to be claimable: earnings and fees by themselves, withdrawals when they are asked for.
//! Each seal takes what is queued, oldest first, as far as the contract's caps allow.

use std::collections::BTreeMap;

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    id::{AccountId, ReleaseId},
    ledger::{AccountKey, EntryKind, Lines, Source},
};
use sqlx::{PgConnection, types::BigDecimal};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    PgTransaction,
    codec::{to_address, to_amount, to_enum, to_numeric},
    holds::{self, Hold, HoldError, HoldSource},
    ledger::{self, PostError},
};

/// Most rows that one call of [`release_queued`] takes.
pub const RELEASES_MAX: i64 = 2_000;

/// Where released money comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReleaseKind {
    /// A payee's part of a charge; as much of it as it has not spent.
    Earning,
    /// The platform's part of a charge.
    Fees,
    /// What an owner asked for; it is held until then.
    Withdrawal,
}

/// Where a release stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReleaseState {
    /// It waits for a seal, perhaps for its second part.
    Queued,
    /// It is claimable on-chain with the batch that follows.
    Released,
    /// It was taken back, or its money was spent before a seal came.
    Cancelled,
}

/// Money on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Release {
    /// Its row.
    pub id: ReleaseId,
    /// Whose money.
    pub owner: Address,
    /// Where it comes from.
    pub kind: ReleaseKind,
    /// How much was asked for or earned.
    pub amount: Amount,
    /// How much is released so far.
    pub released: Amount,
    /// Where it stands.
    pub state: ReleaseState,
    /// When it was queued.
    pub created_at: OffsetDateTime,
    /// When the last part was released.
    pub released_at: Option<OffsetDateTime>,
}

/// What is to be queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NewRelease {
    pub owner: Address,
    pub kind: ReleaseKind,
    pub amount: Amount,
}

/// Why a withdrawal was not made or cancelled.
#[derive(Debug, thiserror::Error)]
pub enum WithdrawalError {
    /// A withdrawal of nothing.
    #[error("a withdrawal moves at least one base unit")]
    Nothing,
    /// None of this account has that identifier.
    #[error("no such withdrawal")]
    NotFound,
    /// It is released.
    #[error("the withdrawal is released")]
    AlreadyReleased,
    /// The money could not be held or given back.
    #[error("hold the withdrawal")]
    Hold(#[from] HoldError),
    /// A statement failed.
    #[error("write the withdrawal")]
    Database(#[from] sqlx::Error),
}

/// Queues what payees and the platform earned, for those that want it released by itself. The platform wants
/// it unless an account that is bound to its address says otherwise.
pub(crate) async fn queue(
    conn: &mut PgConnection,
    asset_id: i32,
    earned: &[NewRelease],
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    let ids: Vec<_> = earned.iter().map(|_| ReleaseId::generate().0).collect();
    let owners: Vec<_> = earned.iter().map(|it| it.owner.to_vec()).collect();
    let kinds: Vec<_> = earned
        .iter()
        .map(|it| it.kind.as_str().to_owned())
        .collect();
    let amounts: Vec<_> = earned.iter().map(|it| to_numeric(it.amount)).collect();
    sqlx::query!(
        "INSERT INTO releases (release_id, asset_id, owner, kind, amount_base, created_at)
         SELECT it.id, $1, it.owner, it.kind, it.amount, $6
         FROM UNNEST($2::uuid[], $3::bytea[], $4::text[], $5::numeric[]) AS it (id, owner, kind, amount)
         LEFT JOIN accounts ON accounts.address = it.owner
         WHERE coalesce(accounts.auto_release, it.kind = 'fees')",
        asset_id,
        &ids,
        &owners,
        &kinds,
        &amounts,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Holds an owner's money and queues it for the next seals.
///
/// # Errors
/// When the owner has less available.
pub async fn request_withdrawal(
    tx: &mut PgTransaction<'_>,
    asset_id: i32,
    (account, owner): (AccountId, Address),
    amount: Amount,
    now: OffsetDateTime,
) -> Result<Release, WithdrawalError> {
    if amount.is_zero() {
        return Err(WithdrawalError::Nothing);
    }
    let id = ReleaseId::generate();
    let source = HoldSource::Withdrawal(id);
    holds::place(
        tx,
        &Hold {
            source,
            owner,
            asset_id,
            amount,
        },
        now,
    )
    .await?;
    sqlx::query!(
        "INSERT INTO releases (release_id, asset_id, owner, kind, amount_base, account_id, created_at)
         VALUES ($1, $2, $3, 'withdrawal', $4, $5, $6)",
        id.0,
        asset_id,
        owner.as_slice(),
        to_numeric(amount),
        account.0,
        now,
    )
    .execute(&mut **tx)
    .await?;
    Ok(Release {
        id,
        owner,
        kind: ReleaseKind::Withdrawal,
        amount,
        released: Amount::ZERO,
        state: ReleaseState::Queued,
        created_at: now,
        released_at: None,
    })
}

/// Takes back what is not released of a withdrawal. Cancelling it again changes nothing.
///
/// # Errors
/// When there is none of this account, or it is released.
pub async fn cancel_withdrawal(
    tx: &mut PgTransaction<'_>,
    account: AccountId,
    id: ReleaseId,
    now: OffsetDateTime,
) -> Result<Release, WithdrawalError> {
    let release = find_withdrawal(tx, account, id)
        .await?
        .ok_or(WithdrawalError::NotFound)?;
    match release.state {
        ReleaseState::Cancelled => return Ok(release),
        ReleaseState::Released => return Err(WithdrawalError::AlreadyReleased),
        ReleaseState::Queued => {}
    }
    // The hold decides against a seal or another cancellation of the same moment.
    match holds::release(tx, HoldSource::Withdrawal(id), now).await {
        Err(HoldError::NotHeld) => {}
        released => {
            released?;
            sqlx::query!("UPDATE releases SET state = 'cancelled' WHERE release_id = $1 AND state = 'queued'", id.0)
                .execute(&mut **tx)
                .await?;
        }
    }
    let release = find_withdrawal(tx, account, id)
        .await?
        .ok_or(WithdrawalError::NotFound)?;
    if release.state == ReleaseState::Cancelled {
        Ok(release)
    } else {
        Err(WithdrawalError::AlreadyReleased)
    }
}

/// A withdrawal of this account.
///
/// # Errors
/// When the statement fails.
pub async fn find_withdrawal(
    conn: &mut PgConnection,
    account: AccountId,
    id: ReleaseId,
) -> sqlx::Result<Option<Release>> {
    let row = sqlx::query_as!(
        Row,
        "SELECT release_id, owner, kind, amount_base, released_base, state, created_at, released_at
         FROM releases WHERE release_id = $1 AND account_id = $2",
        id.0,
        account.0,
    )
    .fetch_optional(conn)
    .await?;
    row.map(Row::decode).transpose()
}

/// The withdrawals of this account, newest first, older than `before`.
///
/// # Errors
/// When the statement fails.
pub async fn list_withdrawals(
    conn: &mut PgConnection,
    account: AccountId,
    before: Option<ReleaseId>,
    limit: i64,
) -> sqlx::Result<Vec<Release>> {
    let rows = sqlx::query_as!(
        Row,
        "SELECT release_id, owner, kind, amount_base, released_base, state, created_at, released_at
         FROM releases WHERE account_id = $1 AND ($2::uuid IS NULL OR release_id < $2)
         ORDER BY release_id DESC LIMIT $3",
        account.0,
        before.map(|id| id.0),
        limit,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Row::decode).collect()
}

/// What waits for a seal, oldest first.
///
/// # Errors
/// When the statement fails.
pub async fn queued(
    conn: &mut PgConnection,
    asset_id: i32,
    limit: i64,
) -> sqlx::Result<Vec<Release>> {
    let rows = sqlx::query_as!(
        Row,
        "SELECT release_id, owner, kind, amount_base, released_base, state, created_at, released_at
         FROM releases WHERE asset_id = $1 AND state = 'queued' ORDER BY release_id LIMIT $2",
        asset_id,
        limit,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Row::decode).collect()
}

/// What waits for a seal of one owner's.
///
/// # Errors
/// When the statement fails.
pub async fn queued_of(
    conn: &mut PgConnection,
    asset_id: i32,
    owner: Address,
) -> sqlx::Result<Amount> {
    let left = sqlx::query_scalar!(
        r#"SELECT coalesce(sum(amount_base - released_base), 0) AS "left!" FROM releases
           WHERE asset_id = $1 AND owner = $2 AND state = 'queued'"#,
        asset_id,
        owner.as_slice(),
    )
    .fetch_one(conn)
    .await?;
    to_amount("left", &left)
}

/// Moves what is queued to `payable`, oldest first, `at_most` in all and [`RELEASES_MAX`] rows at once, in one
/// entry that `seal` names. What it returns is how much it moved.
///
/// Wants READ COMMITTED: it waits for the accounts and then reads what they became.
///
/// # Errors
/// When the seal has its entry already, or a statement fails.
pub async fn release_queued(
    tx: &mut PgTransaction<'_>,
    asset_id: i32,
    seal: &str,
    at_most: Amount,
    now: OffsetDateTime,
) -> Result<Amount, PostError> {
    let waiting = queued(tx, asset_id, RELEASES_MAX).await?;
    let accounts = waiting
        .iter()
        .flat_map(|it| [it.kind.from(it.owner), AccountKey::Payable(it.owner)]);
    ledger::lock(tx, asset_id, accounts).await?;
    let ids: Vec<_> = waiting.iter().map(|it| it.id.0).collect();
    let steps = plan(tx, asset_id, &ids, at_most).await?;
    let mut lines = Lines::default();
    for it in &steps {
        let from = it.release.kind.from(it.release.owner);
        lines = lines
            .debit(from, it.moved)
            .credit(AccountKey::Payable(it.release.owner), it.moved);
    }
    save(tx, &steps, now).await?;
    let moved = Amount::sum(steps.iter().map(|it| it.moved)).expect("at most `at_most`");
    if !moved.is_zero() {
        let entry = lines.into_entry(EntryKind::Release, Source::Seal(seal.to_owned()))?;
        ledger::post_locked(tx, asset_id, &entry, now).await?;
    }
    Ok(moved)
}

/// What one seal does to one release.
struct Move {
    release: Release,
    moved: Amount,
    /// Nothing of it waits any longer.
    ended: bool,
}

/// Decides under the locks on the accounts: each release takes what it wants, has and may.
async fn plan(
    conn: &mut PgConnection,
    asset_id: i32,
    ids: &[Uuid],
    at_most: Amount,
) -> sqlx::Result<Vec<Move>> {
    let rows = sqlx::query_as!(
        Row,
        "SELECT release_id, owner, kind, amount_base, released_base, state, created_at, released_at
         FROM releases WHERE release_id = ANY ($1) AND state = 'queued' ORDER BY release_id",
        ids,
    )
    .fetch_all(&mut *conn)
    .await?;
    let releases = rows
        .into_iter()
        .map(Row::decode)
        .collect::<sqlx::Result<Vec<_>>>()?;
    let sources: Vec<_> = releases
        .iter()
        .map(|it| it.kind.from(it.owner).id(asset_id).0)
        .collect();
    let balances = sqlx::query!(
        "SELECT ledger_account_id, balance_base FROM ledger_accounts WHERE ledger_account_id = ANY ($1)",
        &sources,
    )
    .fetch_all(conn)
    .await?;
    let mut left = BTreeMap::new();
    for row in balances {
        left.insert(
            row.ledger_account_id,
            to_amount("balance_base", &row.balance_base)?,
        );
    }
    let mut allowed = at_most;
    let mut steps = Vec::with_capacity(releases.len());
    for (release, source) in releases.into_iter().zip(sources) {
        if allowed.is_zero() {
            break;
        }
        let has = left.entry(source).or_default();
        let wants = release
            .amount
            .checked_sub(release.released)
            .expect("`releases_not_more`")
            .min(*has);
        let moved = wants.min(allowed);
        *has = has.checked_sub(moved).expect("at most what it has");
        allowed = allowed.checked_sub(moved).expect("at most what is allowed");
        steps.push(Move {
            release,
            moved,
            ended: moved == wants,
        });
    }
    Ok(steps)
}

async fn save(tx: &mut PgTransaction<'_>, steps: &[Move], now: OffsetDateTime) -> sqlx::Result<()> {
    let ids: Vec<_> = steps.iter().map(|it| it.release.id.0).collect();
    let moved: Vec<_> = steps.iter().map(|it| to_numeric(it.moved)).collect();
    let ended: Vec<_> = steps.iter().map(|it| it.ended).collect();
    sqlx::query!(
        "UPDATE releases SET
             released_base = released_base + it.moved,
             state = CASE WHEN NOT it.ended THEN 'queued' WHEN released_base + it.moved > 0 THEN 'released' ELSE 'cancelled' END,
             released_at = CASE WHEN it.ended AND released_base + it.moved > 0 THEN $4::timestamptz END
         FROM UNNEST($1::uuid[], $2::numeric[], $3::boolean[]) AS it (id, moved, ended)
         WHERE release_id = it.id",
        &ids,
        &moved,
        &ended,
        now,
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "UPDATE holds SET
             moved_base = moved_base + it.moved,
             ended_at = CASE WHEN it.ended THEN $4::timestamptz END
         FROM UNNEST($1::uuid[], $2::numeric[], $3::boolean[]) AS it (id, moved, ended)
         WHERE source_kind = 'withdrawal' AND source_id = it.id",
        &ids,
        &moved,
        &ended,
        now,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

impl ReleaseKind {
    /// The text form.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Earning => "earning",
            Self::Fees => "fees",
            Self::Withdrawal => "withdrawal",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Earning, Self::Fees, Self::Withdrawal]
            .into_iter()
            .find(|it| it.as_str() == text)
    }

    /// The account that it comes from.
    const fn from(self, owner: Address) -> AccountKey {
        match self {
            Self::Earning => AccountKey::Available(owner),
            Self::Fees => AccountKey::Fees,
            Self::Withdrawal => AccountKey::Held(owner),
        }
    }
}

impl ReleaseState {
    /// The text form.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Released => "released",
            Self::Cancelled => "cancelled",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Queued, Self::Released, Self::Cancelled]
            .into_iter()
            .find(|it| it.as_str() == text)
    }
}

struct Row {
    release_id: Uuid,
    owner: Vec<u8>,
    kind: String,
    amount_base: BigDecimal,
    released_base: BigDecimal,
    state: String,
    created_at: OffsetDateTime,
    released_at: Option<OffsetDateTime>,
}

impl Row {
    fn decode(self) -> sqlx::Result<Release> {
        Ok(Release {
            id: ReleaseId(self.release_id),
            owner: to_address("owner", &self.owner)?,
            kind: to_enum("kind", &self.kind, ReleaseKind::parse)?,
            amount: to_amount("amount_base", &self.amount_base)?,
            released: to_amount("released_base", &self.released_base)?,
            state: to_enum("state", &self.state, ReleaseState::parse)?,
            created_at: self.created_at,
            released_at: self.released_at,
        })
    }
}
