//! What the calls of a usage window are charged, and the document that explains it: its hash is in the receipt, as that of a job's bill is.
#![deny(clippy::float_arithmetic, clippy::arithmetic_side_effects)]

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    amount::Amount,
    atto::Atto,
    bill::{BillError, BillMismatch, BilledParty, shared_by},
    digest::Sha256,
    id::{ModelId, ModelVersionId, SplitVersionId, UsageWindowId},
    model::Tariff,
    offer::PLATFORM_PPM_MAX,
    split::{Shared, Split},
    usage::Counted,
};

/// The kind of the receipt's leaf.
pub const LEAF_KIND: u8 = 6;

/// What a payer has used of one price of a model so far, exactly, and what of it was charged.
///
/// What is charged are the whole base units that the use passed. An allowance covers what its calls cost together; where it is used up to the
/// last unit by calls of several prices, it may lack a unit of what each of them passes. That stays uncharged until the next calls of the price.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CallCarry {
    used: Atto,
    charged: Amount,
}

impl CallCarry {
    /// `None` where more was charged than used.
    #[must_use]
    pub fn new(used: Atto, charged: Amount) -> Option<Self> {
        (charged <= used.floor()).then_some(Self { used, charged })
    }

    /// What was used so far.
    #[must_use]
    pub const fn used(self) -> Atto {
        self.used
    }

    /// What was charged so far.
    #[must_use]
    pub const fn charged(self) -> Amount {
        self.charged
    }

    /// The whole base units that were used and not charged.
    #[must_use]
    pub fn owed(self) -> Amount {
        let owed = self.used.floor().checked_sub(self.charged);
        owed.expect("no more is charged than used")
    }

    /// Uses more, of which an allowance covers so much: what is charged now, and the carry after it. `None` above any amount.
    #[must_use]
    pub fn charge(self, amount: Atto, covered: Amount) -> Option<(Amount, Self)> {
        let used = self.used.checked_add(amount)?;
        let gross = used.floor().checked_sub(self.charged)?.min(covered);
        let charged = self.charged.checked_add(gross)?;
        Some((gross, Self { used, charged }))
    }
}

/// Calls that are charged together, before the charge is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Calls {
    /// The window that counted them.
    pub window: UsageWindowId,
    /// The model.
    pub model: ModelId,
    /// The version that answered.
    pub version: ModelVersionId,
    /// Which of the model's prices.
    pub price_number: u32,
    /// That price.
    pub tariff: Tariff,
    /// What was counted.
    pub counted: Counted,
}

/// Everything that the charge of a usage window was computed from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CallsBill {
    /// The window that counted the calls.
    #[schema(value_type = String, pattern = "^uwn_[0-9a-z]{26}$")]
    pub window: UsageWindowId,
    /// The model.
    #[schema(value_type = String, pattern = "^mdl_[0-9a-z]{26}$")]
    pub model: ModelId,
    /// The version that answered.
    #[schema(value_type = String, pattern = "^mdv_[0-9a-z]{26}$")]
    pub version: ModelVersionId,
    /// Which of the model's prices.
    pub price_number: u32,
    /// That price.
    pub tariff: Tariff,
    /// What was counted.
    pub counted: Counted,
    /// What it costs: price times counts, in atto base units (10^-18 of a base unit).
    #[schema(value_type = String, pattern = "^(0|[1-9][0-9]*)$")]
    pub amount_atto: Atto,
    /// What the payer had used of this price before, in atto base units.
    #[schema(value_type = String, pattern = "^(0|[1-9][0-9]*)$")]
    pub used_before_atto: Atto,
    /// What the payer was charged for that.
    #[schema(value_type = String, pattern = "^(0|[1-9][0-9]*)$")]
    pub charged_before_base: Amount,
    /// What was left of the allowance: no more is charged.
    #[schema(value_type = String, pattern = "^(0|[1-9][0-9]*)$")]
    pub covered_base: Amount,
    /// The charge: the whole base units that the payer's use passed and that were not charged.
    #[schema(value_type = String, pattern = "^(0|[1-9][0-9]*)$")]
    pub gross_base: Amount,
    /// The split that shared it.
    #[schema(value_type = String, pattern = "^spl_[0-9a-z]{26}$")]
    pub split_version: SplitVersionId,
    /// Its parties, in order.
    pub parties: Vec<BilledParty>,
}

