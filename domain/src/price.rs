//! What a job costs: multiply-adds, which anyone can count again, times a published rate. Compute time is
//! never charged: a worker that measures its own pay would be paid to lie.
#![deny(clippy::float_arithmetic, clippy::arithmetic_side_effects)]

use std::{fmt, str::FromStr};

use alloy_primitives::U256;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    amount::{Amount, InvalidAmount},
    atto::Atto,
    job::{Device, Tier},
    split::WHOLE_PPM,
};

/// What training costs beside one forward pass: the backward pass is two of them.
pub const TRAINING_FACTOR: u32 = 3;
/// Counts up to here stay exact as JSON numbers.
pub const ROWS_MAX: u64 = (1 << 53) - 1;
/// The platform's largest fee.
pub const PLATFORM_PPM_MAX: u32 = 200_000;
/// The house's largest share of a charge: the largest fee, and what the price adds for audits.
pub const HOUSE_PPM_MAX: u32 = house_share(PLATFORM_PPM_MAX, 1, Tier::Sampled.audit_ppm());

/// Nano base units of what is counted: a decimal string in JSON. Multiply-adds are counted by 10^9, so that theirs is atto base units of each.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash, Serialize, Deserialize,
)]
#[serde(into = "String", try_from = "String")]
pub struct Rate(u128);

impl Rate {
    /// `None` above 2^120.
    #[must_use]
    pub fn from_nano(nano: u128) -> Option<Self> {
        Amount::from_base(nano).map(|it| Self(it.base()))
    }

    /// Nano base units.
    #[must_use]
    pub const fn nano(self) -> u128 {
        self.0
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Rate {
    type Err = InvalidAmount;

    fn from_str(text: &str) -> Result<Self, InvalidAmount> {
        text.parse::<Amount>().map(|it| Self(it.base()))
    }
}

impl From<Rate> for String {
    fn from(rate: Rate) -> Self {
        rate.to_string()
    }
}

impl TryFrom<String> for Rate {
    type Error = InvalidAmount;

    fn try_from(text: String) -> Result<Self, InvalidAmount> {
        text.parse()
    }
}

/// A published price for one kind of device. It is never edited: a job keeps the version it was quoted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PriceVersion {
    /// Its number.
    pub id: i32,
    /// The kind of device.
    pub device: Device,
    /// Nano base units per 10^9 multiply-adds.
    #[schema(value_type = String, pattern = "^(0|[1-9][0-9]*)$")]
    pub rate_nano: Rate,
    /// The least that a job costs, in base units.
    #[serde(rename = "minimum_base")]
    #[schema(value_type = String, pattern = "^(0|[1-9][0-9]*)$")]
    pub minimum: Amount,
    /// The platform's share of a charge, in millionths.
    pub platform_ppm: u32,
}

/// What is counted of a job: every term of its price but the rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(into = "MeterDocument", try_from = "MeterDocument")]
#[schema(as = Meter)]
pub struct Meter {
    kind: MeterKind,
    #[schema(value_type = String, pattern = "^(0|[1-9][0-9]*)$")]
    madds_per_row: u128,
    rows: u64,
    epochs: u32,
    factor: u32,
    replicas: u16,
    /// What the price adds for audits, in millionths of one replica.
    audit_ppm: u32,
    /// The multiply-adds of one replica: all terms above but the replicas and the audits.
    #[schema(value_type = String, pattern = "^(0|[1-9][0-9]*)$")]
    madds: u128,
}

/// Which rule counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MeterKind {
    /// Forward and backward over every row, every epoch.
    Training,
    /// Forward over every row, once.
    Inference,
}

/// The terms of a meter contradict each other or are out of bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the terms of the meter contradict each other or are out of bounds")]
pub struct InvalidMeter;

impl Meter {
    /// The meter of a training job. `None` when it is too large to be priced.
    #[must_use]
    pub fn training(madds_per_row: u128, rows: u64, epochs: u32, tier: Tier) -> Option<Self> {
        Self::count(
            MeterKind::Training,
            madds_per_row,
            rows,
            epochs,
            Runs::of(tier),
        )
    }

    /// The meter of an inference job. `None` when it is too large to be priced.
    #[must_use]
    pub fn inference(madds_per_row: u128, rows: u64, tier: Tier) -> Option<Self> {
        Self::count(MeterKind::Inference, madds_per_row, rows, 1, Runs::of(tier))
    }

    /// The meter of the same job under another tier.
    #[must_use]
    pub fn under(&self, tier: Tier) -> Self {
        let Runs {
            replicas,
            audit_ppm,
        } = Runs::of(tier);
        Self {
            replicas,
            audit_ppm,
            ..*self
        }
    }

