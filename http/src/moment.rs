//! Times that clients send: RFC 3339, kept in UTC and as finely as Postgres keeps them, for `#[serde(with = …)]`.

use serde::{Deserializer, de::Error};
use time::{OffsetDateTime, UtcOffset};

/// Reads a time.
///
/// # Errors
/// When it is none, or its UTC form is not in the years that RFC 3339 can write.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<OffsetDateTime, D::Error> {
    in_utc(time::serde::rfc3339::deserialize(deserializer)?)
}

/// Times that may be absent.
pub mod option {
    use super::{Deserializer, OffsetDateTime, in_utc};

    /// As [`super::deserialize`]; `null` is none.
    ///
    /// # Errors
    /// As [`super::deserialize`].
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<OffsetDateTime>, D::Error> {
        let read = time::serde::rfc3339::option::deserialize(deserializer)?;
        read.map(in_utc).transpose()
    }
}

/// An offset can take the last hours of the year 9999 out of the calendar: converting such a time, as writing it to the database
/// does, would panic.
fn in_utc<E: Error>(read: OffsetDateTime) -> Result<OffsetDateTime, E> {
    read.checked_to_offset(UtcOffset::UTC)
        .filter(|time| (0..=9999).contains(&time.year()))
        .map(OffsetDateTime::truncate_to_microsecond)
        .ok_or_else(|| E::custom("expected a time from the year 0 to 9999 in UTC"))
}
