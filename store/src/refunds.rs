//! Refunds: what is given back of a charge. One administrator proposes, another approves, and the money moves in the
//! transaction that approves. Neither gives to oneself, and payees keep what they earned: the platform pays.

use std::collections::BTreeMap;

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    id::{AccountId, JobId, JournalEntryId, ReceiptId, RefundId},
    ledger::AccountKey,
    refund::{self, CAP_PERIOD, Caps, Funds, NotFunded, PROPOSAL_LIFETIME, RefundState},
};
use serde_json::json;
use sqlx::PgConnection;
use time::OffsetDateTime;

mod rows;

use rows::select;

use crate::{
    PgTransaction, admins,
    assets::{self, AssetError},
    attempts,
    codec::{to_address, to_amount, to_numeric},
    events, exits,
    ledger::{self, PostError},
    violates,
};

/// A refund.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refund {
    /// Its identifier.
    pub id: RefundId,
    /// Row of `assets`.
    pub asset_id: i32,
    /// The receipt of the charge.
    pub receipt: ReceiptId,
    /// The job that was paid for.
    pub job: JobId,
    /// Who paid, and gets it.
    pub account: AccountId,
    /// How much.
    pub amount: Amount,
    /// Why.
    pub reason: String,
    /// Where it stands.
    pub state: RefundState,
    /// Who proposed it.
    pub proposed_by: AccountId,
    /// When.
    pub created_at: OffsetDateTime,
    /// Until when it can be approved.
    pub expires_at: OffsetDateTime,
    /// Who approved or cancelled it.
    pub decided_by: Option<AccountId>,
    /// When, or when its time ran out.
    pub decided_at: Option<OffsetDateTime>,
    /// The entry that moved the money.
    pub entry: Option<JournalEntryId>,
}

/// What is to be given back.
#[derive(Debug, Clone, Copy)]
pub struct NewRefund<'a> {
    /// The job whose charge it is.
    pub job: JobId,
    /// How much; everything that is left of the charge when absent.
    pub amount: Option<Amount>,
    /// Why.
    pub reason: &'a str,
    /// Who proposes it.
    pub proposed_by: AccountId,
}

