//! What becomes of contributions: accepted and paid, rejected, withdrawn, or given up.

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    contribution::{ACCEPTED_ROWS_MAX, CONTRIBUTORS_MAX, ContributionState, Reward},
    id::{AccountId, ApiKeyId, ContributionId, TakedownId},
    split::{InvalidSplit, Split},
};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{Contribution, find, lock};
use crate::{
    PgTransaction, assets,
    codec::{to_address, to_digest},
    datasets,
    holds::{self, Hold, HoldError, HoldSource},
    receipts::Documents,
    sales::{self, FinalSale, SaleError, Sold},
    spending::{AboveSpendLimit, Budgets},
    splits,
};

/// That an owner accepts.
#[derive(Debug, Clone, Copy)]
pub struct Acceptance {
    /// Whose dataset it is.
    pub owner: AccountId,
    /// The owner's bound address.
    pub payer: Option<Address>,
    /// The API key that the reward is counted against; `None` where that has no limit.
    pub spender: Option<ApiKeyId>,
    /// What the owner expects to pay.
    pub expected: Amount,
}

/// Why a contribution is not answered.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// There is none that the account may answer.
    #[error("no such contribution")]
    NotFound,
    /// It was answered before, or its time is over.
    #[error("the contribution is {0}")]
    Answered(ContributionState),
    /// A statement failed.
    #[error("answer a contribution")]
    Database(#[from] sqlx::Error),
}