    /// The meter of the same job by a count of one's own: of the program's multiply-adds and the data's rows.
    /// `None` when it is too large to be priced.
    #[must_use]
    pub fn recount(&self, madds_per_row: u128, rows: u64) -> Option<Self> {
        Self::count(self.kind, madds_per_row, rows, self.epochs, self.runs())
    }

    const fn runs(&self) -> Runs {
        Runs {
            replicas: self.replicas,
            audit_ppm: self.audit_ppm,
        }
    }

    fn count(
        kind: MeterKind,
        madds_per_row: u128,
        rows: u64,
        epochs: u32,
        Runs {
            replicas,
            audit_ppm,
        }: Runs,
    ) -> Option<Self> {
        let factor = match kind {
            MeterKind::Training => TRAINING_FACTOR,
            MeterKind::Inference => 1,
        };
        let madds = madds_per_row
            .checked_mul(u128::from(rows))?
            .checked_mul(u128::from(epochs))?
            .checked_mul(u128::from(factor))?;
        let max = Amount::MAX.base();
        let bounded = rows <= ROWS_MAX && madds_per_row <= max && madds <= max;
        bounded.then_some(Self {
            kind,
            madds_per_row,
            rows,
            epochs,
            factor,
            replicas,
            audit_ppm,
            madds,
        })
    }

    /// Which rule counts.
    #[must_use]
    pub const fn kind(&self) -> MeterKind {
        self.kind
    }

    /// Multiply-adds of one forward pass over one row, read from the program's recorded shapes.
    #[must_use]
    pub const fn madds_per_row(&self) -> u128 {
        self.madds_per_row
    }

    /// Rows of input.
    #[must_use]
    pub const fn rows(&self) -> u64 {
        self.rows
    }

    /// Passes over all rows.
    #[must_use]
    pub const fn epochs(&self) -> u32 {
        self.epochs
    }

    /// Executions that the tier asks for.
    #[must_use]
    pub const fn replicas(&self) -> u16 {
        self.replicas
    }

    /// What the price adds for audits, in millionths of one replica.
    #[must_use]
    pub const fn audit_ppm(&self) -> u32 {
        self.audit_ppm
    }

    /// The multiply-adds of one replica.
    #[must_use]
    pub const fn madds(&self) -> u128 {
        self.madds
    }
}

/// How often a tier has a job run.
#[derive(Debug, Clone, Copy)]
struct Runs {
    replicas: u16,
    audit_ppm: u32,
}

impl Runs {
    const fn of(tier: Tier) -> Self {
        Self {
            replicas: tier.replicas(),
            audit_ppm: tier.audit_ppm(),
        }
    }
}

/// The price of a job, all replicas and what is added for audits; the latter rounded down to an atto base unit. `None`
/// when it is larger than any amount.
#[must_use]
pub fn amount(meter: &Meter, price: &PriceVersion) -> Option<Atto> {
    let once = U256::from(meter.madds).checked_mul(U256::from(price.rate_nano.nano()))?;
    let audits = once
        .checked_mul(U256::from(meter.audit_ppm))?
        .checked_div(U256::from(WHOLE_PPM))?;
    let metered = once
        .checked_mul(U256::from(meter.replicas))?
        .checked_add(audits)?;
    let metered = Atto::from_atto(metered)?;
    Some(metered.max(Atto::from_base(price.minimum)))
}

/// The house's share of the charge of such a job, in millionths: its fee, and what the price added for audits. A worker
/// earns with a run what it would earn without them.
#[must_use]
pub const fn house_ppm(meter: &Meter, price: &PriceVersion) -> u32 {
    house_share(price.platform_ppm, meter.replicas, meter.audit_ppm)
}

#[expect(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a product of three numbers below 2^21 fits 64 bits, and no share is above a million"
)]
const fn house_share(platform_ppm: u32, replicas: u16, audit_ppm: u32) -> u32 {
    let whole = WHOLE_PPM as u64;
    let runs = replicas as u64 * whole;
    let paid = runs + audit_ppm as u64;
    if paid == 0 || platform_ppm > WHOLE_PPM {
        return WHOLE_PPM;
    }
    let workers = (whole - platform_ppm as u64) * runs / paid;
    (whole - workers) as u32
}

/// The serde form of [`Meter`]; reading it counts again.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MeterDocument {
    kind: MeterKind,
    madds_per_row: Amount,
    rows: u64,
    epochs: u32,
    factor: u32,
    replicas: u16,
    #[serde(default, skip_serializing_if = "is_zero")]
    audit_ppm: u32,
    madds: Amount,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
const fn is_zero(count: &u32) -> bool {
    *count == 0
}

impl From<Meter> for MeterDocument {
    fn from(meter: Meter) -> Self {
        let Meter {
            kind,
            madds_per_row,
            rows,
            epochs,
            factor,
            replicas,
            audit_ppm,
            madds,
        } = meter;
        let count = |count| Amount::from_base(count).expect("bounded by `count`");
        Self {
            kind,
            madds_per_row: count(madds_per_row),
            rows,
            epochs,
            factor,
            replicas,
            audit_ppm,
            madds: count(madds),
        }
    }
}

