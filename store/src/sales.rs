//! Charging sales and rewards: what was held for a purchase or a contribution is shared by carry and receipted, and the rest goes back, in the
//! transaction that makes it final.

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    bill::{BillError, Explanation},
    contribution::Reward,
    digest::Sha256,
    id::{AccountId, PurchaseId, ReceiptId, SplitVersionId},
    ledger::{AccountKey, EntryKind, Lines, Source},
    sale::Sale,
    split::{Party, Shared, Split},
};
use time::OffsetDateTime;

use crate::{
    PgTransaction, charges,
    holdback::proceeds::{self, Proceeds},
    holds::{self, HoldError, HoldSource},
    ledger::{self, PostError},
    receipts::{self, Documents, Receipt, ReceiptShare, Subject},
    releases::{self, NewRelease},
    splits,
};

/// What is paid for, and how its price is explained.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Sold {
    /// A purchase; its hold pays.
    Purchase(PurchaseId, Sale),
    /// What a contribution earns; its hold pays.
    Reward(Reward),
}

/// A sale that is final.
#[derive(Debug, Clone)]
pub(crate) struct FinalSale {
    /// What is paid for.
    pub of: Sold,
    /// Whose it is.
    pub account: AccountId,
    /// The address that pays.
    pub payer: Address,
    /// Row of `assets`.
    pub asset_id: i32,
    /// Who shares it.
    pub split: SplitVersionId,
    /// What is held back, where the dataset is blocked.
    pub held_back: Option<Proceeds>,
    /// The digest of what was sold: a version's manifest.
    pub sold: Sha256,
    /// What was given, and what made it final.
    pub documents: Documents,
}

