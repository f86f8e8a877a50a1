//! Who gets what of a charge, by carry: each party keeps its fraction of a base unit for the next charge, so
//! nothing is lost, nothing is taken back, and the order of charges does not matter.
#![deny(clippy::float_arithmetic, clippy::arithmetic_side_effects)]

use std::collections::BTreeMap;

use alloy_primitives::{Address, U256};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{amount::Amount, digest::Sha256, ledger::Change, price::HOUSE_PPM_MAX};

/// Millionths that the weights of a split sum to.
pub const WHOLE_PPM: u32 = 1_000_000;
/// Most payees beside the platform.
pub const SHARES_MAX: usize = 1_000;

/// One party of a split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Party {
    /// Who is paid.
    #[schema(value_type = String, pattern = "^0x[0-9a-fA-F]{40}$")]
    pub payee: Address,
    /// Is it the platform's share?
    pub platform: bool,
    /// Its weight, in millionths.
    pub ppm: u32,
}

/// The parties of a split: the platform first if it takes a share, then the payees by address. Their weights
/// sum to exactly [`WHOLE_PPM`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    parties: Vec<Party>,
}

/// What one charge gives to the parties.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shared {
    /// The whole base units of each party.
    pub credits: Vec<Amount>,
    /// What each party carries to the next charge, in millionths of a base unit.
    pub carries: Vec<u32>,
    /// What the dust account takes (positive) or gives (negative).
    pub dust: Change,
}

/// Why there is no split, or no share of a charge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSplit {
    /// The house asks for more than [`HOUSE_PPM_MAX`].
    #[error("the platform's share is above 272728 millionths")]
    PlatformTooHigh,
    /// Nobody has a weight. The work of a charge has somebody who did it.
    #[error("the shares have no weight")]
    NoWeight,
    /// More than [`SHARES_MAX`] payees.
    #[error("a split has at most 1000 payees")]
    TooMany,
    /// Stored weights or carries are not those of a split.
    #[error("the weights or carries are not those of a split")]
    Corrupt,
}

impl Split {
    /// The platform's share, and the rest apportioned to `shares` by weight: largest remainder, ties by address.
    ///
    /// # Errors
    /// When a bound is passed or nobody has a weight.
    pub fn new(
        platform: Address,
        platform_ppm: u32,
        shares: &[(Address, u64)],
    ) -> Result<Self, InvalidSplit> {
        if platform_ppm > HOUSE_PPM_MAX {
            return Err(InvalidSplit::PlatformTooHigh);
        }
        let rest = WHOLE_PPM
            .checked_sub(platform_ppm)
            .ok_or(InvalidSplit::PlatformTooHigh)?;
        let fee = Party {
            payee: platform,
            platform: true,
            ppm: platform_ppm,
        };
        let payees = apportion(rest, shares)?;
        let payees = payees.into_iter().map(|(payee, ppm)| Party {
            payee,
            platform: false,
            ppm,
        });
        Self::from_parties(
            std::iter::once(fee)
                .chain(payees)
                .filter(|party| party.ppm > 0)
                .collect(),
        )
    }

    /// A split as it was stored.
    ///
    /// # Errors
    /// When the weights do not sum to [`WHOLE_PPM`].
    pub fn from_parties(parties: Vec<Party>) -> Result<Self, InvalidSplit> {
        let sum: u64 = parties.iter().map(|party| u64::from(party.ppm)).sum();
        if sum == u64::from(WHOLE_PPM) && parties.len() <= SHARES_MAX.saturating_add(1) {
            Ok(Self { parties })
        } else {
            Err(InvalidSplit::Corrupt)
        }
    }

    /// The parties, in order.
    #[must_use]
    pub fn parties(&self) -> &[Party] {
        &self.parties
    }

    /// What names these parties and weights.
    #[must_use]
    pub fn digest(&self) -> Sha256 {
        Sha256::of_document(&self.parties).expect("addresses and integers have a JSON form")
    }

    /// Shares a charge: `carry += gross * ppm`, `credit = carry / 10^6`, `carry %= 10^6`, for each party.
    ///
    /// # Errors
    /// When the carries are not those of this split.
    pub fn share(&self, gross: Amount, carries: &[u32]) -> Result<Shared, InvalidSplit> {
        if carries.len() != self.parties.len() {
            return Err(InvalidSplit::Corrupt);
        }
        let before = dust(carries)?;
        let shares = self
            .parties
            .iter()
            .zip(carries)
            .map(|(party, carry)| share_of(gross, party.ppm, *carry));
        let (credits, carries): (Vec<_>, Vec<_>) = shares
            .collect::<Option<Vec<_>>>()
            .ok_or(InvalidSplit::Corrupt)?
            .into_iter()
            .unzip();
        let given = Amount::sum(credits.iter().copied()).ok_or(InvalidSplit::Corrupt)?;
        let rest = Change::credit(gross)
            .base()
            .checked_sub(Change::credit(given).base());
        let kept = i128::from(dust(&carries)?).checked_sub(i128::from(before));
        // What the parties did not get is what they carry: exactly, after every charge.
        match (rest, kept) {
            (Some(rest), Some(kept)) if rest == kept => {
                let dust = Change::from_base(rest).ok_or(InvalidSplit::Corrupt)?;
                Ok(Shared {
                    credits,
                    carries,
                    dust,
                })
            }
            _ => Err(InvalidSplit::Corrupt),
        }
    }

