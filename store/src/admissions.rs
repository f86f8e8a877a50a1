//! Admissions to gated models: an account asks, and the creator answers.

use comptoir_domain::{
    admission::{ASK_AGAIN_AFTER, AdmissionState},
    id::{AccountId, AdmissionId, ModelId},
};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{PgTransaction, accounts, codec::to_enum};

/// That an account may call a gated model, or asked for it.
#[derive(Debug, Clone)]
pub struct Admission {
    /// Which.
    pub id: AdmissionId,
    /// To which model.
    pub model: ModelId,
    /// Whose that is.
    pub creator: AccountId,
    /// Who asked.
    pub account: AccountId,
    /// Where it stands.
    pub state: AdmissionState,
    /// The words of who asked.
    pub note: Option<String>,
    /// Why it was denied or revoked.
    pub reason: Option<String>,
    /// When it was asked for.
    pub created_at: OffsetDateTime,
    /// When it was granted or denied.
    pub answered_at: Option<OffsetDateTime>,
    /// When it was denied or revoked.
    pub ended_at: Option<OffsetDateTime>,
}

/// Why nobody is asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The account has asked, or is let in.
    #[error("the account has {0} already, which is {1}")]
    Open(AdmissionId, AdmissionState),
    /// It was denied or revoked a moment ago.
    #[error("the account may ask again at {0}")]
    TooSoon(OffsetDateTime),
    /// A statement failed.
    #[error("ask for an admission")]
    Database(#[from] sqlx::Error),
}

/// Why an admission is not answered so.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// There is none to a model of the account.
    #[error("no such admission")]
    NotFound,
    /// It stands where this cannot be done.
    #[error("the admission is {0}")]
    Stands(AdmissionState),
    /// A statement failed.
    #[error("answer an admission")]
    Database(#[from] sqlx::Error),
}

/// Whose admissions are listed.
#[derive(Debug, Clone, Copy)]
pub enum Side {
    /// Those that the account asked for.
    Caller(AccountId),
    /// Those to the account's models.
    Creator(AccountId),
}

/// Which of them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Filter {
    /// Those in this state alone.
    pub state: Option<AdmissionState>,
    /// Those to this model alone.
    pub model: Option<ModelId>,
}

/// Asks the creator of a model, who is somebody else.
///
/// # Errors
/// When it was asked already, or a moment ago in vain.
pub async fn ask(
    tx: &mut PgTransaction<'_>,
    account: AccountId,
    (model, creator): (ModelId, AccountId),
    note: Option<&str>,
    now: OffsetDateTime,
) -> Result<AdmissionId, AskError> {
    accounts::lock(tx, account).await?;
    let last = sqlx::query!(
        "SELECT admission_id, state, ended_at FROM admissions WHERE account_id = $1 AND model_id = $2 ORDER BY admission_id DESC LIMIT 1",
        account.0,
        model.0,
    )
    .fetch_optional(&mut **tx)
    .await?;
    if let Some(last) = last {
        let state = to_enum("state", &last.state, AdmissionState::parse)?;
        let again_at = last.ended_at.map(|at| at.saturating_add(ASK_AGAIN_AFTER));
        match again_at {
            None => return Err(AskError::Open(AdmissionId(last.admission_id), state)),
            Some(at) if at > now => return Err(AskError::TooSoon(at)),
            Some(_) => {}
        }
    }
    let id = AdmissionId::generate();
    sqlx::query!(
        "INSERT INTO admissions (admission_id, model_id, creator_id, account_id, state, note, created_at) VALUES ($1, $2, $3, $4, 'requested', $5, $6)",
        id.0,
        model.0,
        creator.0,
        account.0,
        note,
        now,
    )
    .execute(&mut **tx)
    .await?;
    Ok(id)
}