/// Why a sale was not charged.
#[derive(Debug, thiserror::Error)]
pub enum SaleError {
    /// Nothing of this payer is held for it, or not any more, or too little.
    #[error("what is held does not cover the charge")]
    NotCovered,
    /// The split version was closed in this very moment; the transaction may be tried again.
    #[error("the split version was closed meanwhile")]
    SplitClosed,
    /// A number is out of bounds.
    #[error("bill the sale")]
    Bill(#[from] BillError),
    /// The hold could not be ended.
    #[error("end the hold")]
    Hold(#[from] HoldError),
    /// The entry was refused.
    #[error("post the charge")]
    Post(#[from] PostError),
    /// A statement failed.
    #[error("charge a sale")]
    Database(#[from] sqlx::Error),
}

/// Charges a sale, shares the charge, gives back the rest of the hold, queues what is released by itself and writes the receipt.
/// A sale that comes to nothing gives back the hold, and has no receipt.
///
/// # Errors
/// When it cannot be charged as described; the caller rolls back.
pub(crate) async fn charge(
    tx: &mut PgTransaction<'_>,
    it: &FinalSale,
    now: OffsetDateTime,
) -> Result<Option<ReceiptId>, SaleError> {
    let source = it.of.hold();
    let gross = it.of.gross().ok_or(BillError::TooLarge)?;
    if gross.is_zero() {
        holds::release(tx, source, now).await?;
        return Ok(None);
    }
    let (version, split) = open_split(tx, it, now).await?;
    let dust = AccountKey::SplitDust(version);
    let own = [
        AccountKey::Held(it.payer),
        AccountKey::Available(it.payer),
        dust,
    ];
    let payees = split.parties().iter().map(|party| it.account_of(party));
    ledger::lock(tx, it.asset_id, payees.chain(own)).await?;
    let held = holds::find(tx, source)
        .await?
        .ok_or(SaleError::NotCovered)?
        .hold;
    if (held.owner, held.asset_id) != (it.payer, it.asset_id) {
        return Err(SaleError::NotCovered);
    }
    holds::end(tx, source, now).await?;
    // Looked at again under the lock of its dust: nothing is carried by a version that was closed since.
    let standing = splits::find(tx, version).await?.filter(|it| !it.closed);
    let standing = standing.ok_or(SaleError::SplitClosed)?;
    let (bill, shared) = it.of.bill(version, &split, &standing.carries)?;
    splits::save_carries(tx, version, &shared.carries).await?;
    let rest = held
        .amount
        .checked_sub(gross)
        .ok_or(SaleError::NotCovered)?;
    let mut lines = Lines::default()
        .debit(AccountKey::Held(it.payer), held.amount)
        .credit(AccountKey::Available(it.payer), rest)
        .change(dust, shared.dust);
    for (party, credit) in split.parties().iter().zip(&shared.credits) {
        lines = lines.credit(it.account_of(party), *credit);
    }
    let entry = lines.into_entry(EntryKind::Charge, it.of.charge());
    let entry = ledger::post_locked(tx, it.asset_id, &entry.map_err(PostError::from)?, now).await?;
    pay(tx, it, (&split, &shared), now).await?;
    let digest = |document| Sha256::of_document(document).expect("texts have a JSON form");
    let receipt = Receipt {
        id: ReceiptId::generate(),
        asset_id: it.asset_id,
        account: it.account,
        subject: it.of.subject(),
        entry,
        payer: it.payer,
        gross,
        split_version: version,
        shares: shares(&bill),
        input: it.sold,
        input_salt: charges::salt(),
        result: digest(&it.documents.right),
        result_salt: charges::salt(),
        bill_sha256: bill.digest(),
        bill,
        verdict_sha256: digest(&it.documents.finality),
        documents: Some(it.documents.clone()),
        created_at: now,
    };
    let id = receipt.id;
    receipts::insert_all(tx, &[receipt]).await?;
    Ok(Some(id))
}

/// Queues what is earned, to be released; or writes it down where it is held back.
async fn pay(
    tx: &mut PgTransaction<'_>,
    it: &FinalSale,
    (split, shared): (&Split, &Shared),
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    match it.held_back {
        Some(proceeds) => proceeds::keep(tx, proceeds, (split, shared), now).await,
        None => releases::queue(tx, it.asset_id, &earned(split, shared), now).await,
    }
}

impl FinalSale {
    fn account_of(&self, party: &Party) -> AccountKey {
        match self.held_back {
            Some(_) => proceeds::account_of(party.payee),
            None => splits::account_of(party),
        }
    }
}

impl Sold {
    const fn hold(&self) -> HoldSource {
        match self {
            Self::Purchase(id, _) => HoldSource::Purchase(*id),
            Self::Reward(reward) => HoldSource::Contribution(reward.contribution),
        }
    }

    const fn charge(&self) -> Source {
        match self {
            Self::Purchase(id, _) => Source::PurchaseCharge(*id),
            Self::Reward(reward) => Source::ContributionCharge(reward.contribution),
        }
    }

    const fn subject(&self) -> Subject {
        match self {
            Self::Purchase(id, sale) => Subject::Sale(sale.kind, *id),
            Self::Reward(reward) => Subject::Contribution(reward.contribution),
        }
    }

    fn gross(&self) -> Option<Amount> {
        match self {
            Self::Purchase(_, sale) => sale.gross(),
            Self::Reward(reward) => reward.gross(),
        }
    }

    fn bill(
        &self,
        version: SplitVersionId,
        split: &Split,
        carries: &[u32],
    ) -> Result<(Explanation, Shared), BillError> {
        Ok(match self {
            Self::Purchase(_, sale) => {
                let (bill, shared) = sale.bill(version, split, carries)?;
                (Explanation::Sale(bill), shared)
            }
            Self::Reward(reward) => {
                let (bill, shared) = reward.bill(version, split, carries)?;
                (Explanation::Contribution(bill), shared)
            }
        })
    }
}

/// The version of the split that was agreed, or the open one with the same parties where that was closed since.
async fn open_split(
    tx: &mut PgTransaction<'_>,
    it: &FinalSale,
    now: OffsetDateTime,
) -> sqlx::Result<(SplitVersionId, Split)> {
    let agreed = splits::find(tx, it.split)
        .await?
        .ok_or(sqlx::Error::RowNotFound)?;
    let version = if agreed.closed {
        splits::open_version(tx, it.asset_id, &agreed.split, now).await?
    } else {
        it.split
    };
    Ok((version, agreed.split))
}

fn earned(split: &Split, shared: &Shared) -> Vec<NewRelease> {
    let credits = split.parties().iter().zip(&shared.credits);
    credits.filter_map(NewRelease::of).collect()
}

fn shares(bill: &Explanation) -> Vec<ReceiptShare> {
    let parties = bill.parties().iter();
    parties
        .map(|it| ReceiptShare {
            payee: it.party.payee,
            amount: it.credit,
        })
        .collect()
}
