//! Sales: what is charged for the time that was sold, and the documents that say what was given and when that became final.

use serde_json::{Map, Value};

use crate::{
    bill::InvalidBill,
    hash::{sha256, write_canonical},
    value::{Hash, Receipt},
};

/// What is known of a sale's bill. What is not, could change its charge.
const FIELDS: &[&str] = &[
    "gross_base",
    "kind",
    "offer",
    "parties",
    "price_base",
    "price_number",
    "split_version",
    "time",
];
const TIME_FIELDS: &[&str] = &["agreed_seconds", "minimum_seconds", "used_seconds"];

/// The time that was sold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Time {
    agreed: u128,
    used: u128,
    minimum: u128,
}

/// What a sale costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terms {
    /// The kind of its receipt.
    pub kind: u8,
    /// The charge, computed from the price and the time.
    pub gross: u128,
    time: Option<Time>,
}

impl Terms {
    /// Reads a sale's bill and computes its charge.
    pub(crate) fn read(bill: &Value) -> Result<Self, InvalidBill> {
        refuse_unknown(bill, FIELDS)?;
        let field = InvalidBill::Field;
        let price = bill["price_base"].as_str().and_then(|it| it.parse().ok());
        let price: u128 = price.ok_or(field("price_base"))?;
        let time = time(&bill["time"])?;
        let (kind, gross) = match (bill["kind"].as_str(), time) {
            (Some("purchase"), None) => (2, Some(price)),
            (Some("rental"), Some(time)) => (3, price.checked_mul(time.charged())),
            (Some("subscription"), Some(time)) if time.agreed > 0 => (4, part(price, time)),
            (Some("purchase" | "rental" | "subscription"), _) => return Err(field("time")),
            _ => return Err(field("kind")),
        };
        let gross = gross.ok_or(InvalidBill::Gross)?;
        Ok(Self { kind, gross, time })
    }
}

impl Time {
    /// Each second that was used or is the least, and none beyond what was agreed.
    fn charged(self) -> u128 {
        self.used.max(self.minimum).min(self.agreed)
    }
}

/// `price * charged / agreed`, rounded down, without passing 2^128 on the way.
fn part(price: u128, time: Time) -> Option<u128> {
    let (charged, agreed) = (time.charged(), time.agreed);
    let whole = (price / agreed).checked_mul(charged)?;
    whole.checked_add((price % agreed).checked_mul(charged)? / agreed)
}

fn time(value: &Value) -> Result<Option<Time>, InvalidBill> {
    if value.is_null() {
        return Ok(None);
    }
    refuse_unknown(value, TIME_FIELDS)?;
    let seconds = |value: &Value| value.as_u64().filter(|it| *it <= u32::MAX.into());
    let wanted = |field| {
        let found = seconds(&value[field]).map(u128::from);
        found.ok_or(InvalidBill::Field(field))
    };
    let minimum = match &value["minimum_seconds"] {
        Value::Null => 0,
        _ => wanted("minimum_seconds")?,
    };
    Ok(Some(Time {
        agreed: wanted("agreed_seconds")?,
        used: wanted("used_seconds")?,
        minimum,
    }))
}

/// Refuses a document with a field that has no meaning here.
pub(crate) fn refuse_unknown(document: &Value, known: &[&str]) -> Result<(), InvalidBill> {
    let mut fields = document.as_object().into_iter().flat_map(Map::keys);
    if fields.all(|it| known.contains(&it.as_str())) {
        Ok(())
    } else {
        Err(InvalidBill::Unknown)
    }
}

/// What a receipt document tells of what was given, and of what made it final; each may be left out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Documents {
    right: Option<Value>,
    salt: Option<Hash>,
    finality: Option<Value>,
}

impl Documents {
    /// Those of a receipt document.
    pub(crate) fn of(document: &Value) -> Self {
        let told = |value: &Value| (!value.is_null()).then(|| value.clone());
        Self {
            right: told(&document["right"]),
            salt: document["result"]["salt"].as_str().and_then(Hash::parse),
            finality: told(&document["finality"]),
        }
    }

    pub(crate) const fn are_there(&self) -> bool {
        self.right.is_some() || self.finality.is_some()
    }

