//! Charging by carry: a payer's exact use of a price stream adds up, and the whole base units that the sum
//! passes are charged. So a payer never overpays, and its lifetime error stays below one base unit.
#![deny(clippy::float_arithmetic, clippy::arithmetic_side_effects)]

use crate::{amount::Amount, atto::Atto};

/// What a payer has used of one price stream so far, exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ChargeCarry {
    used: Atto,
}

impl ChargeCarry {
    /// The carry of a payer that has used that much.
    #[must_use]
    pub const fn new(used: Atto) -> Self {
        Self { used }
    }

    /// What was used so far, exactly.
    #[must_use]
    pub const fn used(self) -> Atto {
        self.used
    }

    /// What was charged so far.
    #[must_use]
    pub fn charged(self) -> Amount {
        self.used.floor()
    }

    /// Uses more: what is charged for it now, and the carry after it. Never more than `amount` rounded up.
    /// `None` when the sum is larger than any amount.
    #[must_use]
    pub fn charge(self, amount: Atto) -> Option<(Amount, Self)> {
        let after = Self::new(self.used.checked_add(amount)?);
        let charge = after.charged().checked_sub(self.charged())?;
        Some((charge, after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy_primitives::U256;
    use proptest::prelude::*;

    fn atto(value: u128) -> Atto {
        Atto::from_atto(U256::from(value)).unwrap()
    }

    proptest! {
        #[test]
        fn a_charge_is_covered_by_its_hold_and_the_sum_of_charges_by_the_sum_of_use(
            uses in prop::collection::vec(prop_oneof![0..3_000_000_000_000_000_000_u128, any::<u128>()], 0..60)
        ) {
            let mut carry = ChargeCarry::default();
            let mut charged = Amount::ZERO;
            let mut exact = Atto::ZERO;
            for used in uses.into_iter().map(atto) {
                let (charge, after) = carry.charge(used).unwrap();
                prop_assert!(charge <= used.ceil());
                charged = charged.checked_add(charge).unwrap();
                exact = exact.checked_add(used).unwrap();
                carry = after;
                prop_assert_eq!(charged, exact.floor());
                prop_assert_eq!(charged, carry.charged());
            }
        }
    }

    #[test]
    fn a_million_small_uses_cost_what_one_large_use_costs() {
        let step = atto(1_370_000_000_000);
        let mut carry = ChargeCarry::default();
        let mut charged = 0;
        for _ in 0..1_000_000 {
            let (charge, after) = carry.charge(step).unwrap();
            charged += charge.base();
            carry = after;
        }
        assert_eq!(charged, 1);
    }
}
