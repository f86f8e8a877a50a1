//! The document that explains a charge: its hash is in the receipt, and whoever has it can compute the charge
//! again, to the base unit, without asking the service.
#![deny(clippy::float_arithmetic, clippy::arithmetic_side_effects)]

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    amount::Amount,
    atto::Atto,
    calls::CallsBill,
    charge::ChargeCarry,
    contribution::RewardBill,
    digest::Sha256,
    id::{OfferId, SplitVersionId},
    price::{self, Meter, PriceVersion},
    sale::SaleBill,
    split::{InvalidSplit, Party, Shared, Split},
};

/// Everything that a charge was computed from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Bill {
    /// What was counted.
    pub meter: Meter,
    /// What it cost.
    pub price: PriceVersion,
    /// The exact price of all replicas, in atto base units (10^-18 of a base unit).
    #[schema(value_type = String, pattern = "^(0|[1-9][0-9]*)$")]
    pub amount_atto: Atto,
    /// What the payer had used of this price version before, in atto base units.
    #[schema(value_type = String, pattern = "^(0|[1-9][0-9]*)$")]
    pub used_before_atto: Atto,
    /// The charge: the whole base units that the payer's use passed.
    #[serde(rename = "gross_base")]
    #[schema(value_type = String, pattern = "^(0|[1-9][0-9]*)$")]
    pub gross: Amount,
    /// The split that shared it.
    #[schema(value_type = String, pattern = "^spl_[0-9a-z]{26}$")]
    pub split_version: SplitVersionId,
    /// Its parties, in order.
    pub parties: Vec<BilledParty>,
    /// What the job's dataset cost: the rest of the charge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub data: Option<Box<DataBill>>,
}

/// What a job's dataset cost, and who got it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DataBill {
    /// The price that was quoted.
    pub terms: DataPrice,
    /// The split that shared the price.
    #[schema(value_type = String, pattern = "^spl_[0-9a-z]{26}$")]
    pub split_version: SplitVersionId,
    /// Its parties, in order.
    pub parties: Vec<BilledParty>,
}

/// A numbered price of an offer to compute on a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DataPrice {
    /// The offer.
    #[schema(value_type = String, pattern = "^off_[0-9a-z]{26}$")]
    pub offer: OfferId,
    /// Which of its prices.
    pub number: u32,
    /// What a job costs.
    #[serde(rename = "price_base")]
    #[schema(value_type = String, pattern = "^(0|[1-9][0-9]*)$")]
    pub price: Amount,
    /// The platform's part of it, in millionths.
    pub platform_ppm: u32,
}

/// What a receipt is explained by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Explanation {
    /// A job's bill.
    Job(Bill),
    /// A sale's bill.
    Sale(SaleBill),
    /// The bill of a contribution's reward.
    Contribution(RewardBill),
    /// The bill of a usage window.
    Calls(CallsBill),
}

impl Explanation {
    /// Who was credited with what, in order.
    #[must_use]
    pub fn parties(&self) -> &[BilledParty] {
        match self {
            Self::Job(bill) => &bill.parties,
            Self::Sale(bill) => &bill.parties,
            Self::Contribution(bill) => &bill.parties,
            Self::Calls(bill) => &bill.parties,
        }
    }

    /// The digest of the document in canonical form: the `meterHash` of the receipt's leaf.
    #[must_use]
    pub fn digest(&self) -> Sha256 {
        match self {
            Self::Job(bill) => bill.digest(),
            Self::Sale(bill) => bill.digest(),
            Self::Contribution(bill) => bill.digest(),
            Self::Calls(bill) => bill.digest(),
        }
    }
}

/// One party of the charge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BilledParty {
    /// Who, and its weight.
    pub party: Party,
    /// What it carried from charges before, in millionths of a base unit.
    pub carry_before: u32,
    /// What it was credited.
    #[serde(rename = "credit_base")]
    #[schema(value_type = String, pattern = "^(0|[1-9][0-9]*)$")]
    pub credit: Amount,
}

