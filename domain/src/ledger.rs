//! Double-entry bookkeeping. An [`Entry`] that exists is balanced; the database checks it once more.
#![deny(clippy::float_arithmetic, clippy::arithmetic_side_effects)]

use std::{collections::BTreeMap, fmt};

use alloy_primitives::Address;

use sha2::Digest as _;
use uuid::Uuid;

use crate::{
    amount::Amount,
    id::{
        AllowanceId, AttemptId, ContributionId, JobId, JournalEntryId, LedgerAccountId, PurchaseId,
        RefundId, ReleaseId, SplitVersionId, UsageWindowId,
    },
};

/// A ledger account, by what it is for. An owner is an on-chain address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AccountKey {
    /// What an owner may spend.
    Available(Address),
    /// What is locked for an owner's jobs and withdrawals.
    Held(Address),
    /// Earned, inside the holdback.
    HeldBack(Address),
    /// Released on-chain, cumulative; what was claimed of it is not taken off.
    Payable(Address),
    /// The platform's share of charges.
    Fees,
    /// What the parties of one split version are owed in fractions of a base unit.
    SplitDust(SplitVersionId),
    /// The contra account of what the contract holds.
    Deposits,
}

impl AccountKey {
    /// Its identifier, which follows from what it is for; the database computes the same.
    #[must_use]
    pub fn id(self, asset_id: i32) -> LedgerAccountId {
        let mut hash = sha2::Sha256::new();
        hash.update(asset_id.to_be_bytes());
        hash.update(self.code());
        hash.update([0]);
        if let Some(owner) = self.owner() {
            hash.update(owner);
        }
        if let Some(scope) = self.scope() {
            hash.update(scope.0.as_bytes());
        }
        let digest: [u8; 32] = hash.finalize().into();
        let (key, _) = digest.split_first_chunk().expect("32 bytes hold 16");
        LedgerAccountId(Uuid::from_bytes(*key))
    }

    /// The text form of what it is for.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Available(_) => "available",
            Self::Held(_) => "held",
            Self::HeldBack(_) => "held_back",
            Self::Payable(_) => "payable",
            Self::Fees => "fees",
            Self::SplitDust(_) => "split_dust",
            Self::Deposits => "deposits",
        }
    }

    /// Whose it is; `None`: the house's.
    #[must_use]
    pub const fn owner(self) -> Option<Address> {
        match self {
            Self::Available(owner)
            | Self::Held(owner)
            | Self::HeldBack(owner)
            | Self::Payable(owner) => Some(owner),
            Self::Fees | Self::SplitDust(_) | Self::Deposits => None,
        }
    }

    /// The split version whose dust it keeps.
    #[must_use]
    pub const fn scope(self) -> Option<SplitVersionId> {
        match self {
            Self::SplitDust(version) => Some(version),
            Self::Available(_)
            | Self::Held(_)
            | Self::HeldBack(_)
            | Self::Payable(_)
            | Self::Fees
            | Self::Deposits => None,
        }
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// Tokens arrived in the contract.
    Deposit,
    /// A budget was locked.
    Hold,
    /// A lock ended without a charge.
    HoldRelease,
    /// A job or a sale was paid for.
    Charge,
    /// Money became claimable on-chain.
    Release,
    /// The dust of a split version was handed out.
    SplitClose,
    /// Pay that was held back became spendable.
    HoldbackRelease,
    /// Pay that was held back went to the client instead.
    Forfeit,
    /// The house paid for a confirming run.
    AuditPay,
    /// An earlier entry was taken back.
    Reversal,
}

impl EntryKind {
    /// The text form.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deposit => "deposit",
            Self::Hold => "hold",
            Self::HoldRelease => "hold_release",
            Self::Charge => "charge",
            Self::Release => "release",
            Self::SplitClose => "split_close",
            Self::HoldbackRelease => "holdback_release",
            Self::Forfeit => "forfeit",
            Self::AuditPay => "audit_pay",
            Self::Reversal => "reversal",
        }
    }
}

/// What was earned, and may be held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Earned {
    /// Work on a job.
    Work(JobId),
    /// The data's part of a job.
    Data(JobId),
    /// A sale.
    Sale(PurchaseId),
}

impl fmt::Display for Earned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Work(job) => job.fmt(f),
            Self::Data(job) => write!(f, "{job}:data"),
            Self::Sale(purchase) => purchase.fmt(f),
        }
    }
}

