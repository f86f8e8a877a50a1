//! Takedowns: somebody says that a dataset must not be here, and what becomes of that. The dataset follows by itself: `datasets.blocked_by` is
//! kept by the database.

use comptoir_domain::{
    id::{AccountId, DatasetId, TakedownId},
    takedown::{Act, Ground, OPEN_MAX, TakedownState},
};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{PgTransaction, accounts, codec::to_enum};

/// That somebody wants a dataset to be blocked.
#[derive(Debug, Clone)]
pub struct Takedown {
    /// Which.
    pub id: TakedownId,
    /// What is to be blocked.
    pub dataset: DatasetId,
    /// Whose that is.
    pub seller: AccountId,
    /// Who filed it.
    pub account: AccountId,
    /// Why.
    pub ground: Ground,
    /// The words of who filed it.
    pub statement: String,
    /// Where it stands.
    pub state: TakedownState,
    /// The seller's words.
    pub answer: Option<String>,
    /// Why an operator decided as it did.
    pub reason: Option<String>,
    /// When it was filed.
    pub created_at: OffsetDateTime,
    /// When it was frozen.
    pub frozen_at: Option<OffsetDateTime>,
    /// When it was contested.
    pub contested_at: Option<OffsetDateTime>,
    /// When its clock has run out.
    pub due_at: Option<OffsetDateTime>,
    /// When it was decided.
    pub ended_at: Option<OffsetDateTime>,
}

/// A takedown to file.
#[derive(Debug, Clone, Copy)]
pub struct NewTakedown<'a> {
    /// By whom.
    pub account: AccountId,
    /// Of what.
    pub dataset: DatasetId,
    /// Whose that is.
    pub seller: AccountId,
    /// Why.
    pub ground: Ground,
    /// In what words.
    pub statement: &'a str,
}

/// Why a takedown is not filed.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The dataset is the account's own.
    #[error("the dataset is the account's own")]
    Own,
    /// The account has filed one that is not decided.
    #[error("the account filed {0} already")]
    Filed(TakedownId),
    /// So many of the account's were not looked at.
    #[error("{OPEN_MAX} takedowns of the account were not looked at")]
    TooMany,
    /// A statement failed.
    #[error("file a takedown")]
    Database(#[from] sqlx::Error),
}