impl Calls {
    /// Bills them: the document, the payer's carry and the state of the split after it.
    ///
    /// # Errors
    /// When a number is out of bounds or the carries are not those of the split.
    pub fn bill(
        &self,
        (before, covered): (CallCarry, Amount),
        split_version: SplitVersionId,
        split: &Split,
        carries: &[u32],
    ) -> Result<(CallsBill, CallCarry, Shared), BillError> {
        let counted = self.counted;
        let amount = self.tariff.cost_of(counted.calls, &counted.usage());
        let amount = amount.ok_or(BillError::TooLarge)?;
        let charge = before.charge(amount, covered);
        let (gross, after) = charge.ok_or(BillError::TooLarge)?;
        let shared = split.share(gross, carries)?;
        let bill = CallsBill {
            window: self.window,
            model: self.model,
            version: self.version,
            price_number: self.price_number,
            tariff: self.tariff,
            counted,
            amount_atto: amount,
            used_before_atto: before.used,
            charged_before_base: before.charged,
            covered_base: covered,
            gross_base: gross,
            split_version,
            parties: BilledParty::of(split, carries, &shared),
        };
        Ok((bill, after, shared))
    }
}

impl CallsBill {
    /// The digest of the document in canonical form: the `meterHash` of the receipt's leaf.
    #[must_use]
    pub fn digest(&self) -> Sha256 {
        Sha256::of_document(self).expect("strings and integers have a JSON form")
    }