/// Why a refund was not proposed, approved or cancelled.
#[derive(Debug, thiserror::Error)]
pub enum RefundError {
    /// No such job, or it was charged nothing.
    #[error("the job was not charged")]
    NotCharged,
    /// No such refund.
    #[error("no such refund")]
    NotFound,
    /// Another one waits for the same charge.
    #[error("the refund {0} of this charge waits for approval")]
    Waits(RefundId),
    /// More than is left of the charge.
    #[error("{left} base units are left of the charge")]
    AboveCharge {
        /// What was not given back yet.
        left: Amount,
    },
    /// More than one refund may give back.
    #[error("{cap} base units are the most of one refund")]
    AboveCap {
        /// The most.
        cap: Amount,
    },
    /// More than a day's refunds may give back.
    #[error("{left} base units are left for refunds of the last 24 hours")]
    AboveDayCap {
        /// What may still be given back.
        left: Amount,
    },
    /// An administrator would give to himself.
    #[error("nobody proposes or approves what he gets himself")]
    OwnAccount,
    /// The proposer would approve.
    #[error("a refund is approved by another administrator than its proposer")]
    SamePerson,
    /// Its proposer is no administrator any more.
    #[error("the proposer is no administrator any more")]
    ProposerGone,
    /// The platform would give to itself.
    #[error("the platform paid the charge itself")]
    ToPlatform,
    /// It was decided before, or its time ran out.
    #[error("the refund is {}", .0.as_str())]
    Decided(RefundState),
    /// The platform has less.
    #[error("give back from what the platform has")]
    NotFunded(#[from] NotFunded),
    /// The entry was refused.
    #[error("post the refund")]
    Post(#[from] PostError),
    /// The asset is gone.
    #[error("read the asset")]
    Asset(#[from] AssetError),
    /// A statement failed.
    #[error("write the refund")]
    Database(#[from] sqlx::Error),
}

/// A charge of which something is to be given back.
struct Charge {
    receipt: ReceiptId,
    asset_id: i32,
    account: AccountId,
    payer: Address,
    entry: JournalEntryId,
    /// What was not given back yet.
    left: Amount,
}

/// Proposes to give back a part of a job's charge, or all that is left of it.
///
/// # Errors
/// When there is no charge, the bounds do not allow it, or another proposal waits.
pub async fn propose(
    tx: &mut PgTransaction<'_>,
    new: &NewRefund<'_>,
    caps: Caps,
    now: OffsetDateTime,
) -> Result<Refund, RefundError> {
    attempts::lock_jobs(tx, &[new.job.0]).await?;
    let charge = charge(tx, new.job).await?;
    if charge.account == new.proposed_by {
        return Err(RefundError::OwnAccount);
    }
    if charge.payer == assets::platform(tx, charge.asset_id).await? {
        return Err(RefundError::ToPlatform);
    }
    let amount = new.amount.unwrap_or(charge.left);
    check_amount(amount, charge.left, caps)?;
    sqlx::query!(
        "UPDATE refunds SET state = 'expired', decided_at = expires_at
         WHERE receipt_id = $1 AND state = 'proposed' AND expires_at <= $2",
        charge.receipt.0,
        now,
    )
    .execute(&mut **tx)
    .await?;
    let waiting = sqlx::query_scalar!(
        "SELECT refund_id FROM refunds WHERE receipt_id = $1 AND state = 'proposed'",
        charge.receipt.0,
    )
    .fetch_optional(&mut **tx)
    .await?;
    if let Some(waiting) = waiting {
        return Err(RefundError::Waits(RefundId(waiting)));
    }
    let id = RefundId::generate();
    sqlx::query!(
        "INSERT INTO refunds (refund_id, asset_id, receipt_id, job_id, account_id, amount_base, reason, state,
             proposed_by, created_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, 'proposed', $8, $9, $10)",
        id.0,
        charge.asset_id,
        charge.receipt.0,
        new.job.0,
        charge.account.0,
        to_numeric(amount),
        new.reason,
        new.proposed_by.0,
        now,
        now.saturating_add(PROPOSAL_LIFETIME),
    )
    .execute(&mut **tx)
    .await?;
    find(tx, id, now).await?.ok_or(RefundError::NotFound)
}

fn check_amount(amount: Amount, left: Amount, caps: Caps) -> Result<(), RefundError> {
    if amount.is_zero() || amount > left {
        return Err(RefundError::AboveCharge { left });
    }
    if amount > caps.per_refund {
        return Err(RefundError::AboveCap {
            cap: caps.per_refund,
        });
    }
    Ok(())
}

/// The charge of a job and what is left of it: what was forfeited to its payer is given back as well as what was refunded.
async fn charge(conn: &mut PgConnection, job: JobId) -> Result<Charge, RefundError> {
    let row = sqlx::query!(
        r#"SELECT receipt_id, asset_id, account_id, payer, journal_entry_id, greatest(gross_base - given_back(receipt_id), 0) AS "left_base!"
           FROM receipts WHERE job_id = $1"#,
        job.0,
    )
    .fetch_optional(conn)
    .await?
    .ok_or(RefundError::NotCharged)?;
    Ok(Charge {
        receipt: ReceiptId(row.receipt_id),
        asset_id: row.asset_id,
        account: AccountId(row.account_id),
        payer: to_address("payer", &row.payer)?,
        entry: JournalEntryId(row.journal_entry_id),
        left: to_amount("left_base", &row.left_base)?,
    })
}

/// What was not given back yet of what jobs were charged. Exact while the accounts of who paid are locked.
pub(crate) async fn left(
    conn: &mut PgConnection,
    jobs: &[JobId],
) -> sqlx::Result<BTreeMap<JobId, Amount>> {
    let jobs: Vec<_> = jobs.iter().map(|it| it.0).collect();
    let rows = sqlx::query!(
        r#"SELECT job_id AS "job_id!", greatest(gross_base - given_back(receipt_id), 0) AS "left_base!" FROM receipts WHERE job_id = ANY ($1)"#,
        &jobs,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| Ok((JobId(row.job_id), to_amount("left_base", &row.left_base)?)))
        .collect()
}

/// Gives back what another administrator proposed. Wake [`crate::wake::Channel::Job`] after the commit.
///
/// # Errors
/// When it may not be given back, by this administrator, now; the caller rolls back.
pub async fn approve(
    tx: &mut PgTransaction<'_>,
    id: RefundId,
    approver: AccountId,
    caps: Caps,
    now: OffsetDateTime,
) -> Result<Refund, RefundError> {
    let refund = lock(tx, id, now).await?;
    if refund.state != RefundState::Proposed {
        return Err(RefundError::Decided(refund.state));
    }
    if refund.proposed_by == approver {
        return Err(RefundError::SamePerson);
    }
    if refund.account == approver {
        return Err(RefundError::OwnAccount);
    }
    if !admins::is_admin(tx, refund.proposed_by).await? {
        return Err(RefundError::ProposerGone);
    }
    let charge = charge(tx, refund.job).await?;
    let platform = assets::platform(tx, charge.asset_id).await?;
    let told = json!({ "refund_id": id, "amount": refund.amount });
    events::append(tx, refund.job, events::kind::REFUNDED, &told, now).await?;
    // Fees are part of every refund's locks: refunds are given one after the other, so the day's sum is exact.
    let accounts = [
        AccountKey::Fees,
        AccountKey::Available(platform),
        AccountKey::Available(charge.payer),
    ];
    ledger::lock(tx, charge.asset_id, accounts).await?;
    // Under the payer's lock: what is forfeited to it in this moment is given back as well.
    let left = left(tx, &[refund.job]).await?;
    let left = left.get(&refund.job).copied().unwrap_or_default();
    check_amount(refund.amount, left, caps)?;
    check_day(tx, charge.asset_id, refund.amount, caps, now).await?;
    let funds = funds(tx, charge.asset_id, platform).await?;
    let entry = refund::entry(
        id,
        charge.entry,
        refund.amount,
        (platform, charge.payer),
        funds,
    )?;
    let entry = ledger::post_locked(tx, charge.asset_id, &entry, now).await?;
    decide(tx, id, RefundState::Posted, (approver, Some(entry)), now).await?;
    find(tx, id, now).await?.ok_or(RefundError::NotFound)
}

async fn check_day(
    conn: &mut PgConnection,
    asset_id: i32,
    amount: Amount,
    caps: Caps,
    now: OffsetDateTime,
) -> Result<(), RefundError> {
    let given = sqlx::query_scalar!(
        r#"SELECT coalesce(sum(amount_base), 0) AS "given!" FROM refunds
           WHERE asset_id = $1 AND state = 'posted' AND decided_at > $2"#,
        asset_id,
        now.saturating_sub(CAP_PERIOD),
    )
    .fetch_one(conn)
    .await?;
    let given = to_amount("given", &given)?;
    let left = caps.per_day.checked_sub(given).unwrap_or_default();
    if amount > left {
        return Err(RefundError::AboveDayCap { left });
    }
    Ok(())
}

/// What the platform has. Of what is on its way out of the contract nothing is spent.
async fn funds(
    conn: &mut PgConnection,
    asset_id: i32,
    platform: Address,
) -> Result<Funds, RefundError> {
    let fees = ledger::house_balances(conn, asset_id).await?.fees;
    let available = if exits::is_leaving(conn, asset_id, platform).await? {
        Amount::ZERO
    } else {
        ledger::balances(conn, platform, asset_id).await?.available
    };
    Ok(Funds { fees, available })
}

/// Takes a proposal off. Any administrator may, its proposer too; taking it off again changes nothing.
///
/// # Errors
/// When it was approved, or its time ran out.
pub async fn cancel(
    tx: &mut PgTransaction<'_>,
    id: RefundId,
    by: AccountId,
    now: OffsetDateTime,
) -> Result<Refund, RefundError> {
    let refund = lock(tx, id, now).await?;
    match refund.state {
        RefundState::Cancelled => Ok(refund),
        RefundState::Proposed => {
            decide(tx, id, RefundState::Cancelled, (by, None), now).await?;
            find(tx, id, now).await?.ok_or(RefundError::NotFound)
        }
        RefundState::Posted | RefundState::Expired => Err(RefundError::Decided(refund.state)),
    }
}

async fn decide(
    conn: &mut PgConnection,
    id: RefundId,
    state: RefundState,
    (by, entry): (AccountId, Option<JournalEntryId>),
    now: OffsetDateTime,
) -> Result<(), RefundError> {
    sqlx::query!(
        "UPDATE refunds SET state = $2, decided_by = $3, decided_at = $4, journal_entry_id = $5 WHERE refund_id = $1",
        id.0,
        state.as_str(),
        by.0,
        now,
        entry.map(|it| it.0),
    )
    .execute(conn)
    .await
    .map_err(|error| {
        if violates(&error, "refunds_two_persons") {
            RefundError::SamePerson
        } else {
            error.into()
        }
    })?;
    Ok(())
}

/// The refund with its job, locked in the order of all jobs.
async fn lock(
    tx: &mut PgTransaction<'_>,
    id: RefundId,
    now: OffsetDateTime,
) -> Result<Refund, RefundError> {
    let job = sqlx::query_scalar!("SELECT job_id FROM refunds WHERE refund_id = $1", id.0)
        .fetch_optional(&mut **tx)
        .await?
        .ok_or(RefundError::NotFound)?;
    // Whoever proposes, approves or cancels holds the job.
    attempts::lock_jobs(tx, &[job]).await?;
    find(tx, id, now).await?.ok_or(RefundError::NotFound)
}

/// The refund of this identifier.
///
/// # Errors
/// When the statement fails.
pub async fn find(
    conn: &mut PgConnection,
    id: RefundId,
    now: OffsetDateTime,
) -> sqlx::Result<Option<Refund>> {
    let found = select(conn, Some(id), Filter::default(), None, 1, now).await?;
    Ok(found.into_iter().next())
}

/// Which refunds to list.
#[derive(Debug, Clone, Copy, Default)]
pub struct Filter {
    /// Only those in this state.
    pub state: Option<RefundState>,
    /// Only those of this job.
    pub job: Option<JobId>,
}

/// Refunds, newest first, older than `before`.
///
/// # Errors
/// When the statement fails.
pub async fn list(
    conn: &mut PgConnection,
    filter: Filter,
    before: Option<RefundId>,
    limit: i64,
    now: OffsetDateTime,
) -> sqlx::Result<Vec<Refund>> {
    select(conn, None, filter, before, limit, now).await
}