impl BilledParty {
    /// What each party of a split carried and was credited.
    #[must_use]
    pub fn of(split: &Split, carries: &[u32], shared: &Shared) -> Vec<Self> {
        let parties = split.parties().iter().zip(carries).zip(&shared.credits);
        parties
            .map(|((party, carry), credit)| Self {
                party: *party,
                carry_before: *carry,
                credit: *credit,
            })
            .collect()
    }
}

/// What a charge becomes: the document, and the state after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Billed {
    /// The document.
    pub bill: Bill,
    /// The payer's carry after it.
    pub carry: ChargeCarry,
    /// Credits, carries and dust of the split.
    pub shared: Shared,
    /// The same of the data's split.
    pub data: Option<Shared>,
}

impl Billed {
    /// Adds what the job's dataset cost.
    ///
    /// # Errors
    /// When a number is out of bounds or the carries are not those of the split.
    pub fn with_data(
        mut self,
        terms: DataPrice,
        split_version: SplitVersionId,
        split: &Split,
        carries: &[u32],
    ) -> Result<Self, BillError> {
        let gross = self.bill.gross.checked_add(terms.price);
        self.bill.gross = gross.ok_or(BillError::TooLarge)?;
        let shared = split.share(terms.price, carries)?;
        self.bill.data = Some(Box::new(DataBill {
            terms,
            split_version,
            parties: BilledParty::of(split, carries, &shared),
        }));
        self.data = Some(shared);
        Ok(self)
    }
}

/// Why there is no bill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BillError {
    /// A product or sum is larger than any amount.
    #[error("the charge is larger than any amount")]
    TooLarge,
    /// The split does not share it.
    #[error("share the charge")]
    Split(#[from] InvalidSplit),
}

/// What a bill says and what it must say differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BillMismatch {
    /// The meter is not that of the program and its data.
    #[error("the meter is not that of the program and its data")]
    Meter,
    /// The price is not the published one.
    #[error("the price is not the published one")]
    Price,
    /// The exact amount is not meter times price.
    #[error("the exact amount is not meter times price")]
    Amount,
    /// The charge is not what the payer's use passed.
    #[error("the charge is not what the payer's use passed")]
    Gross,
    /// A credit is not the party's part.
    #[error("a credit is not the party's part")]
    Split,
}

impl Bill {
    /// Bills a metered amount.
    ///
    /// # Errors
    /// When a number is out of bounds or the carries are not those of the split.
    pub fn charge(
        (meter, price): (Meter, PriceVersion),
        before: ChargeCarry,
        split_version: SplitVersionId,
        split: &Split,
        carries: &[u32],
    ) -> Result<Billed, BillError> {
        let amount = price::amount(&meter, &price).ok_or(BillError::TooLarge)?;
        let (gross, carry) = before.charge(amount).ok_or(BillError::TooLarge)?;
        let shared = split.share(gross, carries)?;
        let parties = BilledParty::of(split, carries, &shared);
        let used_before_atto = before.used();
        let bill = Self {
            meter,
            price,
            amount_atto: amount,
            used_before_atto,
            gross,
            split_version,
            parties,
            data: None,
        };
        Ok(Billed {
            bill,
            carry,
            shared,
            data: None,
        })
    }

    /// The digest of the document in canonical form: the `meterHash` of the receipt's leaf.
    #[must_use]
    pub fn digest(&self) -> Sha256 {
        Sha256::of_document(self).expect("strings and integers have a JSON form")
    }

    /// Who was credited with what: the parties of the work, then those of the data.
    pub fn credited(&self) -> impl Iterator<Item = &BilledParty> {
        let data = self.data.iter().flat_map(|it| &it.parties);
        self.parties.iter().chain(data)
    }

