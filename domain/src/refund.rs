//! Refunds: what is given back of a charge, by whose money, within which bounds.
//!
//! Payees keep what they were credited (a credit is never taken back); what is given back is the platform's own: its
//! fees first, then what it has available.
#![deny(clippy::float_arithmetic, clippy::arithmetic_side_effects)]

use alloy_primitives::Address;
use time::Duration;

use crate::{
    amount::Amount,
    id::{JournalEntryId, RefundId},
    ledger::{AccountKey, Entry, EntryKind, InvalidEntry, Lines, Source},
};

/// How long a proposal waits for a second administrator.
pub const PROPOSAL_LIFETIME: Duration = Duration::hours(72);
/// Longest reason, in characters.
pub const REASON_CHARS_MAX: usize = 500;
/// The time over which the daily bound counts.
pub const CAP_PERIOD: Duration = Duration::DAY;

/// The most that is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// By one refund.
    pub per_refund: Amount,
    /// By all of the last 24 hours.
    pub per_day: Amount,
}

/// What the platform has to give back from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Funds {
    /// Its fees that are not released yet.
    pub fees: Amount,
    /// What its address may spend.
    pub available: Amount,
}

/// Where a refund stands.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[schema(as = RefundState)]
pub enum RefundState {
    /// It waits for a second administrator.
    Proposed,
    /// The money was given back.
    Posted,
    /// An administrator took it off.
    Cancelled,
    /// Nobody approved it in time.
    Expired,
}

impl RefundState {
    /// The text form.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Proposed => "proposed",
            Self::Posted => "posted",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }

    /// The value of a text form.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Proposed, Self::Posted, Self::Cancelled, Self::Expired]
            .into_iter()
            .find(|it| it.as_str() == text)
    }
}

/// Why there is no entry for a refund.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotFunded {
    /// The platform has less.
    #[error("the platform has {0} base units to give back from")]
    Short(Amount),
    /// The lines are no entry: the platform itself paid the charge.
    #[error("make the entry of a refund")]
    Invalid(#[from] InvalidEntry),
}

/// The entry that gives `amount` back to the payer of a charge.
///
/// # Errors
/// When the platform has less.
pub fn entry(
    refund: RefundId,
    charge: JournalEntryId,
    amount: Amount,
    (platform, payer): (Address, Address),
    funds: Funds,
) -> Result<Entry, NotFunded> {
    let from_fees = amount.min(funds.fees);
    let rest = amount
        .checked_sub(from_fees)
        .expect("at most the amount is from fees");
    if rest > funds.available {
        // A sum above every amount would cover it.
        let has = funds.fees.checked_add(funds.available);
        return Err(NotFunded::Short(has.unwrap_or(Amount::MAX)));
    }
    let lines = Lines::default()
        .debit(AccountKey::Fees, from_fees)
        .debit(AccountKey::Available(platform), rest)
        .credit(AccountKey::Available(payer), amount);
    Ok(lines.into_entry(EntryKind::Reversal, Source::Refund(refund, charge))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Change;

    const PLATFORM: Address = Address::repeat_byte(0xff);
    const PAYER: Address = Address::repeat_byte(0xa1);

    fn amount(base: u128) -> Amount {
        Amount::from_base(base).unwrap()
    }

    fn lines(
        base: u128,
        fees: u128,
        available: u128,
    ) -> Result<Vec<(AccountKey, i128)>, NotFunded> {
        let funds = Funds {
            fees: amount(fees),
            available: amount(available),
        };
        let (refund, charge) = (RefundId::generate(), JournalEntryId::generate());
        let entry = entry(refund, charge, amount(base), (PLATFORM, PAYER), funds)?;
        let line = |(key, change): &(AccountKey, Change)| (*key, change.base());
        Ok(entry.lines().iter().map(line).collect())
    }

    #[test]
    fn fees_pay_first_and_then_what_the_platform_has() {
        let (payer, platform) = (
            AccountKey::Available(PAYER),
            AccountKey::Available(PLATFORM),
        );
        let fees = AccountKey::Fees;
        assert_eq!(lines(5, 9, 0).unwrap(), [(payer, 5), (fees, -5)]);
        assert_eq!(
            lines(5, 2, 3).unwrap(),
            [(payer, 5), (platform, -3), (fees, -2)]
        );
        assert_eq!(lines(5, 0, 9).unwrap(), [(payer, 5), (platform, -5)]);
        assert_eq!(lines(6, 2, 3), Err(NotFunded::Short(amount(5))));
    }
}