    /// Ends the split: its dust goes to the parties by largest carry, ties by address; each gets one base unit at most.
    ///
    /// # Errors
    /// When the carries are not those of this split.
    pub fn close(&self, carries: &[u32]) -> Result<Vec<Amount>, InvalidSplit> {
        if carries.len() != self.parties.len() {
            return Err(InvalidSplit::Corrupt);
        }
        let units = usize::try_from(dust(carries)?).map_err(|_| InvalidSplit::Corrupt)?;
        let mut order: Vec<_> = self.parties.iter().zip(carries).enumerate().collect();
        order.sort_by_key(|(_, (party, carry))| {
            (std::cmp::Reverse(**carry), party.payee, party.platform)
        });
        let mut credits = vec![Amount::ZERO; self.parties.len()];
        for (index, _) in order.into_iter().take(units) {
            credits[index] = Amount::from_base(1).expect("one is an amount");
        }
        Ok(credits)
    }
}

/// The whole base units that parties carry together.
fn dust(carries: &[u32]) -> Result<u64, InvalidSplit> {
    let sum: u64 = carries.iter().copied().map(u64::from).sum();
    let whole = u64::from(WHOLE_PPM);
    match (sum.checked_div(whole), sum.checked_rem(whole)) {
        (Some(units), Some(0)) if carries.iter().all(|carry| *carry < WHOLE_PPM) => Ok(units),
        _ => Err(InvalidSplit::Corrupt),
    }
}

fn share_of(gross: Amount, ppm: u32, carry: u32) -> Option<(Amount, u32)> {
    let whole = U256::from(WHOLE_PPM);
    let sum = U256::from(gross.base())
        .checked_mul(U256::from(ppm))?
        .checked_add(U256::from(carry))?;
    let credit = Amount::from_base(sum.checked_div(whole)?.try_into().ok()?)?;
    Some((credit, sum.checked_rem(whole)?.try_into().ok()?))
}

