//! What a call costs: what anybody can count again, times published prices. Time that a worker says it took is never charged.
#![deny(clippy::float_arithmetic, clippy::arithmetic_side_effects)]

use alloy_primitives::{Address, U256};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    atto::Atto,
    price::Rate,
    split::{InvalidSplit, Split, WHOLE_PPM},
};

/// Atto base units in a nano base unit.
const ATTO_PER_NANO: U256 = U256::from_limbs([1_000_000_000, 0, 0, 0]);
/// Whoever runs a model gets this share of a call at least, in millionths.
pub const WORKER_PPM_MIN: u32 = 50_000;
/// And this share at most, so that something is left for who made it.
pub const WORKER_PPM_MAX: u32 = 700_000;
/// What it gets where nobody said.
const WORKER_PPM: u32 = 100_000;
/// Addresses that share what is left.
pub const PAYEES_MAX: usize = 100;

/// What is charged for a call: the sum of these, each times what is counted. All are nano base units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tariff {
    /// For the call.
    #[schema(value_type = String, pattern = "^(0|[1-9][0-9]*)$", example = "7000000000")]
    pub call_nano: Rate,
    /// For each row of input.
    #[schema(value_type = String, pattern = "^(0|[1-9][0-9]*)$", example = "0")]
    pub row_nano: Rate,
    /// For each token that was read.
    #[schema(value_type = String, pattern = "^(0|[1-9][0-9]*)$", example = "0")]
    pub input_token_nano: Rate,
    /// For each token that was written.
    #[schema(value_type = String, pattern = "^(0|[1-9][0-9]*)$", example = "0")]
    pub output_token_nano: Rate,
    /// For 10^9 multiply-adds.
    #[schema(value_type = String, pattern = "^(0|[1-9][0-9]*)$", example = "0")]
    pub giga_madds_nano: Rate,
    /// Calls of an account in a day (UTC) that cost nothing.
    pub free_calls_per_day: u32,
}

/// What is counted of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Rows of input.
    pub rows: u64,
    /// Tokens that were read.
    pub input_tokens: u64,
    /// Tokens that were written.
    pub output_tokens: u64,
    /// Multiply-adds, as the program's recorded shapes count them.
    pub madds: u128,
}

impl Tariff {
    /// What a call costs that is not free; `None` above any amount.
    #[must_use]
    pub fn cost(&self, usage: &Usage) -> Option<Atto> {
        self.cost_of(1, usage)
    }

    /// What so many calls cost that are not free, of which this was counted together: the sum of their costs. `None` above any amount.
    #[must_use]
    pub fn cost_of(&self, calls: u64, usage: &Usage) -> Option<Atto> {
        let nano = [
            (self.call_nano, calls),
            (self.row_nano, usage.rows),
            (self.input_token_nano, usage.input_tokens),
            (self.output_token_nano, usage.output_tokens),
        ];
        let nano = nano
            .into_iter()
            .try_fold(U256::ZERO, |sum, (price, count)| {
                sum.checked_add(U256::from(price.nano()).checked_mul(U256::from(count))?)
            })?;
        // Nano base units of 10^9 are atto base units of one.
        let madds = U256::from(self.giga_madds_nano.nano()).checked_mul(U256::from(usage.madds))?;
        Atto::from_atto(nano.checked_mul(ATTO_PER_NANO)?.checked_add(madds)?)
    }

    /// Is a call of some kind dearer under this tariff than under the other? Then callers are told before it counts.
    #[must_use]
    pub fn is_dearer_than(&self, other: &Self) -> bool {
        let prices = |it: &Self| {
            [
                it.call_nano,
                it.row_nano,
                it.input_token_nano,
                it.output_token_nano,
                it.giga_madds_nano,
            ]
        };
        let mut pairs = prices(self).into_iter().zip(prices(other));
        pairs.any(|(new, old)| new > old) || self.free_calls_per_day < other.free_calls_per_day
    }
}

/// Who shares what is charged for a call, beside the platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Shares {
    /// What the owner of the worker that ran it gets, in millionths.
    #[schema(minimum = 50_000, maximum = 700_000, example = 100_000)]
    pub worker_ppm: u32,
    /// Who shares the rest, by weight: whoever made the model, and whose data it was trained on.
    #[schema(value_type = Vec<Object>, min_items = 1, max_items = 100)]
    pub payees: Vec<Payee>,
}

