//! What others add to a dataset: the terms of its owner, the reward of what is accepted, and who shares later sales by what weight.
#![deny(clippy::float_arithmetic, clippy::arithmetic_side_effects)]

use alloy_primitives::Address;
use serde::{Deserialize, Serialize};
use time::Duration;
use utoipa::ToSchema;

use crate::{
    amount::Amount,
    bill::{BillError, BillMismatch, BilledParty, shared_by},
    digest::Sha256,
    id::{ContributionId, SplitVersionId},
    job::state::text_enum,
    split::{SHARES_MAX, Shared, Split, WHOLE_PPM},
};

/// Most rows of one contribution.
pub const ROWS_MAX: u64 = 1_000_000_000;
/// Most rows that are accepted to one dataset: times a million they are a weight of a split.
pub const ACCEPTED_ROWS_MAX: u64 = 1_000_000_000_000;
/// Most contributors of one dataset: they and its owner share what it brings.
pub const CONTRIBUTORS_MAX: usize = SHARES_MAX - 1;
/// How long an owner has to answer.
pub const ANSWERED_WITHIN: Duration = Duration::days(30);
/// The kind of a reward's leaf.
pub const LEAF_KIND: u8 = 5;

text_enum! {
    /// Where a contribution stands. All but the first are final.
    ContributionState {
        /// The owner of the dataset has not answered.
        Pending = "pending",
        /// It is paid, and shares in later sales.
        Accepted = "accepted",
        /// The owner said no.
        Rejected = "rejected",
        /// The contributor took it back.
        Withdrawn = "withdrawn",
        /// The owner said nothing in time.
        Lapsed = "lapsed",
    }
}

/// On what terms contributions are invited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// For each row that is accepted.
    pub reward: Amount,
    /// What contributors get of the seller's side of later sales, in millionths.
    pub pool_ppm: u32,
    /// Most rows of one contribution.
    pub rows_max: u64,
    /// Is anything taken now?
    pub is_open: bool,
}

impl Terms {
    /// What of them cannot be, by the name of its field.
    #[must_use]
    pub fn refusals(&self) -> Vec<(&'static str, String)> {
        let mut refusals = Vec::new();
        if self.pool_ppm > WHOLE_PPM {
            refusals.push(("/pool_ppm", format!("expected 0 to {WHOLE_PPM}")));
        }
        if !(1..=ROWS_MAX).contains(&self.rows_max) {
            refusals.push(("/rows_max", format!("expected 1 to {ROWS_MAX}")));
        } else if self.reward.times(self.rows_max).is_none() {
            let why = "so many rows would earn more than any amount";
            refusals.push(("/reward_per_row/amount", why.to_owned()));
        }
        refusals
    }
}

/// What was accepted of a contributor, as it counts in later sales.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AcceptedRows {
    /// Who is paid.
    pub payee: Address,
    /// How many.
    pub rows: u64,
    /// The contributors' part under the terms that they were offered on, in millionths.
    pub pool_ppm: u32,
}

/// Who shares the seller's side of a sale, and by what weight: of each accepted row, the contributor has `pool_ppm` millionths and the seller
/// the rest. Under terms that never changed, the contributors have `pool_ppm` of it together, by their rows. `None` above
/// [`ACCEPTED_ROWS_MAX`].
#[must_use]
pub fn weights(seller: Address, accepted: &[AcceptedRows]) -> Option<Vec<(Address, u64)>> {
    if accepted.is_empty() {
        return Some(vec![(seller, 1)]);
    }
    let mut rest: u64 = 0;
    let mut weights = Vec::with_capacity(accepted.len().saturating_add(1));
    for it in accepted {
        let kept = WHOLE_PPM.checked_sub(it.pool_ppm)?;
        rest = rest.checked_add(it.rows.checked_mul(kept.into())?)?;
        weights.push((it.payee, it.rows.checked_mul(it.pool_ppm.into())?));
    }
    weights.push((seller, rest));
    Some(weights)
}

/// What is paid for a contribution, before it is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reward {
    /// The contribution.
    pub contribution: ContributionId,
    /// Which of the dataset's terms.
    pub terms_number: u32,
    /// Rows that are accepted.
    pub rows: u64,
    /// For each of them.
    pub per_row: Amount,
}

