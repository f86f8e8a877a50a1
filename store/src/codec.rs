//! How domain values cross into Postgres and back. A stored value outside the domain is corruption:
//! it is reported as a decode error, never rounded or skipped.

use alloy_primitives::{Address, B256, U256};
use comptoir_domain::{amount::Amount, atto::Atto, digest::Sha256};
use sqlx::types::BigDecimal;

/// An amount as `numeric`.
#[must_use]
pub fn to_numeric(amount: Amount) -> BigDecimal {
    BigDecimal::from(amount.base())
}

/// A wide count, such as atto base units, as `numeric`.
#[must_use]
pub fn wide_to_numeric(value: U256) -> BigDecimal {
    value
        .to_string()
        .parse()
        .expect("decimal digits are a numeric")
}

/// An amount from `numeric`.
///
/// # Errors
/// When the value is not an amount in base units.
pub fn to_amount(column: &'static str, stored: &BigDecimal) -> Result<Amount, sqlx::Error> {
    digits(stored)
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| corrupt(column, stored, "an amount in base units"))
}

/// A wide count from `numeric`.
///
/// # Errors
/// When the value is not a non-negative integer below 2^256.
pub fn to_wide(column: &'static str, stored: &BigDecimal) -> Result<U256, sqlx::Error> {
    digits(stored)
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| corrupt(column, stored, "a wide count"))
}

/// An exact sum of money from `numeric`.
///
/// # Errors
/// When the value is not a number of atto base units.
pub fn to_atto(column: &'static str, stored: &BigDecimal) -> Result<Atto, sqlx::Error> {
    Atto::from_atto(to_wide(column, stored)?)
        .ok_or_else(|| corrupt(column, stored, "an amount in atto base units"))
}

/// An address from `bytea`.
///
/// # Errors
/// When the value does not have 20 bytes.
pub fn to_address(column: &'static str, stored: &[u8]) -> Result<Address, sqlx::Error> {
    Address::try_from(stored).map_err(|_| corrupt(column, stored, "an address"))
}

/// A digest from `bytea`.
///
/// # Errors
/// When the value does not have 32 bytes.
pub fn to_digest(column: &'static str, stored: &[u8]) -> Result<Sha256, sqlx::Error> {
    stored
        .try_into()
        .map(Sha256)
        .map_err(|_| corrupt(column, stored, "a SHA-256 digest"))
}

/// A hash of the chain from `bytea`.
///
/// # Errors
/// When the value does not have 32 bytes.
pub fn to_hash(column: &'static str, stored: &[u8]) -> Result<B256, sqlx::Error> {
    B256::try_from(stored).map_err(|_| corrupt(column, stored, "a hash"))
}

/// Bytes of a fixed number from `bytea`.
///
/// # Errors
/// When there are others.
pub fn to_sized<const N: usize>(
    column: &'static str,
    stored: &[u8],
    what: &'static str,
) -> Result<[u8; N], sqlx::Error> {
    <[u8; N]>::try_from(stored).map_err(|_| corrupt(column, stored, what))
}

/// One of our text enumerations from `text`.
///
/// # Errors
/// When `parse` does not know the value.
pub fn to_enum<T>(
    column: &'static str,
    stored: &str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<T, sqlx::Error> {
    parse(stored).ok_or_else(|| corrupt(column, stored, "a known value"))
}

/// A JSON document as the type that wrote it.
///
/// # Errors
/// When the document has another shape.
pub fn to_document<T: serde::de::DeserializeOwned>(
    column: &'static str,
    stored: serde_json::Value,
) -> Result<T, sqlx::Error> {
    serde_json::from_value(stored).map_err(|error| sqlx::Error::ColumnDecode {
        index: column.into(),
        source: error.into(),
    })
}

/// What Postgres numbered with `WITH ORDINALITY`, from one.
pub(crate) fn at<T>(places: &[T], place: i64) -> Option<&T> {
    usize::try_from(place - 1)
        .ok()
        .and_then(|place| places.get(place))
}

/// Puts what Postgres numbered with `WITH ORDINALITY`, from one, in its place.
pub(crate) fn put<T>(places: &mut [T], place: i64, value: T) {
    let place = usize::try_from(place - 1).ok();
    if let Some(slot) = place.and_then(|place| places.get_mut(place)) {
        *slot = value;
    }
}

fn digits(stored: &BigDecimal) -> Option<String> {
    let (_, scale) = stored.normalized().into_bigint_and_exponent();
    (scale <= 0).then(|| stored.with_scale(0).to_string())
}

fn corrupt<T: std::fmt::Debug + ?Sized>(
    column: &'static str,
    stored: &T,
    expected: &str,
) -> sqlx::Error {
    sqlx::Error::ColumnDecode {
        index: column.into(),
        source: format!("{stored:?} is not {expected}").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_survives_the_database_type() {
        for amount in [Amount::ZERO, Amount::MAX] {
            assert_eq!(to_amount("x", &to_numeric(amount)).unwrap(), amount);
        }
        assert_eq!(
            to_wide("x", &wide_to_numeric(U256::MAX)).unwrap(),
            U256::MAX
        );
    }

    #[test]
    fn a_fraction_or_a_debt_is_not_an_amount() {
        for text in ["1.5", "-1"] {
            assert!(to_amount("x", &text.parse().unwrap()).is_err(), "{text}");
        }
    }
}