/// Millionths by weight that sum to exactly `total`: floors, then one more to the largest remainders, ties by
/// address. An address that is named twice has the sum of its weights.
fn apportion(total: u32, shares: &[(Address, u64)]) -> Result<Vec<(Address, u32)>, InvalidSplit> {
    let mut weights: BTreeMap<Address, u128> = BTreeMap::new();
    for (payee, weight) in shares {
        let sum = weights.entry(*payee).or_default();
        *sum = sum
            .checked_add(u128::from(*weight))
            .ok_or(InvalidSplit::TooMany)?;
    }
    if weights.len() > SHARES_MAX {
        return Err(InvalidSplit::TooMany);
    }
    let sum: u128 = weights
        .values()
        .try_fold(0_u128, |sum, weight| sum.checked_add(*weight))
        .ok_or(InvalidSplit::TooMany)?;
    let mut parts = weights
        .into_iter()
        .map(|(payee, weight)| {
            let product = u128::from(total).checked_mul(weight)?;
            let floor = u32::try_from(product.checked_div(sum)?).ok()?;
            Some((payee, floor, product.checked_rem(sum)?))
        })
        .collect::<Option<Vec<_>>>()
        .ok_or(InvalidSplit::NoWeight)?;
    let given: u32 = parts.iter().map(|(_, floor, _)| *floor).sum();
    let missing = total.checked_sub(given).ok_or(InvalidSplit::Corrupt)?;
    parts.sort_by_key(|(payee, _, remainder)| (std::cmp::Reverse(*remainder), *payee));
    for (_, ppm, _) in parts
        .iter_mut()
        .take(usize::try_from(missing).map_err(|_| InvalidSplit::Corrupt)?)
    {
        *ppm = ppm.saturating_add(1);
    }
    parts.sort_by_key(|(payee, _, _)| *payee);
    let parts: Vec<_> = parts
        .into_iter()
        .map(|(payee, ppm, _)| (payee, ppm))
        .collect();
    if parts.is_empty() {
        Err(InvalidSplit::NoWeight)
    } else {
        Ok(parts)
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

    const PLATFORM: Address = Address::repeat_byte(0xff);

    fn amount(base: u128) -> Amount {
        Amount::from_base(base).unwrap()
    }

    fn payee(number: u8) -> Address {
        Address::repeat_byte(number)
    }

    fn ppms(split: &Split) -> Vec<u32> {
        split.parties().iter().map(|party| party.ppm).collect()
    }

    #[test]
    fn the_remainder_goes_to_the_largest_and_ties_to_the_smaller_address() {
        let split = Split::new(
            PLATFORM,
            50_000,
            &[(payee(3), 1), (payee(1), 1), (payee(2), 1)],
        )
        .unwrap();
        assert_eq!(ppms(&split), [50_000, 316_667, 316_667, 316_666]);
        assert_eq!(split.parties()[1].payee, payee(1));
        let split = Split::new(PLATFORM, 0, &[(payee(1), 1), (payee(2), 2)]).unwrap();
        assert_eq!(ppms(&split), [333_333, 666_667]);
    }

    #[test]
    fn an_address_that_worked_twice_is_one_party() {
        let split =
            Split::new(PLATFORM, 0, &[(payee(1), 3), (payee(2), 2), (payee(1), 5)]).unwrap();
        assert_eq!(ppms(&split), [800_000, 200_000]);
    }

    #[test]
    fn a_charge_without_work_or_with_a_greedy_platform_has_no_split() {
        assert_eq!(Split::new(PLATFORM, 0, &[]), Err(InvalidSplit::NoWeight));
        assert_eq!(
            Split::new(PLATFORM, 0, &[(payee(1), 0)]),
            Err(InvalidSplit::NoWeight)
        );
        assert_eq!(
            Split::new(PLATFORM, HOUSE_PPM_MAX + 1, &[(payee(1), 1)]),
            Err(InvalidSplit::PlatformTooHigh)
        );
        let crowd: Vec<_> = (0..=u64::try_from(SHARES_MAX).unwrap())
            .map(|number| (Address::left_padding_from(&number.to_be_bytes()), 1))
            .collect();
        assert_eq!(Split::new(PLATFORM, 0, &crowd), Err(InvalidSplit::TooMany));
    }

    #[test]
    fn small_charges_pay_every_party_its_exact_part() {
        // MONEY.md's case: a price of 7, a million times, 85/10/5.
        let split = Split::new(PLATFORM, 50_000, &[(payee(1), 85), (payee(2), 10)]).unwrap();
        let mut carries = vec![0; 3];
        let mut paid = [0; 3];
        for _ in 0..1_000_000 {
            let shared = split.share(amount(7), &carries).unwrap();
            for (paid, credit) in paid.iter_mut().zip(&shared.credits) {
                *paid += credit.base();
            }
            carries = shared.carries;
        }
        let exact: Vec<_> = ppms(&split)
            .iter()
            .map(|ppm| 7 * u128::from(*ppm))
            .collect();
        assert_eq!(paid.as_slice(), exact);
    }

    #[test]
    fn carries_of_another_split_are_refused() {
        let split = Split::new(PLATFORM, 0, &[(payee(1), 1), (payee(2), 1)]).unwrap();
        for carries in [vec![], vec![0], vec![0, 1], vec![1_000_000, 0]] {
            assert_eq!(
                split.share(amount(1), &carries),
                Err(InvalidSplit::Corrupt),
                "{carries:?}"
            );
            assert_eq!(
                split.close(&carries),
                Err(InvalidSplit::Corrupt),
                "{carries:?}"
            );
        }
    }

    prop_compose! {
        fn splits()(
            platform_ppm in 0..=HOUSE_PPM_MAX,
            shares in prop::collection::vec((0..12_u8, prop_oneof![1..4_u64, any::<u64>()]), 1..12),
        ) -> Option<Split> {
            let shares: Vec<_> = shares.into_iter().map(|(number, weight)| (payee(number), weight)).collect();
            Split::new(PLATFORM, platform_ppm, &shares).ok()
        }
    }

    proptest! {
        #[test]
        fn after_every_charge_each_party_has_its_floor_and_the_rest_is_dust(
            split in splits(),
            charges in prop::collection::vec(prop_oneof![0..30_u128, 0..=Amount::MAX.base() >> 8], 1..60),
        ) {
            let split = split.expect("weights above zero");
            prop_assert_eq!(ppms(&split).iter().sum::<u32>(), WHOLE_PPM);
            let parties = split.parties().len();
            let mut carries = vec![0; parties];
            let mut paid = vec![U256::ZERO; parties];
            let (mut total, mut dust) = (U256::ZERO, 0_i128);
            for charge in charges {
                let shared = split.share(amount(charge), &carries).unwrap();
                carries = shared.carries;
                total += U256::from(charge);
                dust += shared.dust.base();
                for ((paid, credit), party) in paid.iter_mut().zip(&shared.credits).zip(split.parties()) {
                    *paid += U256::from(credit.base());
                    prop_assert_eq!(*paid, total * U256::from(party.ppm) / U256::from(WHOLE_PPM));
                }
                let carried: u64 = carries.iter().copied().map(u64::from).sum();
                prop_assert_eq!(u64::try_from(dust).unwrap() * u64::from(WHOLE_PPM), carried);
                prop_assert!(dust < i128::try_from(parties).unwrap());
            }
            let closing = split.close(&carries).unwrap();
            let handed: u128 = closing.iter().map(|credit| credit.base()).sum();
            prop_assert_eq!(handed, u128::try_from(dust).unwrap());
            prop_assert!(closing.iter().all(|credit| credit.base() <= 1));
        }
    }
}