/// What a creator answers, or takes back.
///
/// # Errors
/// When there is none to a model of the account, or it stands where this cannot be done. The same again changes nothing.
pub async fn answer(
    tx: &mut PgTransaction<'_>,
    (creator, id): (AccountId, AdmissionId),
    (state, reason): (AdmissionState, Option<&str>),
    now: OffsetDateTime,
) -> Result<(), AnswerError> {
    let locked = sqlx::query!(
        "SELECT state FROM admissions WHERE admission_id = $1 AND creator_id = $2 FOR NO KEY UPDATE",
        id.0,
        creator.0,
    )
    .fetch_optional(&mut **tx)
    .await?;
    let before = locked.ok_or(AnswerError::NotFound)?.state;
    let before = to_enum("state", &before, AdmissionState::parse)?;
    match (before, state) {
        (before, state) if before == state => return Ok(()),
        (AdmissionState::Requested, AdmissionState::Granted | AdmissionState::Denied)
        | (AdmissionState::Granted, AdmissionState::Revoked) => {}
        (before, _) => return Err(AnswerError::Stands(before)),
    }
    sqlx::query!(
        "UPDATE admissions SET state = $2, reason = $3, answered_at = coalesce(answered_at, $4), ended_at = $5 WHERE admission_id = $1",
        id.0,
        state.as_str(),
        reason,
        now,
        (state != AdmissionState::Granted).then_some(now),
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// May the account call the gated model?
///
/// # Errors
/// When the statement fails.
pub async fn is_granted(
    conn: &mut PgConnection,
    account: AccountId,
    model: ModelId,
) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM admissions WHERE account_id = $1 AND model_id = $2 AND state = 'granted') AS "granted!""#,
        account.0,
        model.0,
    )
    .fetch_one(conn)
    .await
}

/// An admission that the connection may see.
///
/// # Errors
/// When the statement fails, or what is stored is not an admission.
pub async fn find(conn: &mut PgConnection, id: AdmissionId) -> sqlx::Result<Option<Admission>> {
    Ok(find_all(conn, &[id.0]).await?.pop())
}

async fn find_all(conn: &mut PgConnection, ids: &[Uuid]) -> sqlx::Result<Vec<Admission>> {
    let rows = sqlx::query_as!(
        Row,
        "SELECT admission_id, model_id, creator_id, account_id, state, note, reason, created_at, answered_at, ended_at
         FROM admissions WHERE admission_id = ANY ($1) ORDER BY admission_id DESC",
        ids,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Admission::try_from).collect()
}

/// Admissions of one side, newest first, older than `before`.
///
/// # Errors
/// When the statement fails, or what is stored is not an admission.
pub async fn list(
    conn: &mut PgConnection,
    side: Side,
    filter: Filter,
    before: Option<AdmissionId>,
    limit: i64,
) -> sqlx::Result<Vec<Admission>> {
    let (caller, creator) = match side {
        Side::Caller(account) => (Some(account.0), None),
        Side::Creator(account) => (None, Some(account.0)),
    };
    let ids = sqlx::query_scalar!(
        "SELECT admission_id FROM admissions
         WHERE ($1::uuid IS NULL OR account_id = $1) AND ($2::uuid IS NULL OR creator_id = $2) AND ($3::text IS NULL OR state = $3)
             AND ($4::uuid IS NULL OR model_id = $4) AND ($5::uuid IS NULL OR admission_id < $5)
         ORDER BY admission_id DESC LIMIT $6",
        caller,
        creator,
        filter.state.map(AdmissionState::as_str),
        filter.model.map(|it| it.0),
        before.map(|it| it.0),
        limit,
    )
    .fetch_all(&mut *conn)
    .await?;
    find_all(conn, &ids).await
}

struct Row {
    admission_id: Uuid,
    model_id: Uuid,
    creator_id: Uuid,
    account_id: Uuid,
    state: String,
    note: Option<String>,
    reason: Option<String>,
    created_at: OffsetDateTime,
    answered_at: Option<OffsetDateTime>,
    ended_at: Option<OffsetDateTime>,
}

impl TryFrom<Row> for Admission {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        Ok(Self {
            id: AdmissionId(row.admission_id),
            model: ModelId(row.model_id),
            creator: AccountId(row.creator_id),
            account: AccountId(row.account_id),
            state: to_enum("state", &row.state, AdmissionState::parse)?,
            note: row.note,
            reason: row.reason,
            created_at: row.created_at,
            answered_at: row.answered_at,
            ended_at: row.ended_at,
        })
    }
}