/// Why an entry exists. Each source makes one entry, ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A deposit that the chain names: chain, contract and event number.
    Deposit(String),
    /// The budget of a job.
    JobHold(JobId),
    /// The end of a job that is not charged.
    JobHoldRelease(JobId),
    /// The completion of a job.
    JobCharge(JobId),
    /// The price of a purchase.
    PurchaseHold(PurchaseId),
    /// A purchase that costs nothing after all.
    PurchaseHoldRelease(PurchaseId),
    /// A sale that is final.
    PurchaseCharge(PurchaseId),
    /// The reward of a contribution.
    ContributionHold(ContributionId),
    /// A reward that is not paid after all.
    ContributionHoldRelease(ContributionId),
    /// A contribution that is accepted.
    ContributionCharge(ContributionId),
    /// What calls may cost.
    AllowanceHold(AllowanceId),
    /// What calls did not cost.
    AllowanceHoldRelease(AllowanceId),
    /// The calls of a window.
    CallsCharge(UsageWindowId),
    /// A withdrawal that was asked for.
    WithdrawalHold(ReleaseId),
    /// A withdrawal that was cancelled.
    WithdrawalHoldRelease(ReleaseId),
    /// What a seal released, named by the settler.
    Seal(String),
    /// A split version that was closed.
    SplitClose(SplitVersionId),
    /// What an owner earned is held back no longer.
    HoldbackRelease(Earned, Address),
    /// What an owner earned is forfeited.
    Forfeit(Earned, Address),
    /// A run that confirmed another's result.
    AuditPay(AttemptId),
    /// The entry that is taken back.
    Reversal(JournalEntryId),
    /// What two administrators agreed to give back, and the charge that it is given back of.
    Refund(RefundId, JournalEntryId),
}

impl Source {
    /// The text form of what kind of thing it is.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Deposit(_) => "deposit",
            Self::JobHold(_) => "job_hold",
            Self::JobHoldRelease(_) => "job_hold_release",
            Self::JobCharge(_) => "job_charge",
            Self::PurchaseHold(_) => "purchase_hold",
            Self::PurchaseHoldRelease(_) => "purchase_hold_release",
            Self::PurchaseCharge(_) => "purchase_charge",
            Self::ContributionHold(_) => "contribution_hold",
            Self::ContributionHoldRelease(_) => "contribution_hold_release",
            Self::ContributionCharge(_) => "contribution_charge",
            Self::AllowanceHold(_) => "allowance_hold",
            Self::AllowanceHoldRelease(_) => "allowance_hold_release",
            Self::CallsCharge(_) => "calls_charge",
            Self::WithdrawalHold(_) => "withdrawal_hold",
            Self::WithdrawalHoldRelease(_) => "withdrawal_hold_release",
            Self::Seal(_) => "seal",
            Self::SplitClose(_) => "split_close",
            Self::HoldbackRelease(..) => "holdback_release",
            Self::Forfeit(..) => "forfeit",
            Self::AuditPay(_) => "audit_pay",
            Self::Reversal(_) => "reversal",
            Self::Refund(..) => "refund",
        }
    }

    /// The entry that one from this source takes back.
    #[must_use]
    pub const fn reversed(&self) -> Option<JournalEntryId> {
        match self {
            Self::Reversal(reversed) | Self::Refund(_, reversed) => Some(*reversed),
            Self::Deposit(_)
            | Self::JobHold(_)
            | Self::JobHoldRelease(_)
            | Self::JobCharge(_)
            | Self::PurchaseHold(_)
            | Self::PurchaseHoldRelease(_)
            | Self::PurchaseCharge(_)
            | Self::ContributionHold(_)
            | Self::ContributionHoldRelease(_)
            | Self::ContributionCharge(_)
            | Self::AllowanceHold(_)
            | Self::AllowanceHoldRelease(_)
            | Self::CallsCharge(_)
            | Self::WithdrawalHold(_)
            | Self::WithdrawalHoldRelease(_)
            | Self::Seal(_)
            | Self::SplitClose(_)
            | Self::HoldbackRelease(..)
            | Self::Forfeit(..)
            | Self::AuditPay(_) => None,
        }
    }

    /// Which one, among its kind.
    #[must_use]
    pub fn id(&self) -> String {
        match self {
            Self::Deposit(id) | Self::Seal(id) => id.clone(),
            Self::JobHold(id) | Self::JobHoldRelease(id) | Self::JobCharge(id) => id.to_string(),
            Self::PurchaseHold(id) | Self::PurchaseHoldRelease(id) | Self::PurchaseCharge(id) => {
                id.to_string()
            }
            Self::ContributionHold(id)
            | Self::ContributionHoldRelease(id)
            | Self::ContributionCharge(id) => id.to_string(),
            Self::AllowanceHold(id) | Self::AllowanceHoldRelease(id) => id.to_string(),
            Self::CallsCharge(id) => id.to_string(),
            Self::WithdrawalHold(id) | Self::WithdrawalHoldRelease(id) => id.to_string(),
            Self::SplitClose(id) => id.to_string(),
            Self::HoldbackRelease(earned, owner) | Self::Forfeit(earned, owner) => {
                format!("{earned}:{owner:#x}")
            }
            Self::AuditPay(id) => id.to_string(),
            Self::Reversal(id) => id.to_string(),
            Self::Refund(id, _) => id.to_string(),
        }
    }
}

/// A signed number of base units: a credit is positive, a debit negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Change(i128);

impl Change {
    /// What a credit of the amount changes.
    #[must_use]
    pub fn credit(amount: Amount) -> Self {
        Self(i128::try_from(amount.base()).expect("an amount is at most 2^120"))
    }