/// Everything that a reward was computed from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RewardBill {
    /// The contribution.
    #[schema(value_type = String, pattern = "^con_[0-9a-z]{26}$")]
    pub contribution: ContributionId,
    /// Which of the dataset's terms it was made under.
    pub terms_number: u32,
    /// Rows that were accepted.
    pub rows: u64,
    /// What each of them earned.
    #[schema(value_type = String, pattern = "^(0|[1-9][0-9]*)$")]
    pub reward_per_row_base: Amount,
    /// The charge.
    #[schema(value_type = String, pattern = "^(0|[1-9][0-9]*)$")]
    pub gross_base: Amount,
    /// The split that shared it: all of it is the contributor's.
    #[schema(value_type = String, pattern = "^spl_[0-9a-z]{26}$")]
    pub split_version: SplitVersionId,
    /// Its parties, in order.
    pub parties: Vec<BilledParty>,
}

impl Reward {
    /// The charge. `None` above every amount.
    #[must_use]
    pub fn gross(&self) -> Option<Amount> {
        self.per_row.times(self.rows)
    }

    /// Bills it: the document, and the state of the split after it.
    ///
    /// # Errors
    /// When a number is out of bounds or the carries are not those of the split.
    pub fn bill(
        &self,
        split_version: SplitVersionId,
        split: &Split,
        carries: &[u32],
    ) -> Result<(RewardBill, Shared), BillError> {
        let gross = self.gross().ok_or(BillError::TooLarge)?;
        let shared = split.share(gross, carries)?;
        let bill = RewardBill {
            contribution: self.contribution,
            terms_number: self.terms_number,
            rows: self.rows,
            reward_per_row_base: self.per_row,
            gross_base: gross,
            split_version,
            parties: BilledParty::of(split, carries, &shared),
        };
        Ok((bill, shared))
    }
}

impl RewardBill {
    /// The digest of the document in canonical form: the `meterHash` of the receipt's leaf.
    #[must_use]
    pub fn digest(&self) -> Sha256 {
        Sha256::of_document(self).expect("strings and integers have a JSON form")
    }

    /// Computes the reward again, from the terms that were published and the rows that were accepted.
    ///
    /// # Errors
    /// The first number that differs.
    pub fn recompute(&self) -> Result<(), BillMismatch> {
        // Nothing is taken of a reward.
        if self.parties.iter().any(|it| it.party.platform) {
            return Err(BillMismatch::Split);
        }
        let (split, carries) = shared_by(&self.parties, 0..=0)?;
        let reward = Reward {
            contribution: self.contribution,
            terms_number: self.terms_number,
            rows: self.rows,
            per_row: self.reward_per_row_base,
        };
        let again = reward.bill(self.split_version, &split, &carries);
        let (again, _) = again?;
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
#[expect(
    clippy::arithmetic_side_effects,
    reason = "a test that overflows fails"
)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SELLER: Address = Address::repeat_byte(1);

    fn rows(payee: u8, rows: u64, pool_ppm: u32) -> AcceptedRows {
        AcceptedRows {
            payee: Address::repeat_byte(payee),
            rows,
            pool_ppm,
        }
    }

    #[test]
    fn contributors_share_their_part_by_rows_and_the_seller_has_the_rest() {
        assert_eq!(weights(SELLER, &[]), Some(vec![(SELLER, 1)]));
        let accepted = [rows(2, 30, 400_000), rows(3, 10, 400_000)];
        let weights = weights(SELLER, &accepted).unwrap();
        let split = Split::new(Address::repeat_byte(9), 50_000, &weights).unwrap();
        let ppm: Vec<_> = split.parties().iter().map(|it| it.ppm).collect();
        // Of 95 %, 40 % are the contributors' (three to one), and 60 % the seller's.
        assert_eq!(ppm, [50_000, 570_000, 285_000, 95_000]);
    }

    #[test]
    fn rows_count_under_the_terms_that_they_were_offered_on() {
        let accepted = [rows(2, 10, 1_000_000), rows(3, 10, 0)];
        let weights = weights(SELLER, &accepted).unwrap();
        let split = Split::new(Address::repeat_byte(9), 0, &weights).unwrap();
        let ppm: Vec<_> = split
            .parties()
            .iter()
            .map(|it| (it.payee, it.ppm))
            .collect();
        assert_eq!(ppm, [(SELLER, 500_000), (Address::repeat_byte(2), 500_000)]);
    }