    /// Computes the charge again. `meter` is counted by the reader from the program's archive and the data;
    /// `price` is the published version.
    ///
    /// # Errors
    /// The first number that differs.
    pub fn recompute(&self, meter: &Meter, price: &PriceVersion) -> Result<(), BillMismatch> {
        if self.meter != *meter {
            return Err(BillMismatch::Meter);
        }
        if self.price != *price {
            return Err(BillMismatch::Price);
        }
        let (split, carries) = shared_by(&self.parties, exactly(price::house_ppm(meter, price)))?;
        let before = ChargeCarry::new(self.used_before_atto);
        let again = Self::charge(
            (*meter, *price),
            before,
            self.split_version,
            &split,
            &carries,
        );
        let again = match &self.data {
            None => again,
            Some(data) => {
                let (split, carries) = shared_by(&data.parties, exactly(data.terms.platform_ppm))?;
                again.and_then(|it| it.with_data(data.terms, data.split_version, &split, &carries))
            }
        };
        let again = again?;
        if again.bill.amount_atto != self.amount_atto {
            return Err(BillMismatch::Amount);
        }
        if again.bill.gross != self.gross {
            return Err(BillMismatch::Gross);
        }
        if (&again.bill.parties, &again.bill.data) == (&self.parties, &self.data) {
            Ok(())
        } else {
            Err(BillMismatch::Split)
        }
    }
}

impl From<BillError> for BillMismatch {
    fn from(error: BillError) -> Self {
        match error {
            BillError::TooLarge => Self::Amount,
            BillError::Split(_) => Self::Split,
        }
    }
}

const fn exactly(ppm: u32) -> RangeInclusive<u32> {
    ppm..=ppm
}

