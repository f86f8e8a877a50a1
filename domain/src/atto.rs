//! Exact sums of money below one base unit, in 10^-18 of it: prices are computed here, and rounded once.
#![deny(clippy::float_arithmetic, clippy::arithmetic_side_effects)]

use std::{fmt, str::FromStr};

use alloy_primitives::U256;
use serde::{Deserialize, Serialize};

use crate::amount::{Amount, InvalidAmount};

const PER_BASE: U256 = U256::from_limbs([1_000_000_000_000_000_000, 0, 0, 0]);

/// A non-negative amount in atto base units (10^-18 of a base unit), at most [`Amount::MAX`] base units:
/// a decimal string in JSON, `numeric(60,0)` in Postgres.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash, Serialize, Deserialize,
)]
#[serde(into = "String", try_from = "String")]
pub struct Atto(U256);

impl Atto {
    /// Nothing.
    pub const ZERO: Self = Self(U256::ZERO);

    /// `None` above [`Amount::MAX`] base units.
    #[must_use]
    pub fn from_atto(atto: U256) -> Option<Self> {
        (atto <= Self::from_base(Amount::MAX).0).then_some(Self(atto))
    }

    /// A whole number of base units.
    #[must_use]
    pub fn from_base(amount: Amount) -> Self {
        let atto = U256::from(amount.base()).checked_mul(PER_BASE);
        Self(atto.expect("2^120 times 10^18 is below 2^256"))
    }

    /// The number of atto base units.
    #[must_use]
    pub const fn atto(self) -> U256 {
        self.0
    }

    /// `None` above [`Amount::MAX`] base units.
    #[must_use]
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).and_then(Self::from_atto)
    }

    /// `None` where the other is larger.
    #[must_use]
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }

    /// In base units, as an exact decimal fraction without needless digits: `7` or `7.000000001`.
    #[must_use]
    pub fn decimal(self) -> String {
        let fraction = self.0.checked_rem(PER_BASE).unwrap_or_default();
        let whole = self.floor().base();
        if fraction.is_zero() {
            return whole.to_string();
        }
        let fraction = format!("{fraction:0>18}");
        format!("{whole}.{}", fraction.trim_end_matches('0'))
    }

    /// The whole base units in it: what may be charged.
    #[must_use]
    pub fn floor(self) -> Amount {
        let base = self
            .0
            .checked_div(PER_BASE)
            .and_then(|base| base.try_into().ok());
        base.and_then(Amount::from_base)
            .expect("bounded by `from_atto`")
    }

    /// Base units, exactly: decimal digits, with a point where there is a fraction.
    #[must_use]
    pub fn base_units(self) -> String {
        let floor = self.floor();
        let rest = self.0.checked_sub(Self::from_base(floor).0);
        let rest = rest.expect("the floor is no more").to_string();
        let fraction = format!("{rest:0>18}");
        match fraction.trim_end_matches('0') {
            "" => floor.to_string(),
            fraction => format!("{floor}.{fraction}"),
        }
    }

    /// The whole base units that cover it: what is held.
    #[must_use]
    pub fn ceil(self) -> Amount {
        let floor = self.floor();
        if Self::from_base(floor) == self {
            floor
        } else {
            Amount::from_base(1)
                .and_then(|one| floor.checked_add(one))
                .expect("a fraction is below the bound of `from_atto`")
        }
    }
}

impl fmt::Display for Atto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Atto {
    type Err = InvalidAmount;

    fn from_str(text: &str) -> Result<Self, InvalidAmount> {
        let canonical = text == "0" || !text.starts_with('0');
        if text.is_empty() || !canonical || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(InvalidAmount::NotDigits);
        }
        U256::from_str_radix(text, 10)
            .ok()
            .and_then(Self::from_atto)
            .ok_or(InvalidAmount::TooLarge)
    }
}

impl From<Atto> for String {
    fn from(atto: Atto) -> Self {
        atto.to_string()
    }
}

impl TryFrom<String> for Atto {
    type Error = InvalidAmount;

    fn try_from(text: String) -> Result<Self, InvalidAmount> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exact_amount_is_a_decimal_fraction_of_base_units() {
        for (atto, decimal) in [
            ("0", "0"),
            ("7000000000000000000", "7"),
            ("7000000001159000000", "7.000000001159"),
            ("1", "0.000000000000000001"),
        ] {
            assert_eq!(atto.parse::<Atto>().unwrap().decimal(), decimal);
        }
        let (one, two) = (Atto::from_atto(U256::ONE), Atto::from_atto(U256::from(2)));
        assert_eq!(two.unwrap().checked_sub(one.unwrap()), one);
        assert_eq!(one.unwrap().checked_sub(two.unwrap()), None);
    }

    #[test]
    fn what_is_charged_rounds_down_and_what_is_held_rounds_up() {
        let cases = [
            ("0", 0, 0),
            ("1", 0, 1),
            ("999999999999999999", 0, 1),
            ("1000000000000000000", 1, 1),
            ("1000000000000000001", 1, 2),
        ];
        for (text, floor, ceil) in cases {
            let atto: Atto = text.parse().unwrap();
            assert_eq!(
                (atto.floor().base(), atto.ceil().base()),
                (floor, ceil),
                "{text}"
            );
        }
    }

    #[test]
    fn base_units_are_written_exactly() {
        let cases = [
            ("0", "0"),
            ("1", "0.000000000000000001"),
            ("7000000000000000000", "7"),
            ("7100000000000000000", "7.1"),
            ("7000000000000000010", "7.00000000000000001"),
        ];
        for (atto, base) in cases {
            assert_eq!(atto.parse::<Atto>().unwrap().base_units(), base);
        }
    }

    #[test]
    fn the_largest_amount_is_the_largest_sum() {
        let max = Atto::from_base(Amount::MAX);
        assert_eq!((max.floor(), max.ceil()), (Amount::MAX, Amount::MAX));
        assert_eq!(max.checked_add("1".parse().unwrap()), None);
        assert_eq!(max.to_string().parse(), Ok(max));
        for text in ["", "-1", "01", "0x1", "1.0"] {
            assert_eq!(
                text.parse::<Atto>(),
                Err(InvalidAmount::NotDigits),
                "{text}"
            );
        }
        assert_eq!("9".repeat(80).parse::<Atto>(), Err(InvalidAmount::TooLarge));
    }
}