    #[test]
    fn the_weights_of_as_many_rows_as_there_may_be_are_exact() {
        for pool_ppm in [0, 1, 999_999, 1_000_000] {
            let most = weights(SELLER, &[rows(2, ACCEPTED_ROWS_MAX, pool_ppm)]).unwrap();
            let sum: u64 = most.iter().map(|(_, weight)| weight).sum();
            assert_eq!(sum, ACCEPTED_ROWS_MAX * 1_000_000);
        }
        assert_eq!(weights(SELLER, &[rows(2, u64::MAX, 2)]), None);
        assert_eq!(weights(SELLER, &[rows(2, 1, 1_000_001)]), None);
    }

    fn reward(rows: u64, per_row: u128) -> Reward {
        Reward {
            contribution: ContributionId::generate(),
            terms_number: 1,
            rows,
            per_row: Amount::from_base(per_row).unwrap(),
        }
    }

    fn all_to_one() -> Split {
        let payee = [(Address::repeat_byte(2), 1)];
        Split::new(Address::repeat_byte(9), 0, &payee).unwrap()
    }

    #[test]
    fn the_platform_takes_nothing_of_a_reward() {
        let payee = [(Address::repeat_byte(2), 1)];
        let split = Split::new(Address::repeat_byte(9), 1, &payee).unwrap();
        let (bill, _) = reward(1_000, 7)
            .bill(SplitVersionId::generate(), &split, &[0, 0])
            .unwrap();
        assert_eq!(bill.recompute(), Err(BillMismatch::Split));
    }

    #[test]
    fn one_changed_number_of_a_reward_is_found() {
        let (bill, _) = reward(1_000, 7)
            .bill(SplitVersionId::generate(), &all_to_one(), &[0])
            .unwrap();
        assert_eq!(bill.recompute(), Ok(()));
        let mismatch = |change: fn(&mut RewardBill)| {
            let mut changed = bill.clone();
            change(&mut changed);
            changed.recompute().unwrap_err()
        };
        assert_eq!(mismatch(|it| it.rows = 999), BillMismatch::Gross);
        assert_eq!(mismatch(|it| it.rows = u64::MAX), BillMismatch::Gross);
        let other = |it: &mut RewardBill| it.reward_per_row_base = Amount::MAX;
        assert_eq!(mismatch(other), BillMismatch::Amount);
        assert_eq!(
            mismatch(|it| it.gross_base = Amount::ZERO),
            BillMismatch::Gross
        );
        let less = |it: &mut RewardBill| it.parties[0].credit = Amount::ZERO;
        assert_eq!(mismatch(less), BillMismatch::Split);
        assert_eq!(
            mismatch(|it| it.parties[0].party.ppm -= 1),
            BillMismatch::Split
        );
    }

    #[test]
    fn terms_that_cannot_be_are_refused_by_field() {
        let good = Terms {
            reward: Amount::ZERO,
            pool_ppm: 0,
            rows_max: 1,
            is_open: true,
        };
        assert_eq!(good.refusals(), []);
        let refused = |terms: Terms| terms.refusals().first().map(|(field, _)| *field);
        let pool_ppm = 1_000_001;
        assert_eq!(refused(Terms { pool_ppm, ..good }), Some("/pool_ppm"));
        for rows_max in [0, ROWS_MAX + 1] {
            assert_eq!(refused(Terms { rows_max, ..good }), Some("/rows_max"));
        }
        let dear = Terms {
            reward: Amount::MAX,
            rows_max: 2,
            ..good
        };
        assert_eq!(refused(dear), Some("/reward_per_row/amount"));
    }

    proptest! {
        #[test]
        fn a_reward_is_the_contributors_to_the_unit(count in 1..=ROWS_MAX, per_row in 1_u128..=1 << 80) {
            let (bill, shared) = reward(count, per_row)
                .bill(SplitVersionId::generate(), &all_to_one(), &[0]).unwrap();
            prop_assert_eq!(bill.gross_base.base(), u128::from(count) * per_row);
            prop_assert_eq!(shared.credits, vec![bill.gross_base]);
            prop_assert_eq!((shared.carries, shared.dust.base()), (vec![0], 0));
        }
    }
}
