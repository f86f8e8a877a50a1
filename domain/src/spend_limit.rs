//! What the jobs of an API key may cost: what open ones hold and ended ones were charged, by the period they were
//! submitted in.

use serde::{Deserialize, Serialize};
use time::{Date, OffsetDateTime, Time, UtcOffset};
use utoipa::ToSchema;

use crate::amount::Amount;

/// Over what the jobs of a key are added up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SpendPeriod {
    /// Each day, from midnight UTC.
    Day,
    /// As long as the key lives.
    Lifetime,
}

impl SpendPeriod {
    /// The text form.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Lifetime => "lifetime",
        }
    }

    /// The period of this text form.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Day, Self::Lifetime]
            .into_iter()
            .find(|it| it.as_str() == text)
    }

    /// The first day of the period that `now` is in, for a key that was made at `created_at`.
    #[must_use]
    pub fn starts_on(self, created_at: OffsetDateTime, now: OffsetDateTime) -> Date {
        let day = match self {
            Self::Day => now,
            Self::Lifetime => created_at,
        };
        day.to_offset(UtcOffset::UTC).date()
    }

    /// When the next period begins, if one does.
    #[must_use]
    pub fn resets_at(self, now: OffsetDateTime) -> Option<OffsetDateTime> {
        let tomorrow = now.to_offset(UtcOffset::UTC).date().next_day()?;
        match self {
            Self::Day => Some(tomorrow.with_time(Time::MIDNIGHT).assume_utc()),
            Self::Lifetime => None,
        }
    }
}

/// A limit on what the jobs of a key may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpendLimit {
    /// The most of a period.
    pub amount: Amount,
    /// The period.
    pub period: SpendPeriod,
}

impl SpendLimit {
    /// What may still be spent where so much is.
    #[must_use]
    pub fn left(self, spent: Amount) -> Amount {
        self.amount.checked_sub(spent).unwrap_or(Amount::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use time::macros::{date, datetime};

    use super::*;

    #[test]
    fn a_day_is_one_of_utc_wherever_the_clock_stands() {
        let made = datetime!(2026-11-01 12:00 UTC);
        let late = datetime!(2026-11-23 01:00 +2);
        assert_eq!(
            SpendPeriod::Day.starts_on(made, late),
            date!(2026 - 11 - 22)
        );
        assert_eq!(
            SpendPeriod::Lifetime.starts_on(made, late),
            date!(2026 - 11 - 01)
        );
        let midnight = datetime!(2026-11-23 00:00 UTC);
        assert_eq!(SpendPeriod::Day.resets_at(late), Some(midnight));
        assert_eq!(SpendPeriod::Lifetime.resets_at(late), None);
    }
}