impl TryFrom<MeterDocument> for Meter {
    type Error = InvalidMeter;

    fn try_from(document: MeterDocument) -> Result<Self, InvalidMeter> {
        let MeterDocument {
            kind,
            madds_per_row,
            rows,
            epochs,
            factor,
            replicas,
            audit_ppm,
            madds,
        } = document;
        let runs = Runs {
            replicas,
            audit_ppm,
        };
        let counted =
            Self::count(kind, madds_per_row.base(), rows, epochs, runs).ok_or(InvalidMeter)?;
        let one_pass = kind == MeterKind::Training || epochs == 1;
        let is_share = audit_ppm <= WHOLE_PPM;
        let agrees =
            counted.factor == factor && counted.madds == madds.base() && one_pass && is_share;
        agrees.then_some(counted).ok_or(InvalidMeter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn price(rate_nano: u128, minimum: u128) -> PriceVersion {
        let minimum = Amount::from_base(minimum).unwrap();
        PriceVersion {
            id: 1,
            device: Device::Cpu,
            rate_nano: Rate(rate_nano),
            minimum,
            platform_ppm: 50_000,
        }
    }

    #[test]
    fn a_price_is_multiply_adds_times_rate_times_replicas() {
        let meter = Meter::training(1_000, 1_437, 4, Tier::Replicated).unwrap();
        assert_eq!(meter.madds(), 1_000 * 1_437 * 4 * 3);
        let exact = amount(&meter, &price(7, 1)).unwrap();
        assert_eq!(
            exact,
            Atto::from_base(Amount::from_base(1).unwrap()),
            "2.4e8 atto is below the minimum"
        );
        let exact = amount(&meter, &price(1_000_000_000_000, 1)).unwrap();
        assert_eq!(
            exact.to_string(),
            (17_244_000_u128 * 2 * 1_000_000_000_000).to_string()
        );
    }

    #[test]
    fn sampled_costs_a_tenth_more_and_its_worker_earns_the_same() {
        let (price, plain) = (
            price(1_000_000_000_000, 1),
            Meter::inference(1_000, 1_437, Tier::None).unwrap(),
        );
        let sampled = plain.under(Tier::Sampled);
        let exact = |meter: &Meter| amount(meter, &price).unwrap().atto();
        assert_eq!(
            exact(&sampled) * U256::from(10),
            exact(&plain) * U256::from(11)
        );
        assert_eq!(
            (house_ppm(&plain, &price), house_ppm(&sampled, &price)),
            (50_000, 136_364)
        );
        assert_eq!(HOUSE_PPM_MAX, 272_728);
        let triple = exact(&plain) * U256::from(3);
        assert_eq!(exact(&plain.under(Tier::Quorum)), triple);
        assert_eq!(house_ppm(&plain.under(Tier::Quorum), &price), 50_000);
    }

    #[test]
    fn a_meter_without_audits_is_written_as_before() {
        let plain =
            serde_json::to_value(Meter::inference(10, 360, Tier::Replicated).unwrap()).unwrap();
        assert_eq!(plain.get("audit_ppm"), None);
        let sampled = Meter::inference(10, 360, Tier::Sampled).unwrap();
        let document = serde_json::to_value(sampled).unwrap();
        assert_eq!(document["audit_ppm"], 100_000);
        assert_eq!(serde_json::from_value::<Meter>(document).unwrap(), sampled);
    }

    #[test]
    fn a_meter_that_contradicts_itself_is_not_read() {
        let meter = Meter::inference(10, 360, Tier::None).unwrap();
        let document = serde_json::to_value(meter).unwrap();
        assert_eq!(document["madds"], "3600");
        assert_eq!(
            serde_json::from_value::<Meter>(document.clone()).unwrap(),
            meter
        );
        for (field, value) in [
            ("madds", "3601".into()),
            ("factor", 3.into()),
            ("epochs", 2.into()),
            ("rows", (ROWS_MAX + 1).into()),
        ] {
            let mut changed: serde_json::Value = document.clone();
            changed[field] = value;
            assert!(serde_json::from_value::<Meter>(changed).is_err(), "{field}");
        }
    }

    #[test]
    fn what_cannot_be_priced_is_refused() {
        assert_eq!(Meter::inference(u128::MAX, 2, Tier::None), None);
        assert_eq!(Meter::inference(u128::MAX, 0, Tier::None), None);
        let meter = Meter::inference(1 << 100, 1 << 20, Tier::Replicated).unwrap();
        assert_eq!(amount(&meter, &price(1 << 120, 1)), None);
    }
}