/// One who shares what is left of a charge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Payee {
    /// Who is paid.
    #[schema(value_type = String, pattern = "^0x[0-9a-fA-F]{40}$")]
    pub address: Address,
    /// Against the weights of the others.
    #[schema(minimum = 1)]
    pub weight: u32,
}

impl Shares {
    /// Those of somebody who did not say: all of what the worker's owner does not get.
    #[must_use]
    pub fn of_creator(address: Address) -> Self {
        Self {
            worker_ppm: WORKER_PPM,
            payees: vec![Payee { address, weight: 1 }],
        }
    }

    /// What cannot be accepted: JSON pointers and reasons.
    #[must_use]
    pub fn refusals(&self) -> Vec<(String, String)> {
        let mut refusals = Vec::new();
        if !(WORKER_PPM_MIN..=WORKER_PPM_MAX).contains(&self.worker_ppm) {
            let why = format!("expected {WORKER_PPM_MIN} to {WORKER_PPM_MAX}");
            refusals.push(("/worker_ppm".to_owned(), why));
        }
        if !(1..=PAYEES_MAX).contains(&self.payees.len()) {
            let why = format!("expected 1 to {PAYEES_MAX}");
            refusals.push(("/payees".to_owned(), why));
        }
        let payees = self.payees.iter().enumerate().take(PAYEES_MAX);
        for (place, payee) in payees {
            if payee.weight == 0 {
                let pointer = format!("/payees/{place}/weight");
                refusals.push((pointer, "expected a weight above 0".to_owned()));
            }
            if payee.address.is_zero() {
                let pointer = format!("/payees/{place}/address");
                refusals.push((pointer, "nobody has the zero address".to_owned()));
            }
        }
        refusals
    }