    /// The documents are those that the receipt names, and agree with each other and with the time that was billed.
    pub(crate) fn explain(
        &self,
        receipt: &Receipt,
        terms: Option<&Terms>,
    ) -> Result<(), InvalidBill> {
        if let Some(finality) = &self.finality
            && digest(finality) != receipt.verdict_hash
        {
            return Err(InvalidBill::Finality);
        }
        if let Some(right) = &self.right {
            let salt = self.salt.ok_or(InvalidBill::Right)?;
            let salted = [salt.0, digest(right).0].concat();
            if sha256(&salted) != receipt.result_hash {
                return Err(InvalidBill::Right);
            }
        }
        let (Some(right), Some(finality)) = (&self.right, &self.finality) else {
            return Ok(());
        };
        if ["purchase", "contribution"].map(|it| &right[it])
            != ["purchase", "contribution"].map(|it| &finality[it])
        {
            return Err(InvalidBill::Finality);
        }
        match terms.and_then(|it| it.time) {
            Some(time) => passed(right, finality, time),
            None => Ok(()),
        }
    }
}

/// As many seconds were agreed as the right says, and as many were used as passed until it was final.
fn passed(right: &Value, finality: &Value, time: Time) -> Result<(), InvalidBill> {
    let at = |value: &Value| value.as_str().and_then(instant).ok_or(InvalidBill::Time);
    let (from, until) = (at(&right["from"])?, at(&right["until"])?);
    let ended = at(&finality["at"])?;
    let whole = |to: u128| to.saturating_sub(from) / NANOSECONDS;
    if whole(until) == time.agreed && whole(ended).min(time.agreed) == time.used {
        Ok(())
    } else {
        Err(InvalidBill::Time)
    }
}

const NANOSECONDS: u128 = 1_000_000_000;

/// Nanoseconds since the year 0 of a time of RFC 3339 in UTC.
fn instant(text: &str) -> Option<u128> {
    let (date, clock) = text.strip_suffix('Z')?.split_once('T')?;
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let numbers = |text: &str, by: char| -> Option<[u64; 3]> {
        let all: Option<Vec<u64>> = text.split(by).map(|it| it.parse().ok()).collect();
        all?.try_into().ok()
    };
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(clock, ':')?;
    if !(1..=12).contains(&month) || year > 9_999 || day > 31 || fraction.len() > 9 {
        return None;
    }
    // Days of the calendar, in years that begin with March: leap days come last.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year.checked_sub(1)?, month + 9)
    };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day;
    let seconds = ((days * 24 + hour) * 60 + minute) * 60 + second;
    let fraction: u128 = format!("{fraction:0<9}").parse().ok()?;
    Some(u128::from(seconds) * NANOSECONDS + fraction)
}

