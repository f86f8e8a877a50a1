//! What a sale is charged, and the document that explains it: its hash is in the receipt, as that of a job's bill is.
#![deny(clippy::float_arithmetic, clippy::arithmetic_side_effects)]

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    amount::Amount,
    bill::{BillError, BillMismatch, BilledParty, shared_by},
    digest::Sha256,
    id::{OfferId, SplitVersionId},
    job::state::text_enum,
    offer::{OfferKind, PLATFORM_PPM_MAX},
    split::{Shared, Split},
};

text_enum! {
    /// What was sold.
    SaleKind {
        /// For good.
        Purchase = "purchase",
        /// For some seconds, each of which has its price.
        Rental = "rental",
        /// For a period, or as much of it as was used.
        Subscription = "subscription",
    }
}

impl SaleKind {
    /// What is sold by an offer of this kind; `None` where taking it costs nothing.
    #[must_use]
    pub const fn of(offer: OfferKind) -> Option<Self> {
        match offer {
            OfferKind::Buy => Some(Self::Purchase),
            OfferKind::Rent => Some(Self::Rental),
            OfferKind::Subscribe => Some(Self::Subscription),
            OfferKind::ComputeOnly | OfferKind::Free => None,
        }
    }

    /// The kind of the receipt's leaf; a job's is 1.
    #[must_use]
    pub const fn leaf_kind(self) -> u8 {
        match self {
            Self::Purchase => 2,
            Self::Rental => 3,
            Self::Subscription => 4,
        }
    }
}

/// The time that was sold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Time {
    /// Seconds that were agreed.
    pub agreed_seconds: u32,
    /// Seconds that passed before it ended.
    pub used_seconds: u32,
    /// Seconds that are charged at least, of those agreed; left out: the used ones alone are, because nothing was read or its buyer did not end it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub minimum_seconds: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes it so")]
const fn is_zero(seconds: &u32) -> bool {
    *seconds == 0
}

impl Time {
    /// The seconds that are charged: those used or the least, and never more than were agreed.
    #[must_use]
    pub fn charged_seconds(&self) -> u32 {
        self.used_seconds
            .max(self.minimum_seconds)
            .min(self.agreed_seconds)
    }
}

/// What a sale costs, before it is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sale {
    /// What was sold.
    pub kind: SaleKind,
    /// The offer that was taken.
    pub offer: OfferId,
    /// Which of its prices.
    pub price_number: u32,
    /// The price: of the purchase, of a second, or of a period.
    pub price: Amount,
    /// `None` of what is sold for good.
    pub time: Option<Time>,
}

/// Everything that a sale's charge was computed from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SaleBill {
    /// What was sold.
    pub kind: SaleKind,
    /// The offer that was taken.
    #[schema(value_type = String, pattern = "^off_[0-9a-z]{26}$")]
    pub offer: OfferId,
    /// Which of its prices.
    pub price_number: u32,
    /// The price: of the purchase, of a second, or of a period.
    #[schema(value_type = String, pattern = "^(0|[1-9][0-9]*)$")]
    pub price_base: Amount,
    /// The time that was sold; `null` of what is sold for good.
    pub time: Option<Time>,
    /// The charge.
    #[schema(value_type = String, pattern = "^(0|[1-9][0-9]*)$")]
    pub gross_base: Amount,
    /// The split that shared it.
    #[schema(value_type = String, pattern = "^spl_[0-9a-z]{26}$")]
    pub split_version: SplitVersionId,
    /// Its parties, in order.
    pub parties: Vec<BilledParty>,
}

impl Sale {
    /// The charge: the price; of a rental for each second charged; of a period in proportion to the seconds charged, rounded down.
    /// `None` above every amount, or where the time does not fit the kind.
    #[must_use]
    pub fn gross(&self) -> Option<Amount> {
        match (self.kind, self.time) {
            (SaleKind::Purchase, None) => Some(self.price),
            (SaleKind::Rental, Some(time)) => self.price.times(u64::from(time.charged_seconds())),
            (SaleKind::Subscription, Some(time)) if time.agreed_seconds > 0 => {
                Some(self.price.part(
                    u64::from(time.charged_seconds()),
                    u64::from(time.agreed_seconds),
                ))
            }
            _ => None,
        }
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
    ) -> Result<(SaleBill, Shared), BillError> {
        let gross = self.gross().ok_or(BillError::TooLarge)?;
        let shared = split.share(gross, carries)?;
        let bill = SaleBill {
            kind: self.kind,
            offer: self.offer,
            price_number: self.price_number,
            price_base: self.price,
            time: self.time,
            gross_base: gross,
            split_version,
            parties: BilledParty::of(split, carries, &shared),
        };
        Ok((bill, shared))
    }
}

