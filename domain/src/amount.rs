//! Token amounts in base units. Arithmetic is checked; there is no `+` operator.

use std::{fmt, str::FromStr};

use alloy_primitives::U256;
use serde::{Deserialize, Serialize};

/// A non-negative amount in base units of one token: a decimal string in JSON, `numeric(39,0)` in Postgres.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Amount(u128);

/// Why a text is not an amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAmount {
    /// Anything but ASCII digits without a leading zero.
    #[error("expected an integer in base units, as a string of decimal digits")]
    NotDigits,
    /// More than [`Amount::MAX`].
    #[error("the amount is larger than 2^120 base units")]
    TooLarge,
}

impl Amount {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// 2^120: fits `numeric(39,0)` and the contract's `uint128` with room to sum.
    pub const MAX: Self = Self(1 << 120);

    /// `None` above [`Self::MAX`].
    #[must_use]
    pub const fn from_base(base: u128) -> Option<Self> {
        if base <= Self::MAX.0 {
            Some(Self(base))
        } else {
            None
        }
    }

    /// The number of base units.
    #[must_use]
    pub const fn base(self) -> u128 {
        self.0
    }

    /// Is it nothing?
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// `None` above [`Self::MAX`].
    #[must_use]
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).and_then(Self::from_base)
    }

    /// `None` below zero.
    #[must_use]
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }

    /// So many of so many equal parts of it, rounded down; at most all of it, and nothing of no parts.
    #[must_use]
    pub fn part(self, parts: u64, of: u64) -> Self {
        let wide = |count: u64| U256::from(count.min(of));
        let part = U256::from(self.0)
            .checked_mul(wide(parts))
            .and_then(|product| product.checked_div(wide(of)));
        part.and_then(|part| part.try_into().ok())
            .and_then(Self::from_base)
            .unwrap_or(Self::ZERO)
    }

    /// So many times it; `None` above [`Self::MAX`].
    #[must_use]
    pub fn times(self, count: u64) -> Option<Self> {
        let product = self.0.checked_mul(u128::from(count));
        product.and_then(Self::from_base)
    }

    /// `None` when the sum passes [`Self::MAX`].
    pub fn sum(amounts: impl IntoIterator<Item = Self>) -> Option<Self> {
        amounts.into_iter().try_fold(Self::ZERO, Self::checked_add)
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Amount {
    type Err = InvalidAmount;

    fn from_str(text: &str) -> Result<Self, InvalidAmount> {
        let canonical = text == "0" || !text.starts_with('0');
        if text.is_empty() || !canonical || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(InvalidAmount::NotDigits);
        }
        text.parse()
            .ok()
            .and_then(Self::from_base)
            .ok_or(InvalidAmount::TooLarge)
    }
}

impl Serialize for Amount {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_canonical_digits_are_an_amount() {
        for text in [
            "", " 1", "+1", "-1", "00", "01", "1.0", "1e18", "0x10", "١", "1_000",
        ] {
            assert_eq!(
                text.parse::<Amount>(),
                Err(InvalidAmount::NotDigits),
                "{text}"
            );
        }
        assert_eq!("0".parse(), Ok(Amount::ZERO));
        assert_eq!(Amount::MAX.to_string().parse(), Ok(Amount::MAX));
        assert_eq!(
            "9".repeat(79).parse::<Amount>(),
            Err(InvalidAmount::TooLarge)
        );
    }

    #[test]
    fn a_json_number_is_not_an_amount() {
        assert!(serde_json::from_str::<Amount>("10").is_err());
        assert_eq!(serde_json::from_str::<Amount>("\"10\"").unwrap().base(), 10);
    }

    #[test]
    fn sums_stop_at_the_maximum() {
        assert_eq!(Amount::MAX.checked_add(Amount(1)), None);
        assert_eq!(Amount::ZERO.checked_sub(Amount(1)), None);
    }
}