fn digest(document: &Value) -> Hash {
    let mut canonical = String::new();
    write_canonical(document, &mut canonical);
    sha256(canonical.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn gross(kind: &str, price: u128, time: &Value) -> Result<(u8, u128), InvalidBill> {
        let bill = json!({ "kind": kind, "price_base": price.to_string(), "time": time });
        Terms::read(&bill).map(|it| (it.kind, it.gross))
    }

    fn seconds(agreed: u64, used: u64, minimum: u64) -> Value {
        json!({ "agreed_seconds": agreed, "used_seconds": used, "minimum_seconds": minimum })
    }

    #[test]
    fn what_is_charged_follows_from_the_price_and_the_seconds() {
        assert_eq!(gross("purchase", 7, &Value::Null), Ok((2, 7)));
        assert_eq!(gross("rental", 7, &seconds(60, 59, 0)), Ok((3, 413)));
        assert_eq!(gross("rental", 7, &seconds(60, 61, 0)), Ok((3, 420)));
        assert_eq!(
            gross("rental", 7, &seconds(7_200, 1, 3_600)),
            Ok((3, 25_200))
        );
        assert_eq!(gross("rental", 7, &seconds(60, 1, 3_600)), Ok((3, 420)));
        assert_eq!(
            gross("subscription", 100, &seconds(86_400, 43_199, 0)),
            Ok((4, 49))
        );
        assert_eq!(
            gross("subscription", u128::MAX, &seconds(9, 9, 0)),
            Ok((4, u128::MAX))
        );
        assert_eq!(
            gross("rental", u128::MAX, &seconds(9, 9, 0)),
            Err(InvalidBill::Gross)
        );
    }

    #[test]
    fn a_kind_or_a_field_that_is_not_known_and_a_time_that_does_not_fit_are_refused() {
        let field = |name| Err(InvalidBill::Field(name));
        assert_eq!(gross("gift", 7, &Value::Null), field("kind"));
        assert_eq!(gross("purchase", 7, &seconds(1, 1, 0)), field("time"));
        assert_eq!(gross("rental", 7, &Value::Null), field("time"));
        assert_eq!(gross("subscription", 7, &seconds(0, 0, 0)), field("time"));
        let discount =
            json!({ "kind": "purchase", "price_base": "7", "time": null, "discount": 1 });
        assert_eq!(Terms::read(&discount), Err(InvalidBill::Unknown));
        let mut time = seconds(60, 1, 0);
        time["free_seconds"] = 1.into();
        assert_eq!(gross("rental", 7, &time), Err(InvalidBill::Unknown));
    }

    /// A rental of an hour that ended after ten seconds and a half, and its receipt's hashes.
    fn rental() -> (Documents, Receipt, Terms) {
        let right = json!({ "from": "2026-02-28T23:59:55.5Z", "purchase": "pur_1", "until": "2026-03-01T00:59:55.5Z" });
        let finality = json!({ "at": "2026-03-01T00:00:06Z", "because": "ended_by_buyer", "purchase": "pur_1" });
        let salt = Hash([1; 32]);
        let receipt = Receipt {
            result_hash: sha256(&[salt.0, digest(&right).0].concat()),
            verdict_hash: digest(&finality),
            ..Receipt::default()
        };
        let documents = Documents {
            right: Some(right),
            salt: Some(salt),
            finality: Some(finality),
        };
        let bill = json!({ "kind": "rental", "price_base": "7", "time": seconds(3_600, 10, 0) });
        (documents, receipt, Terms::read(&bill).unwrap())
    }

    #[test]
    fn the_seconds_of_a_bill_are_those_of_the_right_and_of_its_end() {
        let (documents, receipt, terms) = rental();
        assert_eq!(documents.explain(&receipt, Some(&terms)), Ok(()));
        for (agreed, used) in [(3_600, 9), (3_600, 11), (3_599, 10)] {
            let time = Some(Time {
                agreed,
                used,
                minimum: 0,
            });
            let terms = Terms { time, ..terms };
            let explained = documents.explain(&receipt, Some(&terms));
            assert_eq!(explained, Err(InvalidBill::Time), "{agreed}, {used}");
        }
    }

    #[test]
    fn documents_that_are_not_those_of_the_receipt_are_refused() {
        let (documents, receipt, terms) = rental();
        let explain = |documents: &Documents| documents.explain(&receipt, Some(&terms));
        let mut changed = documents.clone();
        changed.finality.as_mut().unwrap()["because"] = "time_over".into();
        assert_eq!(explain(&changed), Err(InvalidBill::Finality));
        let mut changed = documents.clone();
        changed.right.as_mut().unwrap()["buyer"] = "acc_1".into();
        assert_eq!(explain(&changed), Err(InvalidBill::Right));
        changed = documents;
        changed.salt = None;
        assert_eq!(explain(&changed), Err(InvalidBill::Right));
    }

    #[test]
    fn times_are_counted_through_leap_days() {
        let between = |from: &str, to: &str| {
            let passed = instant(to).unwrap() - instant(from).unwrap();
            passed / NANOSECONDS
        };
        for (from, to, days) in [
            ("2024-02-28T00:00:00Z", "2024-03-01T00:00:00Z", 2),
            ("2026-02-28T00:00:00Z", "2026-03-01T00:00:00Z", 1),
            ("1999-12-31T00:00:00Z", "2000-03-01T00:00:00Z", 61),
            ("2026-12-31T00:00:00Z", "2027-01-01T00:00:00Z", 1),
        ] {
            assert_eq!(between(from, to), days * 86_400, "{from}");
        }
        for text in ["2026-13-01T00:00:00Z", "2026-01-01T00:00:00+01:00", "now"] {
            assert_eq!(instant(text), None, "{text}");
        }
    }
}