/// Why a contribution is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// It waits for no answer of this account.
    #[error(transparent)]
    Answer(#[from] AnswerError),
    /// The dataset, or that of what is offered, is blocked.
    #[error("{0} blocks it")]
    Blocked(TakedownId),
    /// It earns something else than was expected.
    #[error("it earns {0} base units")]
    RewardChanged(Amount),
    /// As many others share what the dataset brings as can.
    #[error("{CONTRIBUTORS_MAX} others contributed to the dataset already")]
    TooManyContributors,
    /// The dataset would have more accepted rows than there may be.
    #[error("more than {ACCEPTED_ROWS_MAX} rows would be accepted")]
    TooManyRows,
    /// The owner or the contributor has no address.
    #[error("the {0} has no address")]
    NoAddress(&'static str),
    /// More than the API key may spend.
    #[error("the reward is more than the key may still spend")]
    AboveSpendLimit(#[from] AboveSpendLimit),
    /// The reward could not be held.
    #[error("hold the reward")]
    Hold(#[from] HoldError),
    /// Nobody can be paid.
    #[error("split the reward")]
    Split(#[from] InvalidSplit),
    /// The reward could not be charged.
    #[error("charge the reward")]
    Sale(#[from] SaleError),
    /// No asset.
    #[error("read the asset")]
    Asset(#[from] assets::AssetError),
    /// A statement failed.
    #[error("accept a contribution")]
    Database(#[from] sqlx::Error),
}

/// Accepts a contribution and pays its reward. The transaction must see everybody. Again changes nothing.
///
/// # Errors
/// When it is not accepted; the caller rolls back.
pub async fn accept(
    tx: &mut PgTransaction<'_>,
    id: ContributionId,
    by: &Acceptance,
    now: OffsetDateTime,
) -> Result<(), AcceptError> {
    let found = find(tx, id).await?.filter(|it| it.owner == by.owner);
    let found = found.ok_or(AnswerError::NotFound)?;
    // The dataset first: two that are accepted at once do not pass its limits together.
    datasets::lock(tx, by.owner, found.dataset).await?;
    let contribution = lock(tx, id).await?.ok_or(AnswerError::NotFound)?;
    if contribution.state == ContributionState::Accepted {
        return Ok(());
    }
    require_pending(&contribution, now)?;
    let both = [contribution.dataset, contribution.source];
    if let Some(block) = datasets::blocks(tx, &both).await?.values().next() {
        return Err(AcceptError::Blocked(block.by));
    }
    if contribution.reward != by.expected {
        return Err(AcceptError::RewardChanged(contribution.reward));
    }
    require_room(tx, &contribution).await?;
    set_state(tx, id, (ContributionState::Accepted, None), now).await?;
    if contribution.reward.is_zero() {
        return Ok(());
    }
    pay(tx, &contribution, by, now).await
}

fn require_pending(contribution: &Contribution, now: OffsetDateTime) -> Result<(), AnswerError> {
    match contribution.state {
        ContributionState::Pending if contribution.answer_due_at > now => Ok(()),
        state => Err(AnswerError::Answered(state)),
    }
}

async fn require_room(
    tx: &mut PgTransaction<'_>,
    contribution: &Contribution,
) -> Result<(), AcceptError> {
    let others = sqlx::query!(
        r#"SELECT count(DISTINCT account_id) FILTER (WHERE account_id <> $2) AS "accounts!", coalesce(sum(rows), 0)::bigint AS "rows!"
           FROM contributions WHERE dataset_id = $1 AND state = 'accepted'"#,
        contribution.dataset.0,
        contribution.account.0,
    )
    .fetch_one(&mut **tx)
    .await?;
    if usize::try_from(others.accounts).map_or(true, |it| it >= CONTRIBUTORS_MAX) {
        return Err(AcceptError::TooManyContributors);
    }
    let rows = others.rows.unsigned_abs().saturating_add(contribution.rows);
    if rows > ACCEPTED_ROWS_MAX {
        return Err(AcceptError::TooManyRows);
    }
    Ok(())
}

/// Holds the reward within what the key may spend, and charges it: all of it is the contributor's.
async fn pay(
    tx: &mut PgTransaction<'_>,
    it: &Contribution,
    by: &Acceptance,
    now: OffsetDateTime,
) -> Result<(), AcceptError> {
    let payer = by.payer.ok_or(AcceptError::NoAddress("owner"))?;
    let row = sqlx::query!(
        r#"SELECT a.address, v.manifest_root AS "root!" FROM accounts a, dataset_versions v
           WHERE a.account_id = $1 AND v.version_id = $2"#,
        it.account.0,
        it.version.0,
    )
    .fetch_one(&mut **tx)
    .await?;
    let contributor = row.address.ok_or(AcceptError::NoAddress("contributor"))?;
    let contributor = to_address("address", &contributor)?;
    let wanted = Hold {
        source: HoldSource::Contribution(it.id),
        owner: payer,
        asset_id: it.asset_id,
        amount: it.reward,
    };
    let mut budgets = Budgets::lock(tx, by.spender, now).await?;
    if let Some(key) = by.spender {
        budgets.take(key, it.reward)?;
    }
    holds::place(tx, &wanted, now).await?;
    let made = by.spender.map(|key| (key, wanted.source, it.reward));
    budgets.keep(tx, made.as_slice()).await?;
    let platform = assets::platform(tx, it.asset_id).await?;
    let split = Split::new(platform, 0, &[(contributor, 1)])?;
    let reward = FinalSale {
        of: Sold::Reward(Reward {
            contribution: it.id,
            terms_number: it.terms_number,
            rows: it.rows,
            per_row: it.per_row,
        }),
        account: by.owner,
        payer,
        asset_id: it.asset_id,
        split: splits::open_version(tx, it.asset_id, &split, now).await?,
        held_back: None,
        sold: to_digest("manifest_root", &row.root)?,
        documents: Documents {
            right: right(it),
            finality: acceptance(it, now),
        },
    };
    sales::charge(tx, &reward, now).await?;
    Ok(())
}

/// The right that is given.
fn right(it: &Contribution) -> Value {
    json!({
        "allows": "download",
        "contribution": it.id,
        "dataset": it.dataset,
        "owner": it.owner,
        "version": it.version,
    })
}

/// The acceptance, which makes the reward final.
fn acceptance(it: &Contribution, at: OffsetDateTime) -> Value {
    let at = at.format(&Rfc3339);
    let at = at.expect("times of the service are within the calendar");
    json!({ "at": at, "because": "accepted", "contribution": it.id })
}

/// Rejects a contribution: the owner reads it no more. The transaction must see everybody. Again changes nothing.
///
/// # Errors
/// When it is not the account's to reject, or waits for no answer.
pub async fn reject(
    tx: &mut PgTransaction<'_>,
    (owner, id): (AccountId, ContributionId),
    reason: &str,
    now: OffsetDateTime,
) -> Result<(), AnswerError> {
    let found = lock(tx, id).await?.filter(|it| it.owner == owner);
    let found = found.ok_or(AnswerError::NotFound)?;
    if found.state == ContributionState::Rejected {
        return Ok(());
    }
    require_pending(&found, now)?;
    end(tx, id, (ContributionState::Rejected, Some(reason)), now).await
}

/// Takes a contribution back that nobody answered. The transaction must see everybody. Again changes nothing.
///
/// # Errors
/// When it is not the account's, or was answered.
pub async fn withdraw(
    tx: &mut PgTransaction<'_>,
    (account, id): (AccountId, ContributionId),
    now: OffsetDateTime,
) -> Result<(), AnswerError> {
    let found = lock(tx, id).await?.filter(|it| it.account == account);
    let found = found.ok_or(AnswerError::NotFound)?;
    match found.state {
        ContributionState::Withdrawn => Ok(()),
        ContributionState::Pending => end(tx, id, (ContributionState::Withdrawn, None), now).await,
        state => Err(AnswerError::Answered(state)),
    }
}

/// Gives up contributions that nobody answered in time; says how many. The transaction must see everybody.
///
/// # Errors
/// When a statement fails.
pub async fn lapse_due(
    tx: &mut PgTransaction<'_>,
    now: OffsetDateTime,
    limit: i64,
) -> Result<usize, AnswerError> {
    let due = sqlx::query_scalar!(
        "SELECT contribution_id FROM contributions WHERE state = 'pending' AND answer_due_at <= $1
         ORDER BY answer_due_at LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED",
        now,
        limit,
    )
    .fetch_all(&mut **tx)
    .await?;
    for id in &due {
        let lapsed = (ContributionState::Lapsed, None);
        end(tx, ContributionId(*id), lapsed, now).await?;
    }
    Ok(due.len())
}

/// Ends what was not accepted: its bytes may be offered again, and the owner reads them no more.
async fn end(
    tx: &mut PgTransaction<'_>,
    id: ContributionId,
    state: (ContributionState, Option<&str>),
    now: OffsetDateTime,
) -> Result<(), AnswerError> {
    set_state(tx, id, state, now).await?;
    sqlx::query!(
        "UPDATE contribution_files SET stands = false WHERE contribution_id = $1",
        id.0,
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "UPDATE entitlements SET ended_at = $2 WHERE contribution_id = $1 AND ended_at IS NULL",
        id.0,
        now,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

async fn set_state(
    tx: &mut PgTransaction<'_>,
    id: ContributionId,
    (state, reason): (ContributionState, Option<&str>),
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE contributions SET state = $2, reason = $3, ended_at = $4 WHERE contribution_id = $1 AND state = 'pending'",
        id.0,
        state.as_str(),
        reason,
        now,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}