/// The split of billed parties, of which the platform has so many millionths, and what they carried.
pub(crate) fn shared_by(
    parties: &[BilledParty],
    platform_ppm: RangeInclusive<u32>,
) -> Result<(Split, Vec<u32>), BillMismatch> {
    let fees = parties.iter().filter(|it| it.party.platform);
    let fees: u64 = fees.map(|it| u64::from(it.party.ppm)).sum();
    if !u32::try_from(fees).is_ok_and(|fees| platform_ppm.contains(&fees)) {
        return Err(BillMismatch::Split);
    }
    let split = Split::from_parties(parties.iter().map(|it| it.party).collect());
    let carries = parties.iter().map(|it| it.carry_before).collect();
    Ok((split.map_err(|_| BillMismatch::Split)?, carries))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        job::{Device, Tier},
        price::Rate,
    };
    use alloy_primitives::Address;

    fn billed() -> Billed {
        let meter = Meter::training(5_000, 1_437, 4, Tier::Replicated).unwrap();
        let price = PriceVersion {
            id: 3,
            device: Device::Cpu,
            rate_nano: Rate::from_nano(1_234_567_890_123).unwrap(),
            minimum: Amount::from_base(1).unwrap(),
            platform_ppm: 50_000,
        };
        let shares = [(Address::repeat_byte(1), 2), (Address::repeat_byte(2), 1)];
        let split = Split::new(Address::repeat_byte(9), price.platform_ppm, &shares).unwrap();
        let before = ChargeCarry::new("700000000000000000".parse().unwrap());
        Bill::charge(
            (meter, price),
            before,
            SplitVersionId::generate(),
            &split,
            &[500_000, 250_000, 250_000],
        )
        .unwrap()
    }

    #[test]
    fn a_bill_is_computed_again_from_its_own_document() {
        let Billed { bill, .. } = billed();
        assert_eq!(bill.gross.base(), 213, "0.7 carried + 212.887... used");
        let read: Bill = serde_json::from_value(serde_json::to_value(&bill).unwrap()).unwrap();
        assert_eq!(read, bill);
        assert_eq!(read.digest(), bill.digest());
        assert_eq!(read.recompute(&bill.meter, &bill.price), Ok(()));
    }

    #[test]
    fn the_bill_of_a_sampled_job_gives_the_house_its_fee_and_the_audits() {
        let Billed { bill, .. } = billed();
        let meter = bill.meter.under(Tier::Sampled);
        let shares = [(Address::repeat_byte(1), 1)];
        let bill_of = |house_ppm| {
            let split = Split::new(Address::repeat_byte(9), house_ppm, &shares).unwrap();
            let (version, carries) = (bill.split_version, [0, 0]);
            let before = ChargeCarry::default();
            Bill::charge((meter, bill.price), before, version, &split, &carries)
                .unwrap()
                .bill
        };
        let fair = bill_of(price::house_ppm(&meter, &bill.price));
        assert_eq!(fair.recompute(&meter, &bill.price), Ok(()));
        // 0.95 of a run is the worker's under every tier.
        let run = price::amount(&meter.under(Tier::None), &bill.price)
            .unwrap()
            .floor();
        let worker = fair.parties[1].credit.base();
        assert!(
            (run.base() * 95 / 100).abs_diff(worker) <= 1,
            "{run} {worker}"
        );
        let greedy = bill_of(200_000);
        assert_eq!(
            greedy.recompute(&meter, &bill.price),
            Err(BillMismatch::Split)
        );
    }

    fn billed_with_data() -> Bill {
        let price = DataPrice {
            offer: OfferId::generate(),
            number: 2,
            price: Amount::from_base(41).unwrap(),
            platform_ppm: 100_000,
        };
        let seller = [(Address::repeat_byte(5), 1)];
        let split = Split::new(Address::repeat_byte(9), price.platform_ppm, &seller).unwrap();
        let version = SplitVersionId::generate();
        let billed = billed().with_data(price, version, &split, &[0, 0]);
        billed.unwrap().bill
    }

    #[test]
    fn the_bill_of_a_job_on_a_dataset_charges_its_price_beside_the_work() {
        let (bill, work) = (billed_with_data(), billed().bill);
        assert_eq!(bill.gross.base(), work.gross.base() + 41);
        let credits: Vec<_> = bill.credited().map(|it| it.credit.base()).collect();
        assert_eq!(
            credits[3..],
            [4, 36],
            "41 by 10 and 90 percent; 1 is carried"
        );
        let read: Bill = serde_json::from_value(serde_json::to_value(&bill).unwrap()).unwrap();
        assert_eq!(read, bill);
        assert_eq!(read.recompute(&bill.meter, &bill.price), Ok(()));
        assert!(!serde_json::to_string(&work).unwrap().contains("data"));
    }

    #[test]
    fn one_changed_number_of_the_data_is_found_and_named() {
        let bill = billed_with_data();
        let mismatch = |change: fn(&mut DataBill)| {
            let mut changed = bill.clone();
            change(changed.data.as_mut().unwrap());
            changed.recompute(&bill.meter, &bill.price).unwrap_err()
        };
        assert_eq!(
            mismatch(|it| it.terms.price = Amount::ZERO),
            BillMismatch::Gross
        );
        assert_eq!(
            mismatch(|it| it.terms.platform_ppm = 0),
            BillMismatch::Split
        );
        assert_eq!(
            mismatch(|it| it.parties[1].credit = Amount::ZERO),
            BillMismatch::Split
        );
        assert_eq!(
            mismatch(|it| it.parties[1].carry_before = 700_000),
            BillMismatch::Split
        );
    }

    #[test]
    fn one_changed_number_is_found_and_named() {
        let bill = billed().bill;
        let mismatch = |change: fn(&mut Bill)| {
            let mut changed = bill.clone();
            change(&mut changed);
            changed.recompute(&bill.meter, &bill.price).unwrap_err()
        };
        assert_eq!(
            mismatch(|it| it.meter = Meter::inference(1, 1, Tier::None).unwrap()),
            BillMismatch::Meter
        );
        assert_eq!(
            mismatch(|it| it.price.platform_ppm = 0),
            BillMismatch::Price
        );
        assert_eq!(
            mismatch(|it| it.amount_atto = Atto::ZERO),
            BillMismatch::Amount
        );
        assert_eq!(mismatch(|it| it.gross = Amount::ZERO), BillMismatch::Gross);
        assert_eq!(
            mismatch(|it| it.used_before_atto = Atto::ZERO),
            BillMismatch::Gross
        );
        assert_eq!(
            mismatch(|it| it.parties[1].credit = Amount::ZERO),
            BillMismatch::Split
        );
        assert_eq!(
            mismatch(|it| it.parties[1].party.platform = true),
            BillMismatch::Split
        );
        assert_eq!(
            mismatch(|it| it.parties[1].party.ppm = 0),
            BillMismatch::Split
        );
        assert_eq!(
            mismatch(|it| it.parties[0].carry_before = 0),
            BillMismatch::Split
        );
    }
}