    /// Computes the charge again, from the price that was published and what was counted.
    ///
    /// # Errors
    /// The first number that differs.
    pub fn recompute(&self) -> Result<(), BillMismatch> {
        let (split, carries) = shared_by(&self.parties, 0..=PLATFORM_PPM_MAX)?;
        let calls = Calls {
            window: self.window,
            model: self.model,
            version: self.version,
            price_number: self.price_number,
            tariff: self.tariff,
            counted: self.counted,
        };
        let before = CallCarry::new(self.used_before_atto, self.charged_before_base);
        let before = before.ok_or(BillMismatch::Gross)?;
        let covered = (before, self.covered_base);
        let again = calls.bill(covered, self.split_version, &split, &carries);
        let (again, _, _) = again?;
        if again.amount_atto != self.amount_atto {
            return Err(BillMismatch::Amount);
        }
        if again.gross_base != self.gross_base {
            return Err(BillMismatch::Gross);
        }
        if again.parties == self.parties {
            Ok(())
        } else {
            Err(BillMismatch::Split)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::Shares, model::Usage, price::Rate};
    use alloy_primitives::{Address, U256};
    use proptest::prelude::*;

    fn atto(value: u128) -> Atto {
        Atto::from_atto(U256::from(value)).unwrap()
    }

    fn base(value: u128) -> Amount {
        Amount::from_base(value).unwrap()
    }

    fn split() -> Split {
        let shares = Shares::of_creator(Address::repeat_byte(1));
        let platform = (Address::repeat_byte(9), 50_000);
        shares.split(platform, Address::repeat_byte(2)).unwrap()
    }

    fn billed() -> CallsBill {
        let calls = Calls {
            window: UsageWindowId::generate(),
            model: ModelId::generate(),
            version: ModelVersionId::generate(),
            price_number: 2,
            tariff: Tariff {
                call_nano: Rate::from_nano(7_300_000_000).unwrap(),
                giga_madds_nano: Rate::from_nano(1_000_000_001).unwrap(),
                ..Tariff::default()
            },
            counted: Counted {
                calls: 1_000,
                madds: 5_000_000_000,
                ..Counted::default()
            },
        };
        let before = CallCarry::new(atto(999_999_999_000_000_000), Amount::ZERO).unwrap();
        let covered = (before, base(8_000));
        calls
            .bill(
                covered,
                SplitVersionId::generate(),
                &split(),
                &[1, 2, 999_997],
            )
            .unwrap()
            .0
    }

    #[test]
    fn calls_are_charged_price_times_counts_with_what_was_carried() {
        let bill = billed();
        assert_eq!(
            bill.gross_base,
            base(7_306),
            "0.999999999 + 7300 + 5.000000005, rounded down"
        );
        let read: CallsBill = serde_json::from_value(serde_json::to_value(&bill).unwrap()).unwrap();
        assert_eq!(read, bill);
        assert_eq!(read.recompute(), Ok(()));
    }

    #[test]
    fn one_changed_number_of_a_window_is_found() {
        type Change = fn(&mut CallsBill);
        let mismatch = |change: Change| {
            let mut changed = billed();
            change(&mut changed);
            changed.recompute().unwrap_err()
        };
        let cases: [(Change, BillMismatch); 9] = [
            (|it| it.counted.calls += 1, BillMismatch::Amount),
            (
                |it| it.tariff.giga_madds_nano = it.tariff.call_nano,
                BillMismatch::Amount,
            ),
            (|it| it.gross_base = base(7_305), BillMismatch::Gross),
            (|it| it.used_before_atto = Atto::ZERO, BillMismatch::Gross),
            (|it| it.charged_before_base = base(1), BillMismatch::Gross),
            (|it| it.covered_base = base(7_305), BillMismatch::Gross),
            (
                |it| it.parties[0].credit = Amount::ZERO,
                BillMismatch::Split,
            ),
            (
                |it| it.parties[1].carry_before = 999_999,
                BillMismatch::Split,
            ),
            (
                |it| {
                    let most = it.parties.iter_mut().max_by_key(|it| it.party.ppm);
                    most.unwrap().party.platform = true;
                },
                BillMismatch::Split,
            ),
        ];
        for (place, (change, expected)) in cases.into_iter().enumerate() {
            assert_eq!(mismatch(change), expected, "case {place}");
        }
    }

    #[test]
    fn what_an_allowance_lacks_is_charged_with_the_next_calls() {
        let carry = CallCarry::new(atto(700_000_000_000_000_000), Amount::ZERO).unwrap();
        let (gross, carry) = carry
            .charge(atto(600_000_000_000_000_000), Amount::ZERO)
            .unwrap();
        assert_eq!((gross, carry.charged()), (Amount::ZERO, Amount::ZERO));
        let (gross, carry) = carry
            .charge(atto(700_000_000_000_000_000), base(5))
            .unwrap();
        assert_eq!((gross, carry.charged()), (base(2), base(2)));
        assert_eq!(CallCarry::new(carry.used(), base(3)), None);
    }

    proptest! {
        #[test]
        fn the_cost_of_many_calls_is_the_sum_of_their_costs_and_what_is_charged_its_whole_units(
            prices in prop::array::uniform5(0_u128..20_000_000_000),
            calls in prop::collection::vec((0_u64..1_000, 0_u64..1_000, 0_u64..1_000, 0_u128..1_000_000_000_000), 1..40),
        ) {
            let [call, row, input, output, madds] = prices.map(|it| Rate::from_nano(it).unwrap());
            let tariff = Tariff { call_nano: call, row_nano: row, input_token_nano: input, output_token_nano: output, giga_madds_nano: madds,
                free_calls_per_day: 0 };
            let (mut counted, mut cost) = (Counted::default(), Atto::ZERO);
            for (rows, input_tokens, output_tokens, madds) in calls {
                let usage = Usage { rows, input_tokens, output_tokens, madds };
                cost = cost.checked_add(tariff.cost(&usage).unwrap()).unwrap();
                counted = counted.with(&usage).unwrap();
            }
            prop_assert_eq!(tariff.cost_of(counted.calls, &counted.usage()), Some(cost));
            let (gross, after) = CallCarry::default().charge(cost, Amount::MAX).unwrap();
            prop_assert_eq!(gross, cost.floor());
            prop_assert_eq!((after.used(), after.charged()), (cost, gross));
        }
    }
}