    /// What a debit of the amount changes.
    #[must_use]
    pub fn debit(amount: Amount) -> Self {
        Self::credit(amount).negated()
    }

    /// `None` outside plus and minus [`Amount::MAX`].
    #[must_use]
    pub fn from_base(base: i128) -> Option<Self> {
        Amount::from_base(base.unsigned_abs()).map(|_| Self(base))
    }

    /// The signed number of base units.
    #[must_use]
    pub const fn base(self) -> i128 {
        self.0
    }

    /// The same amount the other way.
    #[must_use]
    pub fn negated(self) -> Self {
        Self(self.0.checked_neg().expect("a change is at most 2^120"))
    }

    fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).and_then(Self::from_base)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why lines are not an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEntry {
    /// The lines do not sum to zero.
    #[error("the lines of the entry do not sum to zero")]
    Unbalanced,
    /// No line is left that changes anything.
    #[error("the entry moves nothing")]
    Empty,
    /// A sum passes [`Amount::MAX`].
    #[error("a sum of the entry is larger than 2^120 base units")]
    TooLarge,
}

/// Lines on their way to an entry: one per account, however often it is named.
#[derive(Debug, Clone, Default)]
pub struct Lines {
    changes: BTreeMap<AccountKey, Change>,
    overflowed: bool,
}

/// Changes of ledger accounts that sum to zero; each account once, none unchanged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    kind: EntryKind,
    source: Source,
    lines: Vec<(AccountKey, Change)>,
}

impl Lines {
    /// Adds to an account.
    #[must_use]
    pub fn credit(self, account: AccountKey, amount: Amount) -> Self {
        self.change(account, Change::credit(amount))
    }

    /// Takes from an account.
    #[must_use]
    pub fn debit(self, account: AccountKey, amount: Amount) -> Self {
        self.change(account, Change::debit(amount))
    }

    /// Adds to or takes from an account.
    #[must_use]
    pub fn change(mut self, account: AccountKey, change: Change) -> Self {
        let line = self.changes.entry(account).or_default();
        match line.checked_add(change) {
            Some(sum) => *line = sum,
            None => self.overflowed = true,
        }
        self
    }

    /// The entry that they make.
    ///
    /// # Errors
    /// When they do not sum to zero or move nothing.
    pub fn into_entry(self, kind: EntryKind, source: Source) -> Result<Entry, InvalidEntry> {
        if self.overflowed {
            return Err(InvalidEntry::TooLarge);
        }
        let lines: Vec<_> = self
            .changes
            .into_iter()
            .filter(|(_, change)| change.0 != 0)
            .collect();
        let sum = lines
            .iter()
            .try_fold(0_i128, |sum, (_, change)| sum.checked_add(change.0));
        match sum {
            None => Err(InvalidEntry::TooLarge),
            Some(0) if lines.is_empty() => Err(InvalidEntry::Empty),
            Some(0) => Ok(Entry {
                kind,
                source,
                lines,
            }),
            Some(_) => Err(InvalidEntry::Unbalanced),
        }
    }
}

impl Entry {
    /// What happened.
    #[must_use]
    pub const fn kind(&self) -> EntryKind {
        self.kind
    }

    /// Why it exists.
    #[must_use]
    pub const fn source(&self) -> &Source {
        &self.source
    }

    /// The changes, by account.
    #[must_use]
    pub fn lines(&self) -> &[(AccountKey, Change)] {
        &self.lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: AccountKey = AccountKey::Available(Address::repeat_byte(1));
    const LOCKED: AccountKey = AccountKey::Held(Address::repeat_byte(1));

    fn amount(base: u128) -> Amount {
        Amount::from_base(base).unwrap()
    }

    fn entry(lines: Lines) -> Result<Entry, InvalidEntry> {
        lines.into_entry(EntryKind::Deposit, Source::Deposit("1".into()))
    }

    #[test]
    fn lines_that_do_not_sum_to_zero_are_no_entry() {
        let lines = Lines::default()
            .debit(AccountKey::Deposits, amount(5))
            .credit(ALICE, amount(4));
        assert_eq!(entry(lines), Err(InvalidEntry::Unbalanced));
        assert_eq!(entry(Lines::default()), Err(InvalidEntry::Empty));
        assert_eq!(
            entry(
                Lines::default()
                    .credit(ALICE, amount(1))
                    .debit(ALICE, amount(1))
            ),
            Err(InvalidEntry::Empty)
        );
    }

    #[test]
    fn an_account_that_is_named_twice_has_one_line() {
        let lines = Lines::default()
            .debit(LOCKED, amount(10))
            .credit(ALICE, amount(7))
            .credit(ALICE, amount(3));
        let entry = entry(lines).unwrap();
        assert_eq!(entry.lines(), [(ALICE, Change(10)), (LOCKED, Change(-10))]);
    }

    #[test]
    fn a_sum_above_the_largest_amount_is_refused() {
        let lines = Lines::default()
            .credit(ALICE, Amount::MAX)
            .credit(ALICE, amount(1))
            .debit(LOCKED, amount(1));
        assert_eq!(entry(lines), Err(InvalidEntry::TooLarge));
    }
}
