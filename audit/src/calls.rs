//! What the calls of a usage window cost, computed again: prices times counts, and the whole units that the payer's use passed.

use std::ops::Add;

use serde_json::Value;

use crate::{bill::InvalidBill, sale::refuse_unknown};

/// What is known of a bill of calls. What is not, could change its charge.
const FIELDS: &[&str] = &[
    "amount_atto",
    "charged_before_base",
    "counted",
    "covered_base",
    "gross_base",
    "model",
    "parties",
    "price_number",
    "split_version",
    "tariff",
    "used_before_atto",
    "version",
    "window",
];
const TARIFF_FIELDS: &[&str] = &[
    "call_nano",
    "free_calls_per_day",
    "giga_madds_nano",
    "input_token_nano",
    "output_token_nano",
    "row_nano",
];
const COUNTED_FIELDS: &[&str] = &["calls", "input_tokens", "madds", "output_tokens", "rows"];

/// Nano base units in a base unit.
const NANO: u128 = 1_000_000_000;
/// Atto base units in one.
const ATTO: u128 = NANO * NANO;

/// Base units, and atto base units below one. `None` in the sums: above any amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Exact {
    whole: Option<u128>,
    atto: u128,
}

impl Exact {
    const NOTHING: Self = Self {
        whole: Some(0),
        atto: 0,
    };

    /// So many times a price in nano base units.
    fn nano(price: u128, count: u128) -> Self {
        let whole = (price / NANO).checked_mul(count);
        // Both factors are below 2^64.
        let rest = (price % NANO) * count;
        let whole = whole.and_then(|it| it.checked_add(rest / NANO));
        Self {
            whole,
            atto: rest % NANO * NANO,
        }
    }

    /// So many times a price in atto base units.
    fn atto(price: u128, count: u128) -> Self {
        let small = (price % ATTO) * (count % ATTO);
        let parts = [
            (price / ATTO).checked_mul(count),
            (price % ATTO).checked_mul(count / ATTO),
            Some(small / ATTO),
        ];
        let whole = parts.into_iter();
        Self {
            whole: whole.reduce(|sum, it| sum?.checked_add(it?)).flatten(),
            atto: small % ATTO,
        }
    }

    /// Reads atto base units in decimal digits.
    fn parse(digits: &str) -> Option<Self> {
        let plain = !digits.is_empty() && digits.bytes().all(|it| it.is_ascii_digit());
        let (whole, atto) = digits.split_at(digits.len().saturating_sub(18));
        let whole = if whole.is_empty() { "0" } else { whole };
        let read = Self {
            whole: Some(whole.parse().ok()?),
            atto: atto.parse().ok()?,
        };
        plain.then_some(read)
    }
}

impl Add for Exact {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let atto = self.atto + other.atto;
        let parts = [self.whole, other.whole, Some(atto / ATTO)];
        let whole = parts.into_iter();
        Self {
            whole: whole.reduce(|sum, it| sum?.checked_add(it?)).flatten(),
            atto: atto % ATTO,
        }
    }
}

/// What is charged for the calls of a bill.
pub(crate) fn charge(bill: &Value) -> Result<u128, InvalidBill> {
    refuse_unknown(bill, FIELDS)?;
    refuse_unknown(&bill["tariff"], TARIFF_FIELDS)?;
    refuse_unknown(&bill["counted"], COUNTED_FIELDS)?;
    let text = |value: &Value, name| {
        let digits = value[name].as_str().and_then(|it| it.parse::<u128>().ok());
        digits.ok_or(InvalidBill::Field(name))
    };
    let exact = |name| {
        let read = bill[name].as_str().and_then(Exact::parse);
        read.ok_or(InvalidBill::Field(name))
    };
    let (tariff, counted) = (&bill["tariff"], &bill["counted"]);
    let mut cost = Exact::NOTHING;
    for (price, count) in [
        ("call_nano", "calls"),
        ("row_nano", "rows"),
        ("input_token_nano", "input_tokens"),
        ("output_token_nano", "output_tokens"),
    ] {
        let number = counted[count].as_u64().ok_or(InvalidBill::Field(count))?;
        cost = cost + Exact::nano(text(tariff, price)?, number.into());
    }
    // Nano base units for 10^9 of them are atto base units for each.
    cost = cost + Exact::atto(text(tariff, "giga_madds_nano")?, text(counted, "madds")?);
    if cost != exact("amount_atto")? {
        return Err(InvalidBill::Gross);
    }
    let used = exact("used_before_atto")? + cost;
    let charged = text(bill, "charged_before_base")?;
    let due = used.whole.and_then(|it| it.checked_sub(charged));
    let covered = text(bill, "covered_base")?;
    Ok(due.ok_or(InvalidBill::Gross)?.min(covered))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn bill() -> Value {
        json!({
            "tariff": { "call_nano": "7300000000", "row_nano": "0", "input_token_nano": "0", "output_token_nano": "0",
                "giga_madds_nano": "1000000001", "free_calls_per_day": 0 },
            "counted": { "calls": 1000, "rows": 9, "input_tokens": 0, "output_tokens": 0, "madds": "5000000000" },
            "amount_atto": "7305000000005000000000",
            "used_before_atto": "900000000000000000", "charged_before_base": "0", "covered_base": "8000",
        })
    }

    #[test]
    fn calls_cost_prices_times_counts_and_what_was_carried() {
        let charged = |change: fn(&mut Value)| {
            let mut bill = bill();
            change(&mut bill);
            charge(&bill)
        };
        // 0.9 carried + 7300 + 5.000000005.
        assert_eq!(charged(|_| {}), Ok(7_305));
        assert_eq!(
            charged(|it| it["used_before_atto"] = "999999995000000000".into()),
            Ok(7_306)
        );
        assert_eq!(charged(|it| it["covered_base"] = "7304".into()), Ok(7_304));
        assert_eq!(
            charged(|it| it["counted"]["calls"] = 1_001.into()),
            Err(InvalidBill::Gross)
        );
        assert_eq!(
            charged(|it| it["charged_before_base"] = "7306".into()),
            Err(InvalidBill::Gross)
        );
        assert_eq!(
            charged(|it| it["counted"]["madds"] = 5.into()),
            Err(InvalidBill::Field("madds"))
        );
        assert_eq!(
            charged(|it| it["tariff"]["discount"] = "1".into()),
            Err(InvalidBill::Unknown)
        );
    }

    #[test]
    fn the_largest_numbers_pass_no_bound() {
        let most = u128::MAX;
        assert_eq!(Exact::nano(most, u64::MAX.into()).whole, None);
        assert_eq!(Exact::atto(most, most).whole, None);
        let wide = Exact::atto(ATTO - 1, most);
        assert_eq!(wide.whole, Some(most - most / ATTO - 1));
        assert_eq!(wide.atto, ATTO - most % ATTO);
        assert_eq!(Exact::parse(&"9".repeat(60)), None);
        assert_eq!(Exact::parse("-1"), None);
    }
}