/// Why nothing is done with a takedown.
#[derive(Debug, thiserror::Error)]
pub enum ActError {
    /// There is none that the account may do this with.
    #[error("no such takedown")]
    NotFound,
    /// It stands where this cannot be done.
    #[error("the takedown is {0}")]
    Stands(TakedownState),
    /// Whoever sells it does not decide it, nor does who filed it say that it is right.
    #[error("the takedown is the administrator's own")]
    OwnCase,
    /// Its clock has run out.
    #[error("the time of the takedown is over")]
    Overdue,
    /// A statement failed.
    #[error("decide a takedown")]
    Database(#[from] sqlx::Error),
}

/// Which takedowns are listed.
#[derive(Debug, Clone, Copy)]
pub enum Side {
    /// Those that the account filed.
    Claimant(AccountId),
    /// Those of the account's datasets.
    Seller(AccountId),
    /// All.
    Operator,
}

/// Files a takedown of somebody else's dataset. Nothing changes before an operator has looked at it. The transaction must see everybody.
///
/// # Errors
/// When it is not filed; the caller rolls back.
pub async fn file(
    tx: &mut PgTransaction<'_>,
    new: &NewTakedown<'_>,
    now: OffsetDateTime,
) -> Result<TakedownId, FileError> {
    if new.seller == new.account {
        return Err(FileError::Own);
    }
    accounts::lock(tx, new.account).await?;
    let open = sqlx::query!(
        "SELECT takedown_id, dataset_id FROM takedowns WHERE account_id = $1 AND (state = 'filed' OR dataset_id = $2 AND ended_at IS NULL)",
        new.account.0,
        new.dataset.0,
    )
    .fetch_all(&mut **tx)
    .await?;
    if let Some(it) = open.iter().find(|it| it.dataset_id == new.dataset.0) {
        return Err(FileError::Filed(TakedownId(it.takedown_id)));
    }
    if i64::try_from(open.len()).unwrap_or(i64::MAX) >= OPEN_MAX {
        return Err(FileError::TooMany);
    }
    let id = TakedownId::generate();
    sqlx::query!(
        "INSERT INTO takedowns (takedown_id, dataset_id, seller_id, account_id, ground, statement, state, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, 'filed', $7)",
        id.0,
        new.dataset.0,
        new.seller.0,
        new.account.0,
        new.ground.as_str(),
        new.statement,
        now,
    )
    .execute(&mut **tx)
    .await?;
    Ok(id)
}

/// A takedown that the connection may see.
///
/// # Errors
/// When the statement fails, or what is stored is not a takedown.
pub async fn find(conn: &mut PgConnection, id: TakedownId) -> sqlx::Result<Option<Takedown>> {
    Ok(find_all(conn, &[id.0]).await?.pop())
}

async fn find_all(conn: &mut PgConnection, ids: &[Uuid]) -> sqlx::Result<Vec<Takedown>> {
    let rows = sqlx::query_as!(
        Row,
        "SELECT takedown_id, dataset_id, seller_id, account_id, ground, statement, state, answer, reason, created_at, frozen_at, contested_at,
             due_at, ended_at
         FROM takedowns WHERE takedown_id = ANY ($1) ORDER BY takedown_id DESC",
        ids,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Takedown::try_from).collect()
}

/// Takedowns of one side, newest first, older than `before`.
///
/// # Errors
/// When the statement fails, or what is stored is not a takedown.
pub async fn list(
    conn: &mut PgConnection,
    side: Side,
    state: Option<TakedownState>,
    before: Option<TakedownId>,
    limit: i64,
) -> sqlx::Result<Vec<Takedown>> {
    let (claimant, seller) = match side {
        Side::Claimant(account) => (Some(account.0), None),
        Side::Seller(account) => (None, Some(account.0)),
        Side::Operator => (None, None),
    };
    let ids = sqlx::query_scalar!(
        "SELECT takedown_id FROM takedowns
         WHERE ($1::uuid IS NULL OR account_id = $1) AND ($2::uuid IS NULL OR seller_id = $2) AND ($3::text IS NULL OR state = $3)
             AND ($4::uuid IS NULL OR takedown_id < $4)
         ORDER BY takedown_id DESC LIMIT $5",
        claimant,
        seller,
        state.map(TakedownState::as_str),
        before.map(|it| it.0),
        limit,
    )
    .fetch_all(&mut *conn)
    .await?;
    find_all(conn, &ids).await
}

/// Contests a freeze, for the seller.
///
/// # Errors
/// When there is none, or it is too late.
pub async fn contest(
    tx: &mut PgTransaction<'_>,
    (seller, id): (AccountId, TakedownId),
    answer: &str,
    now: OffsetDateTime,
) -> Result<(), ActError> {
    let takedown = lock(tx, id).await?.filter(|it| it.seller == seller);
    let takedown = takedown.ok_or(ActError::NotFound)?;
    let next = next(&takedown, Act::Contest, now)?;
    sqlx::query!(
        "UPDATE takedowns SET state = $2, reason = NULL, answer = $3, contested_at = $4, due_at = $5 WHERE takedown_id = $1",
        id.0,
        next.as_str(),
        answer,
        now,
        next.lasts().map(|it| now.saturating_add(it)),
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Takes a takedown back, for who filed it. Again changes nothing.
///
/// # Errors
/// When there is none, or it was decided.
pub async fn withdraw(
    tx: &mut PgTransaction<'_>,
    (account, id): (AccountId, TakedownId),
    now: OffsetDateTime,
) -> Result<(), ActError> {
    let takedown = lock(tx, id).await?.filter(|it| it.account == account);
    let takedown = takedown.ok_or(ActError::NotFound)?;
    if takedown.state == TakedownState::Withdrawn {
        return Ok(());
    }
    end(tx, id, next(&takedown, Act::Withdraw, now)?, now).await
}

/// Does what an operator decided, who is not party to it: freezes, dismisses, upholds or rejects.
///
/// # Errors
/// When there is none, or that cannot be done to it now.
pub async fn decide(
    tx: &mut PgTransaction<'_>,
    (by, id): (AccountId, TakedownId),
    (act, reason): (Act, &str),
    now: OffsetDateTime,
) -> Result<Takedown, ActError> {
    let takedown = lock(tx, id).await?.ok_or(ActError::NotFound)?;
    if by == takedown.seller || by == takedown.account && act == Act::Uphold {
        return Err(ActError::OwnCase);
    }
    let next = next(&takedown, act, now)?;
    sqlx::query!(
        "UPDATE takedowns SET state = $2, reason = $3, frozen_at = coalesce(frozen_at, $4), due_at = $5, ended_at = $6 WHERE takedown_id = $1",
        id.0,
        next.as_str(),
        reason,
        (next == TakedownState::Frozen).then_some(now),
        next.lasts().map(|it| now.saturating_add(it)),
        next.is_final().then_some(now),
    )
    .execute(&mut **tx)
    .await?;
    find(tx, id).await?.ok_or(ActError::NotFound)
}

/// Takedowns whose clock has run out, the oldest first.
///
/// # Errors
/// When the statement fails.
pub async fn overdue(
    conn: &mut PgConnection,
    now: OffsetDateTime,
    limit: i64,
) -> sqlx::Result<Vec<TakedownId>> {
    let ids = sqlx::query_scalar!(
        "SELECT takedown_id FROM takedowns WHERE due_at <= $1 ORDER BY due_at LIMIT $2",
        now,
        limit,
    )
    .fetch_all(conn)
    .await?;
    Ok(ids.into_iter().map(TakedownId).collect())
}

/// Decides a takedown whose clock has run out. `None`: it has not, or somebody else was quicker.
///
/// # Errors
/// When the statement fails.
pub async fn expire(
    tx: &mut PgTransaction<'_>,
    id: TakedownId,
    now: OffsetDateTime,
) -> Result<Option<(Takedown, Act)>, ActError> {
    let takedown = lock(tx, id).await?.ok_or(ActError::NotFound)?;
    let overdue = takedown.due_at.is_some_and(|it| it <= now);
    let Some(act) = takedown.state.overdue().filter(|_| overdue) else {
        return Ok(None);
    };
    end(tx, id, act.leads_to(), now).await?;
    Ok(find(tx, id).await?.map(|it| (it, act)))
}

/// What it is after the act. A clock that has run out has decided already, though its step may be late.
fn next(takedown: &Takedown, act: Act, now: OffsetDateTime) -> Result<TakedownState, ActError> {
    let state = takedown.state;
    let next = state.after(act).ok_or(ActError::Stands(state))?;
    if takedown.due_at.is_some_and(|it| it <= now) {
        return Err(ActError::Overdue);
    }
    Ok(next)
}

async fn end(
    tx: &mut PgTransaction<'_>,
    id: TakedownId,
    state: TakedownState,
    now: OffsetDateTime,
) -> Result<(), ActError> {
    sqlx::query!(
        "UPDATE takedowns SET state = $2, reason = NULL, due_at = NULL, ended_at = $3 WHERE takedown_id = $1",
        id.0,
        state.as_str(),
        now,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

async fn lock(tx: &mut PgTransaction<'_>, id: TakedownId) -> sqlx::Result<Option<Takedown>> {
    let locked = sqlx::query_scalar!(
        "SELECT takedown_id FROM takedowns WHERE takedown_id = $1 FOR NO KEY UPDATE",
        id.0,
    )
    .fetch_optional(&mut **tx)
    .await?;
    match locked {
        Some(_) => find(tx, id).await,
        None => Ok(None),
    }
}

struct Row {
    takedown_id: Uuid,
    dataset_id: Uuid,
    seller_id: Uuid,
    account_id: Uuid,
    ground: String,
    statement: String,
    state: String,
    answer: Option<String>,
    reason: Option<String>,
    created_at: OffsetDateTime,
    frozen_at: Option<OffsetDateTime>,
    contested_at: Option<OffsetDateTime>,
    due_at: Option<OffsetDateTime>,
    ended_at: Option<OffsetDateTime>,
}

impl TryFrom<Row> for Takedown {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        Ok(Self {
            id: TakedownId(row.takedown_id),
            dataset: DatasetId(row.dataset_id),
            seller: AccountId(row.seller_id),
            account: AccountId(row.account_id),
            ground: to_enum("ground", &row.ground, Ground::parse)?,
            statement: row.statement,
            state: to_enum("state", &row.state, TakedownState::parse)?,
            answer: row.answer,
            reason: row.reason,
            created_at: row.created_at,
            frozen_at: row.frozen_at,
            contested_at: row.contested_at,
            due_at: row.due_at,
            ended_at: row.ended_at,
        })
    }
}