    /// How the charge of a call is shared that a worker of this owner ran.
    ///
    /// # Errors
    /// When the platform takes more than may be taken, or nobody is left to pay.
    pub fn split(
        &self,
        (platform, platform_ppm): (Address, u32),
        worker: Address,
    ) -> Result<Split, InvalidSplit> {
        let rest = WHOLE_PPM
            .checked_sub(platform_ppm)
            .and_then(|rest| rest.checked_sub(self.worker_ppm))
            .ok_or(InvalidSplit::PlatformTooHigh)?;
        let total: u64 = self.payees.iter().map(|it| u64::from(it.weight)).sum();
        // On a common scale: the worker's share is of the whole, those of the others of what is left.
        let worker_weight = u64::from(self.worker_ppm)
            .checked_mul(total)
            .ok_or(InvalidSplit::TooMany)?;
        let mut shares = vec![(worker, worker_weight)];
        for payee in &self.payees {
            let weight = u64::from(payee.weight).checked_mul(u64::from(rest));
            shares.push((payee.address, weight.ok_or(InvalidSplit::TooMany)?));
        }
        Split::new(platform, platform_ppm, &shares)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::amount::Amount;

    fn rate(nano: u128) -> Rate {
        Rate::from_nano(nano).unwrap()
    }

    fn shares(worker_ppm: u32, payees: &[(u8, u32)]) -> Shares {
        let payee = |&(byte, weight): &(u8, u32)| Payee {
            address: Address::repeat_byte(byte),
            weight,
        };
        Shares {
            worker_ppm,
            payees: payees.iter().map(payee).collect(),
        }
    }

    #[test]
    fn a_call_costs_the_sum_of_what_is_counted() {
        let tariff = Tariff {
            call_nano: rate(7_000_000_000),
            row_nano: rate(3),
            input_token_nano: rate(5),
            output_token_nano: rate(11),
            giga_madds_nano: rate(2),
            free_calls_per_day: 0,
        };
        let usage = Usage {
            rows: 2,
            input_tokens: 10,
            output_tokens: 100,
            madds: 1_500_000_000,
        };
        // 7 base units, and (6 + 50 + 1100 + 3) nano.
        let expected = U256::from(7_000_001_159_u64) * ATTO_PER_NANO;
        assert_eq!(tariff.cost(&usage).unwrap().atto(), expected);
        assert_eq!(Tariff::default().cost(&usage), Some(Atto::ZERO));
    }

    #[test]
    fn a_cost_above_any_amount_is_none() {
        let tariff = Tariff {
            row_nano: rate(Amount::MAX.base()),
            ..Tariff::default()
        };
        let rows = |rows| Usage {
            rows,
            ..Usage::default()
        };
        assert!(tariff.cost(&rows(1_000_000_000)).is_some());
        assert_eq!(tariff.cost(&rows(1_000_000_001)), None);
        assert_eq!(tariff.cost(&rows(u64::MAX)), None);
    }

    #[test]
    fn a_rise_of_any_part_is_a_rise_and_so_are_fewer_free_calls() {
        let now = Tariff {
            call_nano: rate(7),
            row_nano: rate(7),
            free_calls_per_day: 5,
            ..Tariff::default()
        };
        let raised = |change: fn(&mut Tariff)| {
            let mut then = now;
            change(&mut then);
            then.is_dearer_than(&now)
        };
        assert!(!raised(|_| {}));
        assert!(!raised(
            |it| (it.call_nano, it.free_calls_per_day) = (rate(0), 6)
        ));
        assert!(raised(|it| (it.call_nano, it.row_nano) = (rate(0), rate(8))));
        assert!(raised(|it| it.output_token_nano = rate(1)));
        assert!(raised(|it| it.free_calls_per_day = 4));
    }

    #[test]
    fn the_split_of_the_documents_is_85_10_5() {
        let shares = shares(100_000, &[(1, 1)]);
        let (platform, worker) = (Address::repeat_byte(9), Address::repeat_byte(2));
        let split = shares.split((platform, 50_000), worker).unwrap();
        let ppm = |payee| {
            split
                .parties()
                .iter()
                .find(|it| it.payee == payee)
                .unwrap()
                .ppm
        };
        assert_eq!(
            (ppm(Address::repeat_byte(1)), ppm(worker), ppm(platform)),
            (850_000, 100_000, 50_000)
        );
    }

    #[test]
    fn each_bound_of_shares_is_named() {
        let refused = |it: Shares| -> Vec<String> {
            it.refusals()
                .into_iter()
                .map(|(pointer, _)| pointer)
                .collect()
        };
        assert!(refused(shares(WORKER_PPM_MIN, &[(1, 1)])).is_empty());
        assert!(refused(shares(WORKER_PPM_MAX, &[(1, 1)])).is_empty());
        assert_eq!(
            refused(shares(WORKER_PPM_MIN - 1, &[(1, 1)])),
            ["/worker_ppm"]
        );
        assert_eq!(
            refused(shares(WORKER_PPM_MAX + 1, &[(1, 1)])),
            ["/worker_ppm"]
        );
        assert_eq!(refused(shares(WORKER_PPM_MIN, &[])), ["/payees"]);
        assert_eq!(
            refused(shares(WORKER_PPM_MIN, &[(1, 0), (0, 1)])),
            ["/payees/0/weight", "/payees/1/address"]
        );
    }

    proptest! {
        #[test]
        fn whatever_the_weights_the_worker_gets_its_share_and_nothing_is_lost(
            worker_ppm in WORKER_PPM_MIN..=WORKER_PPM_MAX,
            platform_ppm in 0_u32..=200_000,
            weights in prop::collection::vec(1_u32.., 1..PAYEES_MAX),
        ) {
            let payees: Vec<_> = (10_u8..).zip(weights).collect();
            let worker = Address::repeat_byte(1);
            let split = shares(worker_ppm, &payees).split((Address::repeat_byte(2), platform_ppm), worker).unwrap();
            let found = split.parties().iter().find(|it| it.payee == worker && !it.platform).unwrap().ppm;
            prop_assert!(found.abs_diff(worker_ppm) <= 1, "{found} for {worker_ppm}");
            let sum: u32 = split.parties().iter().map(|it| it.ppm).sum();
            prop_assert_eq!(sum, WHOLE_PPM);
        }
    }
}
