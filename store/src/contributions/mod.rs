//! Contributions: what others offer to add to a dataset, and what becomes of it. What is accepted is paid at once, and shares in later sales.

mod answer;
mod offer;
mod terms;

use comptoir_domain::{
    amount::Amount,
    contribution::ContributionState,
    id::{AccountId, ContributionId, DatasetId, DatasetVersionId, ReceiptId},
};
use sqlx::{PgConnection, types::BigDecimal};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    PgTransaction,
    codec::{to_amount, to_enum},
};

pub use answer::{AcceptError, Acceptance, AnswerError, accept, lapse_due, reject, withdraw};
pub use offer::{NewContribution, OfferError, offer};
pub use terms::{TermsVersion, set_terms, terms};

/// What somebody offers to add to a dataset.
#[derive(Debug, Clone)]
pub struct Contribution {
    /// Its identifier.
    pub id: ContributionId,
    /// The dataset that it is offered to.
    pub dataset: DatasetId,
    /// Whose that is.
    pub owner: AccountId,
    /// The contributor.
    pub account: AccountId,
    /// The version that is offered.
    pub version: DatasetVersionId,
    /// Of which dataset of the contributor.
    pub source: DatasetId,
    /// Which of the dataset's terms it was made under.
    pub terms_number: u32,
    /// What they give for a row.
    pub per_row: Amount,
    /// What they give contributors of later sales, in millionths of the seller's side.
    pub pool_ppm: u32,
    /// Files that have rows.
    pub files: u32,
    /// How many rows these have.
    pub rows: u64,
    /// What all of them earn.
    pub reward: Amount,
    /// Row of `assets`.
    pub asset_id: i32,
    /// Where it stands.
    pub state: ContributionState,
    /// The contributor's words.
    pub note: Option<String>,
    /// Why it was rejected.
    pub reason: Option<String>,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// Until when the owner answers.
    pub answer_due_at: OffsetDateTime,
    /// When it was accepted, rejected, withdrawn or given up.
    pub ended_at: Option<OffsetDateTime>,
    /// The receipt of its reward.
    pub receipt: Option<ReceiptId>,
}

/// Which contributions are listed.
#[derive(Debug, Clone, Copy)]
pub enum Side {
    /// Those that the account made.
    Contributor(AccountId),
    /// Those to a dataset that concern the account: all where it is the owner, its own otherwise.
    Dataset(DatasetId, AccountId),
}

/// A contribution that the connection may see.
///
/// # Errors
/// When the statement fails, or what is stored is not a contribution.
pub async fn find(
    conn: &mut PgConnection,
    id: ContributionId,
) -> sqlx::Result<Option<Contribution>> {
    Ok(find_all(conn, &[id.0]).await?.pop())
}

async fn find_all(conn: &mut PgConnection, ids: &[Uuid]) -> sqlx::Result<Vec<Contribution>> {
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT c.contribution_id, c.dataset_id, c.owner_id, c.account_id, c.version_id, v.dataset_id AS source_id, c.terms_number,
               t.reward_base AS per_row_base, t.pool_ppm, c.files, c.rows, c.reward_base, c.asset_id, c.state, c.note, c.reason, c.created_at,
               c.answer_due_at, c.ended_at, r.receipt_id AS "receipt_id?"
           FROM contributions c JOIN contribution_terms t ON t.dataset_id = c.dataset_id AND t.number = c.terms_number
           JOIN dataset_versions v ON v.version_id = c.version_id
           LEFT JOIN receipts r ON r.contribution_id = c.contribution_id
           WHERE c.contribution_id = ANY ($1) ORDER BY c.contribution_id DESC"#,
        ids,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Contribution::try_from).collect()
}

/// Contributions of one side, newest first, older than `before`.
///
/// # Errors
/// When the statement fails, or what is stored is not a contribution.
pub async fn list(
    conn: &mut PgConnection,
    side: Side,
    state: Option<ContributionState>,
    before: Option<ContributionId>,
    limit: i64,
) -> sqlx::Result<Vec<Contribution>> {
    let (dataset, account) = match side {
        Side::Contributor(account) => (None, account),
        Side::Dataset(dataset, account) => (Some(dataset.0), account),
    };
    let ids = sqlx::query_scalar!(
        "SELECT contribution_id FROM contributions
         WHERE (account_id = $1 AND ($2::uuid IS NULL OR dataset_id = $2) OR owner_id = $1 AND dataset_id = $2)
             AND ($3::text IS NULL OR state = $3) AND ($4::uuid IS NULL OR contribution_id < $4)
         ORDER BY contribution_id DESC LIMIT $5",
        account.0,
        dataset,
        state.map(ContributionState::as_str),
        before.map(|it| it.0),
        limit,
    )
    .fetch_all(&mut *conn)
    .await?;
    find_all(conn, &ids).await
}

/// Locks a contribution, so that one at a time decides what becomes of it.
async fn lock(
    tx: &mut PgTransaction<'_>,
    id: ContributionId,
) -> sqlx::Result<Option<Contribution>> {
    let locked = sqlx::query_scalar!(
        "SELECT contribution_id FROM contributions WHERE contribution_id = $1 FOR NO KEY UPDATE",
        id.0,
    )
    .fetch_optional(&mut **tx)
    .await?;
    match locked {
        Some(id) => find(tx, ContributionId(id)).await,
        None => Ok(None),
    }
}

struct Row {
    contribution_id: Uuid,
    dataset_id: Uuid,
    owner_id: Uuid,
    account_id: Uuid,
    version_id: Uuid,
    source_id: Uuid,
    terms_number: i32,
    per_row_base: BigDecimal,
    pool_ppm: i32,
    files: i32,
    rows: i64,
    reward_base: BigDecimal,
    asset_id: i32,
    state: String,
    note: Option<String>,
    reason: Option<String>,
    created_at: OffsetDateTime,
    answer_due_at: OffsetDateTime,
    ended_at: Option<OffsetDateTime>,
    receipt_id: Option<Uuid>,
}

impl TryFrom<Row> for Contribution {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        Ok(Self {
            id: ContributionId(row.contribution_id),
            dataset: DatasetId(row.dataset_id),
            owner: AccountId(row.owner_id),
            account: AccountId(row.account_id),
            version: DatasetVersionId(row.version_id),
            source: DatasetId(row.source_id),
            terms_number: row.terms_number.unsigned_abs(),
            per_row: to_amount("per_row_base", &row.per_row_base)?,
            pool_ppm: row.pool_ppm.unsigned_abs(),
            files: row.files.unsigned_abs(),
            rows: row.rows.unsigned_abs(),
            reward: to_amount("reward_base", &row.reward_base)?,
            asset_id: row.asset_id,
            state: to_enum("state", &row.state, ContributionState::parse)?,
            note: row.note,
            reason: row.reason,
            created_at: row.created_at,
            answer_due_at: row.answer_due_at,
            ended_at: row.ended_at,
            receipt: row.receipt_id.map(ReceiptId),
        })
    }
}