impl SaleBill {
    /// The digest of the document in canonical form: the `meterHash` of the receipt's leaf.
    #[must_use]
    pub fn digest(&self) -> Sha256 {
        Sha256::of_document(self).expect("strings and integers have a JSON form")
    }

    /// Computes the charge again, from the price that was published and the time that was sold.
    ///
    /// # Errors
    /// The first number that differs.
    pub fn recompute(&self) -> Result<(), BillMismatch> {
        let (split, carries) = shared_by(&self.parties, 0..=PLATFORM_PPM_MAX)?;
        let sale = Sale {
            kind: self.kind,
            offer: self.offer,
            price_number: self.price_number,
            price: self.price_base,
            time: self.time,
        };
        let again = sale.bill(self.split_version, &split, &carries);
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
mod tests {
    use super::*;
    use crate::split::Party;
    use alloy_primitives::Address;
    use proptest::prelude::*;

    fn sale(kind: SaleKind, price: u128, time: Option<(u32, u32)>) -> Sale {
        Sale {
            kind,
            offer: OfferId::generate(),
            price_number: 1,
            price: Amount::from_base(price).unwrap(),
            time: time.map(|(agreed_seconds, used_seconds)| Time {
                agreed_seconds,
                used_seconds,
                minimum_seconds: 0,
            }),
        }
    }

    fn at_least(minimum_seconds: u32, mut sale: Sale) -> Sale {
        sale.time.as_mut().unwrap().minimum_seconds = minimum_seconds;
        sale
    }

    fn split() -> Split {
        let shares = [(Address::repeat_byte(1), 2), (Address::repeat_byte(2), 1)];
        Split::new(Address::repeat_byte(9), 50_000, &shares).unwrap()
    }

    fn gross(kind: SaleKind, price: u128, time: Option<(u32, u32)>) -> Option<u128> {
        sale(kind, price, time).gross().map(Amount::base)
    }

    #[test]
    fn time_is_charged_to_the_second_and_never_beyond_what_was_agreed() {
        assert_eq!(gross(SaleKind::Purchase, 7, None), Some(7));
        assert_eq!(gross(SaleKind::Rental, 7, Some((60, 0))), Some(0));
        assert_eq!(gross(SaleKind::Rental, 7, Some((60, 59))), Some(413));
        assert_eq!(gross(SaleKind::Rental, 7, Some((60, 61))), Some(420));
        assert_eq!(
            gross(SaleKind::Subscription, 100, Some((86_400, 43_199))),
            Some(49)
        );
        assert_eq!(
            gross(SaleKind::Subscription, 100, Some((86_400, 86_401))),
            Some(100)
        );
    }

    #[test]
    fn what_ends_early_is_charged_for_the_least_time_and_what_lasts_longer_is_not() {
        use SaleKind::{Rental, Subscription};
        for (kind, price, time, minimum, charged) in [
            (Rental, 7, (7_200, 1), 3_600, 25_200),
            (Rental, 7, (7_200, 3_601), 3_600, 25_207),
            (Rental, 7, (60, 1), 3_600, 420),
            (Subscription, 100, (2_592_000, 1), 86_400, 3),
            (Subscription, 100, (2_592_000, 2_591_999), 86_400, 99),
            (Subscription, 100, (3_600, 0), 86_400, 100),
        ] {
            let sold = at_least(minimum, sale(kind, price, Some(time)));
            let gross = sold.gross().map(Amount::base);
            assert_eq!(gross, Some(charged), "{kind} {time:?} {minimum}");
        }
    }

    #[test]
    fn a_bill_that_was_made_before_there_was_a_least_time_keeps_its_digest() {
        const BEFORE: &str = r#"{"kind":"rental","offer":"off_061gr30c1g60r30c1g60r30c1g","price_number":1,"price_base":"7",
            "time":{"agreed_seconds":60,"used_seconds":59},"gross_base":"413",
            "split_version":"spl_050m2ga1850m2ga1850m2ga185","parties":[]}"#;
        let bill: SaleBill = serde_json::from_str(BEFORE).unwrap();
        let document: serde_json::Value = serde_json::from_str(BEFORE).unwrap();
        assert_eq!(bill.time.unwrap().minimum_seconds, 0);
        assert_eq!(bill.digest(), Sha256::of_document(&document).unwrap());
        let mut changed = bill.clone();
        changed.time.as_mut().unwrap().minimum_seconds = 1;
        assert_ne!(changed.digest(), bill.digest(), "it is in the document");
    }

    #[test]
    fn a_sale_whose_time_does_not_fit_its_kind_has_no_charge() {
        assert_eq!(gross(SaleKind::Purchase, 7, Some((60, 60))), None);
        assert_eq!(gross(SaleKind::Rental, 7, None), None);
        assert_eq!(gross(SaleKind::Subscription, 7, Some((0, 0))), None);
    }

    #[test]
    fn a_bill_of_which_the_platform_has_more_than_it_may_is_none() {
        let greedy = |ppm: u32| {
            let party = |payee: u8, platform: bool, ppm: u32| Party {
                payee: Address::repeat_byte(payee),
                platform,
                ppm,
            };
            let parties = vec![party(9, true, ppm), party(1, false, 1_000_000 - ppm)];
            let split = Split::from_parties(parties).unwrap();
            let sold = sale(SaleKind::Purchase, 1_000, None);
            let (bill, _) = sold
                .bill(SplitVersionId::generate(), &split, &[0, 0])
                .unwrap();
            bill.recompute()
        };
        assert_eq!(greedy(PLATFORM_PPM_MAX), Ok(()));
        assert_eq!(greedy(PLATFORM_PPM_MAX + 1), Err(BillMismatch::Split));
    }

    #[test]
    fn one_changed_number_of_a_sale_is_found() {
        let sold = sale(SaleKind::Subscription, 1_000_003, Some((86_400, 50_000)));
        let (bill, _) = sold
            .bill(SplitVersionId::generate(), &split(), &[1, 2, 999_997])
            .unwrap();
        assert_eq!(bill.recompute(), Ok(()));
        let mismatch = |change: fn(&mut SaleBill)| {
            let mut changed = bill.clone();
            change(&mut changed);
            changed.recompute().unwrap_err()
        };
        let one = |it: &mut SaleBill| {
            it.gross_base = Amount::from_base(it.gross_base.base() - 1).unwrap();
        };
        assert_eq!(mismatch(one), BillMismatch::Gross);
        assert_eq!(
            mismatch(|it| it.kind = SaleKind::Purchase),
            BillMismatch::Amount
        );
        assert_eq!(
            mismatch(|it| it.time.as_mut().unwrap().used_seconds += 1),
            BillMismatch::Gross
        );
        assert_eq!(
            mismatch(|it| it.time.as_mut().unwrap().minimum_seconds = 50_001),
            BillMismatch::Gross
        );
        assert_eq!(
            mismatch(|it| it.parties[0].party.ppm += 1),
            BillMismatch::Split
        );
        assert_eq!(
            mismatch(|it| it.parties[1].credit = Amount::ZERO),
            BillMismatch::Split
        );
        assert_eq!(
            mismatch(|it| it.parties[1].carry_before = 999_999),
            BillMismatch::Split
        );
    }

    proptest! {
        #[test]
        fn what_a_sale_charges_is_within_what_was_held_and_shared_to_the_unit(
            price in 1_u128..=1 << 80, agreed in 60_u32..=31_622_400, used in any::<u32>(), minimum in any::<u32>(), rents in any::<bool>(),
        ) {
            let kind = if rents { SaleKind::Rental } else { SaleKind::Subscription };
            let held = if rents { price.checked_mul(agreed.into()).unwrap() } else { price };
            let sold = at_least(minimum, sale(kind, price, Some((agreed, used))));
            let (bill, shared) = sold.bill(SplitVersionId::generate(), &split(), &[0, 0, 0]).unwrap();
            prop_assert_eq!(bill.recompute(), Ok(()));
            let least = sale(kind, price, Some((agreed, minimum))).gross().unwrap();
            let without = sale(kind, price, Some((agreed, used))).gross().unwrap();
            prop_assert_eq!(bill.gross_base, least.max(without));
            prop_assert!(bill.gross_base.base() <= held);
            let credited: u128 = shared.credits.iter().map(|it| it.base()).sum();
            let dust = shared.dust.base();
            let gross = i128::try_from(bill.gross_base.base()).unwrap();
            prop_assert_eq!(i128::try_from(credited).unwrap().checked_add(dust), Some(gross));
        }
    }
}
