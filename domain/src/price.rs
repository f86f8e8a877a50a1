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
};

/// What training costs beside one forward pass: the backward pass is two of them.
pub const TRAINING_FACTOR: u32 = 3;
/// Counts up to here stay exact as JSON numbers.
pub const ROWS_MAX: u64 = (1 << 53) - 1;
/// The platform's largest share of a charge.
pub const PLATFORM_PPM_MAX: u32 = 200_000;

/// Nano base units per 10^9 multiply-adds, which is atto base units per multiply-add: a decimal string in JSON.
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

    /// Nano base units per 10^9 multiply-adds.
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
    /// The multiply-adds of one replica: all terms above but the replicas.
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
            tier.replicas(),
        )
    }

    /// The meter of an inference job. `None` when it is too large to be priced.
    #[must_use]
    pub fn inference(madds_per_row: u128, rows: u64, tier: Tier) -> Option<Self> {
        Self::count(
            MeterKind::Inference,
            madds_per_row,
            rows,
            1,
            tier.replicas(),
        )
    }

    /// The meter of the same job by a count of one's own: of the program's multiply-adds and the data's rows.
    /// `None` when it is too large to be priced.
    #[must_use]
    pub fn recount(&self, madds_per_row: u128, rows: u64) -> Option<Self> {
        Self::count(self.kind, madds_per_row, rows, self.epochs, self.replicas)
    }

    fn count(
        kind: MeterKind,
        madds_per_row: u128,
        rows: u64,
        epochs: u32,
        replicas: u16,
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

    /// The multiply-adds of one replica.
    #[must_use]
    pub const fn madds(&self) -> u128 {
        self.madds
    }
}

/// The price of a job, all replicas, not rounded. `None` when it is larger than any amount.
#[must_use]
pub fn amount(meter: &Meter, price: &PriceVersion) -> Option<Atto> {
    let metered = U256::from(meter.madds)
        .checked_mul(U256::from(meter.replicas))?
        .checked_mul(U256::from(price.rate_nano.nano()))?;
    let metered = Atto::from_atto(metered)?;
    Some(metered.max(Atto::from_base(price.minimum)))
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
    madds: Amount,
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
            madds,
        } = document;
        let counted =
            Self::count(kind, madds_per_row.base(), rows, epochs, replicas).ok_or(InvalidMeter)?;
        let one_pass = kind == MeterKind::Training || epochs == 1;
        let agrees = counted.factor == factor && counted.madds == madds.base() && one_pass;
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
