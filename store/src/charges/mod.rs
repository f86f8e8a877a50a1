//! Settling jobs: what each cost is charged, shared and receipted, and the rest of its budget goes back, in the
//! transaction that completes it.

mod billing;
mod posting;
mod shared;

use std::collections::{BTreeMap, HashMap};

use alloy_primitives::Address;
use comptoir_domain::{
    atto::Atto,
    bill::BillError,
    digest::Sha256,
    id::{AccountId, HoldId, JobId, ReceiptId},
    price::{Meter, PriceVersion},
    split::InvalidSplit,
};
use time::OffsetDateTime;

use crate::{
    PgTransaction, assets,
    dataset_inputs::DataCharge,
    holdback::Earners,
    holds::{self, HoldError},
    ledger::{self, PostError},
    receipts, releases,
};

/// A verified job that is to be paid for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobCharge {
    /// The job; its hold pays.
    pub job: JobId,
    /// Whose job it is.
    pub account: AccountId,
    /// The address that pays.
    pub payer: Address,
    /// Row of `assets`.
    pub asset_id: i32,
    /// What was counted.
    pub meter: Meter,
    /// The price version it was quoted.
    pub price: PriceVersion,
    /// What it was quoted, exactly.
    pub amount: Atto,
    /// Who did the work: the address of each worker's owner, and how much it did.
    pub shares: Vec<(Address, u64)>,
    /// What its dataset costs beside the work.
    pub data: Option<DataCharge>,
    /// The digest of what went in.
    pub input: Sha256,
    /// The digest of what came out.
    pub result: Sha256,
    /// The digest of the verdict's kind and evidence.
    pub verdict: Sha256,
}

/// Why a job was not settled.
#[derive(Debug, thiserror::Error)]
pub enum ChargeError {
    /// The quoted amount is not meter times price.
    #[error("the quoted amount is not meter times price")]
    AmountMismatch,
    /// Nothing is held for the job, or not this payer's money, or no longer.
    #[error("nothing of the payer is held for the job")]
    NotHeld,
    /// The charge is larger than the hold.
    #[error("the charge is larger than what is held for the job")]
    HoldTooSmall,
    /// The job was settled before, with another content.
    #[error("the job was settled before, as {0}, with another content")]
    SettledOtherwise(ReceiptId),
    /// The split version was closed in this very moment; the transaction may be tried again.
    #[error("the split version was closed meanwhile")]
    SplitClosed,
    /// Nobody can be paid.
    #[error("split the charge")]
    Split(#[from] InvalidSplit),
    /// A number is out of bounds.
    #[error("bill the job")]
    Bill(#[from] BillError),
    /// The hold could not be ended.
    #[error("end the hold")]
    Hold(#[from] HoldError),
    /// The entry was refused.
    #[error("post the charge")]
    Post(#[from] PostError),
    /// No such asset.
    #[error("read the asset")]
    Asset(#[from] assets::AssetError),
    /// A statement failed.
    #[error("settle a job")]
    Database(#[from] sqlx::Error),
}

/// Charges a job, shares the charge, gives back the rest of the hold, queues what is released by itself and
/// writes the receipt. Settling a job again with the same content changes nothing and names the same receipt.
///
/// # Errors
/// When the job cannot be paid for as described; the caller rolls back.
pub async fn settle_job(
    tx: &mut PgTransaction<'_>,
    charge: &JobCharge,
    now: OffsetDateTime,
) -> Result<ReceiptId, ChargeError> {
    settle_holding_back(tx, charge, &Earners::new(), now).await
}

/// Settles a job as [`settle_job`] does, and holds back what these owners earn with it.
pub async fn settle_holding_back(
    tx: &mut PgTransaction<'_>,
    charge: &JobCharge,
    earners: &Earners,
    now: OffsetDateTime,
) -> Result<ReceiptId, ChargeError> {
    let settled = settle_all(tx, &[(charge, earners)], now).await?;
    settled.first().copied().ok_or(ChargeError::NotHeld)
}

/// Settles jobs one after the other, as [`settle_holding_back`] does each, in a few statements for all. The receipts, in
/// their order.
///
/// # Errors
/// When one of them cannot be paid for as described: then none is; the caller rolls back, and settles them one by one.
pub async fn settle_all(
    tx: &mut PgTransaction<'_>,
    charges: &[(&JobCharge, &Earners)],
    now: OffsetDateTime,
) -> Result<Vec<ReceiptId>, ChargeError> {
    let mut receipts: HashMap<JobId, ReceiptId> = HashMap::new();
    let mut by_asset: BTreeMap<i32, Vec<(&JobCharge, &Earners)>> = BTreeMap::new();
    for (charge, earners) in charges {
        let of_asset = by_asset.entry(charge.asset_id).or_default();
        of_asset.push((charge, earners));
    }
    for (asset_id, of_asset) in by_asset {
        receipts.extend(settle_of_asset(tx, asset_id, &of_asset, now).await?);
    }
    let settled = charges.iter().map(|(it, _)| receipts.get(&it.job).copied());
    settled
        .collect::<Option<Vec<_>>>()
        .ok_or(ChargeError::NotHeld)
}

async fn settle_of_asset(
    tx: &mut PgTransaction<'_>,
    asset_id: i32,
    charges: &[(&JobCharge, &Earners)],
    now: OffsetDateTime,
) -> Result<Vec<(JobId, ReceiptId)>, ChargeError> {
    let shared = shared::prepare(tx, asset_id, charges, now).await?;
    // These locks guard all that follows: the payers' holds and carries, the splits' carries, the fees.
    ledger::lock(tx, asset_id, posting::accounts(&shared)).await?;
    let holds: Vec<HoldId> = shared.iter().map(|it| it.hold).collect();
    let ended = holds::end_all(tx, &holds, now).await?;
    let (mut settled, mut open) = (Vec::new(), Vec::new());
    for it in shared {
        if ended.contains(&it.hold) {
            open.push(it);
        } else {
            let receipt = shared::settled_before(tx, &it).await?;
            settled.push((it.charge.job, receipt));
        }
    }
    let billed = billing::bill(tx, asset_id, &open).await?;
    let (entries, earned) = posting::entries(&open, &billed)?;
    let posted = ledger::post_all_locked(tx, asset_id, &entries, now).await?;
    releases::queue(tx, asset_id, &earned, now).await?;
    let mut written = Vec::with_capacity(open.len());
    for ((it, billed), posted) in open.iter().zip(billed).zip(posted) {
        posting::hold_back(tx, it, &billed, now).await?;
        let posted = posted.ok_or(PostError::AlreadyPosted)?;
        written.push(posting::receipt(it, posted, billed, now));
    }
    receipts::insert_all(tx, &written).await?;
    let of_jobs = written.into_iter();
    settled.extend(of_jobs.filter_map(|it| Some((it.subject.job()?, it.id))));
    Ok(settled)
}

/// Hides a digest in a leaf.
pub(crate) fn salt() -> [u8; 32] {
    let mut salt = [0; 32];
    aws_lc_rs::rand::fill(&mut salt).expect("the operating system gives random bytes");
    salt
}
