//! Settling a job: what it cost is charged, shared and receipted, and the rest of its budget goes back, in the
//! transaction that completes it.

use alloy_primitives::Address;
use comptoir_domain::{
    atto::Atto,
    bill::{Bill, BillError, Billed},
    charge::ChargeCarry,
    digest::Sha256,
    id::{AccountId, JobId, JournalEntryId, ReceiptId, SplitVersionId},
    ledger::{AccountKey, EntryKind, Lines, Source},
    price::{self, Meter, PriceVersion},
    split::{InvalidSplit, Party, Split},
};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{
    PgTransaction, assets,
    codec::{to_numeric, to_wide, wide_to_numeric},
    holdback::{self, Earners},
    holds::{self, HoldError, HoldSource},
    ledger::{self, PostError},
    receipts::{self, Receipt, ReceiptShare},
    releases::{self, NewRelease, ReleaseKind},
    splits,
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
pub(crate) async fn settle_holding_back(
    tx: &mut PgTransaction<'_>,
    charge: &JobCharge,
    earners: &Earners,
    now: OffsetDateTime,
) -> Result<ReceiptId, ChargeError> {
    let JobCharge {
        asset_id, payer, ..
    } = *charge;
    if price::amount(&charge.meter, &charge.price) != Some(charge.amount) {
        return Err(ChargeError::AmountMismatch);
    }
    let platform = assets::platform(tx, asset_id).await?;
    let house_ppm = price::house_ppm(&charge.meter, &charge.price);
    let split = Split::new(platform, house_ppm, &charge.shares)?;
    let source = HoldSource::Job(charge.job);
    let hold = holds::find(tx, source)
        .await?
        .ok_or(ChargeError::NotHeld)?
        .hold;
    if (hold.owner, hold.asset_id) != (payer, asset_id) {
        return Err(ChargeError::NotHeld);
    }
    let version = splits::open_version(tx, asset_id, &split, now).await?;
    // These locks guard all that follows: the payer's hold and carry, the split's carries, the fees.
    let accounts = [
        AccountKey::Held(payer),
        AccountKey::Available(payer),
        AccountKey::SplitDust(version),
    ];
    let payees = split.parties().iter().map(|it| account_of(it, earners));
    ledger::lock(tx, asset_id, payees.chain(accounts)).await?;
    match holds::end(tx, source, now).await {
        Err(HoldError::NotHeld) => return settled_before(tx, charge, &split).await,
        ended => ended?,
    };

    let before = carry(tx, charge).await?;
    let stored = splits::find(tx, version)
        .await?
        .filter(|it| !it.closed)
        .ok_or(ChargeError::SplitClosed)?;
    let billed = Bill::charge(
        (charge.meter, charge.price),
        before,
        version,
        &split,
        &stored.carries,
    )?;
    let rest = hold
        .amount
        .checked_sub(billed.bill.gross)
        .ok_or(ChargeError::HoldTooSmall)?;
    let lines = Lines::default()
        .debit(AccountKey::Held(payer), hold.amount)
        .credit(AccountKey::Available(payer), rest);
    let entry = share(lines, &split, version, (&billed, earners))
        .into_entry(EntryKind::Charge, Source::JobCharge(charge.job))
        .map_err(PostError::from)?;
    let entry = ledger::post_locked(tx, asset_id, &entry, now).await?;

    save_carry(tx, charge, billed.carry).await?;
    splits::save_carries(tx, version, &billed.shared.carries).await?;
    queue_earnings(tx, asset_id, &split, (&billed, earners), now).await?;
    hold_back(tx, charge, &split, (&billed, earners), now).await?;
    write_receipt(tx, charge, (entry, version), billed, now).await
}

fn share(
    mut lines: Lines,
    split: &Split,
    version: SplitVersionId,
    (billed, earners): (&Billed, &Earners),
) -> Lines {
    for (party, credit) in split.parties().iter().zip(&billed.shared.credits) {
        lines = lines.credit(account_of(party, earners), *credit);
    }
    lines.change(AccountKey::SplitDust(version), billed.shared.dust)
}

fn is_held_back(party: &Party, earners: &Earners) -> bool {
    !party.platform && earners.contains_key(&party.payee)
}

fn account_of(party: &Party, earners: &Earners) -> AccountKey {
    if is_held_back(party, earners) {
        AccountKey::HeldBack(party.payee)
    } else {
        splits::account_of(party)
    }
}

async fn hold_back(
    tx: &mut PgTransaction<'_>,
    charge: &JobCharge,
    split: &Split,
    (billed, earners): (&Billed, &Earners),
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    let credits = split.parties().iter().zip(&billed.shared.credits);
    let earned: Vec<_> = credits
        .filter(|(party, _)| is_held_back(party, earners))
        .map(|(party, credit)| (party.payee, *credit))
        .collect();
    let of = (charge.job, charge.asset_id, charge.payer);
    holdback::keep(tx, of, &earned, earners, now).await
}

/// The receipt of a job whose hold has ended, if it was settled with this content.
async fn settled_before(
    tx: &mut PgTransaction<'_>,
    charge: &JobCharge,
    split: &Split,
) -> Result<ReceiptId, ChargeError> {
    let receipt = receipts::find_of_job(tx, charge.job)
        .await?
        .ok_or(ChargeError::NotHeld)?;
    let parties = receipt.bill.parties.iter().map(|it| it.party);
    let same = (receipt.account, receipt.payer) == (charge.account, charge.payer)
        && (receipt.bill.meter, receipt.bill.price) == (charge.meter, charge.price)
        && (receipt.input, receipt.result, receipt.verdict_sha256)
            == (charge.input, charge.result, charge.verdict)
        && parties.eq(split.parties().iter().copied());
    if same {
        Ok(receipt.id)
    } else {
        Err(ChargeError::SettledOtherwise(receipt.id))
    }
}

async fn carry(conn: &mut PgConnection, charge: &JobCharge) -> sqlx::Result<ChargeCarry> {
    let used = sqlx::query_scalar!(
        "SELECT cum_atto FROM charge_carries WHERE asset_id = $1 AND payer = $2 AND price_version_id = $3",
        charge.asset_id,
        charge.payer.as_slice(),
        charge.price.id,
    )
    .fetch_optional(conn)
    .await?;
    let Some(used) = used else {
        return Ok(ChargeCarry::default());
    };
    let used = Atto::from_atto(to_wide("cum_atto", &used)?);
    used.map(ChargeCarry::new)
        .ok_or_else(|| sqlx::Error::Decode("`cum_atto` is above every amount".into()))
}

async fn save_carry(
    conn: &mut PgConnection,
    charge: &JobCharge,
    carry: ChargeCarry,
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO charge_carries (asset_id, payer, price_version_id, cum_atto, charged_base)
         VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (asset_id, payer, price_version_id)
         DO UPDATE SET cum_atto = excluded.cum_atto, charged_base = excluded.charged_base",
        charge.asset_id,
        charge.payer.as_slice(),
        charge.price.id,
        wide_to_numeric(carry.used().atto()),
        to_numeric(carry.charged()),
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// What is held back is queued when it is released.
async fn queue_earnings(
    conn: &mut PgConnection,
    asset_id: i32,
    split: &Split,
    (billed, earners): (&Billed, &Earners),
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    let earned = split.parties().iter().zip(&billed.shared.credits);
    let earned: Vec<_> = earned
        .filter(|(party, credit)| !credit.is_zero() && !is_held_back(party, earners))
        .map(|(party, credit)| NewRelease {
            owner: party.payee,
            kind: if party.platform {
                ReleaseKind::Fees
            } else {
                ReleaseKind::Earning
            },
            amount: *credit,
        })
        .collect();
    releases::queue(conn, asset_id, &earned, now).await
}

async fn write_receipt(
    tx: &mut PgTransaction<'_>,
    charge: &JobCharge,
    (entry, split_version): (JournalEntryId, SplitVersionId),
    billed: Billed,
    now: OffsetDateTime,
) -> Result<ReceiptId, ChargeError> {
    let bill = billed.bill;
    let shares = bill.parties.iter();
    let receipt = Receipt {
        id: ReceiptId::generate(),
        asset_id: charge.asset_id,
        account: charge.account,
        job: charge.job,
        entry,
        payer: charge.payer,
        gross: bill.gross,
        split_version,
        shares: shares
            .map(|it| ReceiptShare {
                payee: it.party.payee,
                amount: it.credit,
            })
            .collect(),
        input: charge.input,
        input_salt: salt(),
        result: charge.result,
        result_salt: salt(),
        bill_sha256: bill.digest(),
        bill,
        verdict_sha256: charge.verdict,
        created_at: now,
    };
    receipts::insert(tx, &receipt).await?;
    Ok(receipt.id)
}

fn salt() -> [u8; 32] {
    let mut salt = [0; 32];
    aws_lc_rs::rand::fill(&mut salt).expect("the operating system gives random bytes");
    salt
}
