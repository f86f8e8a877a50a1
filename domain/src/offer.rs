//! On what terms a dataset can be had.
#![deny(clippy::float_arithmetic, clippy::arithmetic_side_effects)]

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use utoipa::ToSchema;

use crate::{amount::Amount, digest::Sha256, id::DatasetVersionId, job::state::text_enum};

/// A seller answers requests within an hour at the earliest, so that nobody has to watch all day.
pub const ANSWER_SECONDS_MIN: u32 = 3_600;
/// What is held for a request is held for 30 days at most.
pub const ANSWER_SECONDS_MAX: u32 = 2_592_000;
/// A price is held, and not the seller's, for 30 days at most.
pub const REFUND_SECONDS_MAX: u32 = 2_592_000;
/// A rental or a period lasts a minute at least.
pub const PERIOD_SECONDS_MIN: u32 = 60;
/// A rental or a period lasts 366 days at most.
pub const PERIOD_SECONDS_MAX: u32 = 31_622_400;
/// Of a rental that was read, an hour is charged at least, unless its offer says otherwise.
pub const RENT_MINIMUM_SECONDS: u32 = 3_600;
/// Of a period that was read, a day is charged at least, unless its offer says otherwise.
pub const SUBSCRIBE_MINIMUM_SECONDS: u32 = 86_400;
/// Most programs that an offer names.
pub const PROGRAMS_MAX: usize = 1_000;
/// Most of what the platform may take of a sale, in millionths.
pub const PLATFORM_PPM_MAX: u32 = 200_000;
/// Subscribers hear of a higher price this long before it counts, or a whole period before, whichever is longer.
pub const NOTICE_MIN: Duration = Duration::days(7);

text_enum! {
    /// What is offered.
    OfferKind {
        /// A version, or all there ever are, for good.
        Buy = "buy",
        /// For some time, paid by the second.
        Rent = "rent",
        /// All versions, for periods that renew themselves.
        Subscribe = "subscribe",
        /// Jobs may compute on the newest versions; nobody is given the bytes.
        ComputeOnly = "compute_only",
        /// A version, or all there ever are, for nothing.
        Free = "free",
    }
}

text_enum! {
    /// What somebody may do with a dataset.
    Allows {
        /// Read its files, and have jobs compute on them.
        Download = "download",
        /// Have jobs compute on its files.
        Compute = "compute",
    }
}

impl OfferKind {
    /// What whoever takes an offer of this kind may do.
    #[must_use]
    pub const fn allows(self) -> Allows {
        match self {
            Self::ComputeOnly => Allows::Compute,
            Self::Buy | Self::Rent | Self::Subscribe | Self::Free => Allows::Download,
        }
    }

    /// The seconds that an offer of this kind charges at least, once something was read, where its seller does not say.
    #[must_use]
    pub fn minimum_seconds(self, period_seconds: Option<u32>) -> u32 {
        let minimum = match self {
            Self::Rent => RENT_MINIMUM_SECONDS,
            Self::Subscribe => SUBSCRIBE_MINIMUM_SECONDS,
            Self::Buy | Self::ComputeOnly | Self::Free => 0,
        };
        minimum.min(period_seconds.unwrap_or_default())
    }
}

/// What an offer promises, beside its price. It never changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// What is offered.
    pub kind: OfferKind,
    /// The version that it is about; `None`: every version, future ones too.
    pub version: Option<DatasetVersionId>,
    /// How long the seller has for a request, in seconds; `None`: nobody has to ask.
    pub answer_seconds: Option<u32>,
    /// For how many seconds a purchase of which nothing was read can be given back.
    pub refund_seconds: u32,
    /// The period of a subscription, or the longest rental, in seconds.
    pub period_seconds: Option<u32>,
    /// The seconds that are charged at least, of those agreed, once something was read.
    pub minimum_seconds: u32,
    /// The programs that may compute on it; `None`: any.
    pub programs: Option<Vec<Sha256>>,
    /// The most bytes that a job's results may have.
    pub output_bytes_max: Option<u64>,
    /// Do results wait for the seller's consent?
    pub is_released_by_seller: bool,
}

/// Why an offer is not taken for a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTime {
    /// It is shorter or longer than what is rented.
    #[error("expected {0} to {1}")]
    Outside(u32, u32),
    /// A rental, and no time.
    #[error("a rental lasts for some seconds")]
    Missing,
    /// What is taken lasts as long as its offer says, or for good.
    #[error("only a rental lasts as long as is wished")]
    Fixed,
}

impl Terms {
    /// For how long the offer is taken: what is wished of a rental, the period of a subscription, and no time of anything else. Nobody rents for
    /// less than the least time: whoever may read everything pays for it.
    ///
    /// # Errors
    /// When the wish does not fit.
    pub fn lasts(&self, wished: Option<u32>) -> Result<Option<u32>, InvalidTime> {
        match (self.kind, wished) {
            (OfferKind::Rent, Some(seconds)) => {
                let longest = self.period_seconds.unwrap_or_default();
                let shortest = self.minimum_seconds.max(1);
                let fits = (shortest..=longest).contains(&seconds);
                let outside = InvalidTime::Outside(shortest, longest);
                fits.then_some(Some(seconds)).ok_or(outside)
            }
            (OfferKind::Rent, None) => Err(InvalidTime::Missing),
            (_, Some(_)) => Err(InvalidTime::Fixed),
            (OfferKind::Subscribe, None) => Ok(self.period_seconds),
            (OfferKind::Buy | OfferKind::ComputeOnly | OfferKind::Free, None) => Ok(None),
        }
    }

    /// What is wrong with them: the field, and why. Nothing: they may be offered.
    #[must_use]
    pub fn refusals(&self) -> Vec<(&'static str, &'static str)> {
        let computes = self.kind == OfferKind::ComputeOnly;
        let lasts = matches!(self.kind, OfferKind::Rent | OfferKind::Subscribe);
        let programs = self.programs.as_ref();
        let rules = [
            (
                self.version.is_some() && (computes || self.kind == OfferKind::Subscribe),
                "/version",
                "subscriptions and compute_only are of every version",
            ),
            (
                self.answer_seconds
                    .is_some_and(|it| !(ANSWER_SECONDS_MIN..=ANSWER_SECONDS_MAX).contains(&it)),
                "/answer_seconds",
                "expected 3600 to 2592000",
            ),
            (
                self.refund_seconds > 0 && self.kind != OfferKind::Buy,
                "/refund_seconds",
                "only what is bought for good is given back; rentals and subscriptions are charged by the second",
            ),
            (
                self.refund_seconds > REFUND_SECONDS_MAX,
                "/refund_seconds",
                "expected at most 2592000",
            ),
            (
                lasts != self.period_seconds.is_some(),
                "/period_seconds",
                "rentals and subscriptions have one, and nothing else has",
            ),
            (
                self.period_seconds
                    .is_some_and(|it| !(PERIOD_SECONDS_MIN..=PERIOD_SECONDS_MAX).contains(&it)),
                "/period_seconds",
                "expected 60 to 31622400",
            ),
            (
                self.minimum_seconds > self.period_seconds.unwrap_or_default(),
                "/minimum_seconds",
                "expected at most period_seconds; what does not last has none",
            ),
            (
                programs.is_some() && !computes,
                "/programs",
                "only compute_only offers name programs",
            ),
            (
                programs.is_some_and(|it| it.is_empty() || it.len() > PROGRAMS_MAX),
                "/programs",
                "expected 1 to 1000 programs",
            ),
            (
                computes != self.output_bytes_max.is_some(),
                "/output_bytes_max",
                "compute_only offers have one, and nothing else has",
            ),
            (
                self.output_bytes_max
                    .is_some_and(|it| it == 0 || i64::try_from(it).is_err()),
                "/output_bytes_max",
                "expected 1 to 9223372036854775807",
            ),
            (
                self.is_released_by_seller && !computes,
                "/is_released_by_seller",
                "only results of compute_only offers are released",
            ),
        ];
        let broken = rules.into_iter().filter(|(is_broken, ..)| *is_broken);
        broken.map(|(_, field, why)| (field, why)).collect()
    }

    /// What is wrong with a price of it, if anything is.
    #[must_use]
    pub const fn refuses_price(&self, price: Amount) -> Option<&'static str> {
        match (self.kind, price.is_zero()) {
            (OfferKind::Free, false) => Some("what is free costs 0"),
            (OfferKind::Free, true) | (_, false) => None,
            (_, true) => Some("expected at least 1; an offer of kind `free` costs nothing"),
        }
    }

    /// When a new price may count at the earliest: a higher one of a subscription after its notice, all others at once.
    #[must_use]
    pub fn price_counts_from(
        &self,
        before: Amount,
        price: Amount,
        now: OffsetDateTime,
    ) -> OffsetDateTime {
        match self.period_seconds {
            Some(period) if self.kind == OfferKind::Subscribe && price > before => {
                let notice = NOTICE_MIN.max(Duration::seconds(i64::from(period)));
                now.saturating_add(notice)
            }
            _ => now,
        }
    }

    /// What is held for a purchase, and the most that is charged for it; `seconds` of a rental. `None` above every amount.
    #[must_use]
    pub fn held(&self, price: Amount, seconds: Option<u32>) -> Option<Amount> {
        match (self.kind, seconds) {
            (OfferKind::Rent, Some(seconds)) => price.times(u64::from(seconds)),
            (OfferKind::ComputeOnly, _) => Some(Amount::ZERO),
            _ => Some(price),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(kind: OfferKind) -> Terms {
        let lasts = matches!(kind, OfferKind::Rent | OfferKind::Subscribe);
        Terms {
            kind,
            version: None,
            answer_seconds: None,
            refund_seconds: 0,
            period_seconds: lasts.then_some(86_400),
            minimum_seconds: 0,
            programs: None,
            output_bytes_max: (kind == OfferKind::ComputeOnly).then_some(1_000),
            is_released_by_seller: false,
        }
    }

    const KINDS: [OfferKind; 5] = [
        OfferKind::Buy,
        OfferKind::Rent,
        OfferKind::Subscribe,
        OfferKind::ComputeOnly,
        OfferKind::Free,
    ];

    #[test]
    fn terms_that_fit_their_kind_are_offered_and_others_name_the_field() {
        for kind in KINDS {
            assert_eq!(terms(kind).refusals(), [], "{kind}");
        }
        let named = |terms: Terms| {
            terms
                .refusals()
                .into_iter()
                .map(|(field, _)| field)
                .collect::<Vec<_>>()
        };
        let rent = Terms {
            refund_seconds: 1,
            period_seconds: Some(59),
            ..terms(OfferKind::Rent)
        };
        assert_eq!(named(rent), ["/refund_seconds", "/period_seconds"]);
        let compute = Terms {
            output_bytes_max: None,
            programs: Some(vec![]),
            ..terms(OfferKind::ComputeOnly)
        };
        assert_eq!(named(compute), ["/programs", "/output_bytes_max"]);
        let subscribe = Terms {
            version: Some(DatasetVersionId::generate()),
            period_seconds: None,
            ..terms(OfferKind::Subscribe)
        };
        assert_eq!(named(subscribe), ["/version", "/period_seconds"]);
        let free = Terms {
            is_released_by_seller: true,
            answer_seconds: Some(3_599),
            ..terms(OfferKind::Free)
        };
        assert_eq!(named(free), ["/answer_seconds", "/is_released_by_seller"]);
    }

    #[test]
    fn a_rental_lasts_as_long_as_is_wished_within_its_bounds_and_nothing_else_does() {
        let rent = Terms {
            minimum_seconds: 600,
            ..terms(OfferKind::Rent)
        };
        let outside = Err(InvalidTime::Outside(600, 86_400));
        for (wished, lasts) in [
            (Some(599), outside),
            (Some(600), Ok(Some(600))),
            (Some(86_400), Ok(Some(86_400))),
            (Some(86_401), outside),
            (None, Err(InvalidTime::Missing)),
        ] {
            assert_eq!(rent.lasts(wished), lasts, "{wished:?}");
        }
        let free_of_it = Terms {
            minimum_seconds: 0,
            ..rent
        };
        let outside = Err(InvalidTime::Outside(1, 86_400));
        assert_eq!(free_of_it.lasts(Some(0)), outside);
        let subscribe = terms(OfferKind::Subscribe);
        assert_eq!(subscribe.lasts(None), Ok(Some(86_400)));
        assert_eq!(subscribe.lasts(Some(1)), Err(InvalidTime::Fixed));
        assert_eq!(terms(OfferKind::Buy).lasts(None), Ok(None));
    }

    #[test]
    fn no_more_time_is_charged_at_least_than_the_longest_that_is_sold() {
        let refused = |kind, minimum_seconds| {
            let terms = Terms {
                minimum_seconds,
                ..terms(kind)
            };
            let refusals = terms.refusals().into_iter();
            refusals.map(|(field, _)| field).collect::<Vec<_>>()
        };
        for kind in [OfferKind::Rent, OfferKind::Subscribe] {
            assert_eq!(refused(kind, 86_400), [""; 0], "{kind}");
            assert_eq!(refused(kind, 86_401), ["/minimum_seconds"], "{kind}");
        }
        for kind in [OfferKind::Buy, OfferKind::ComputeOnly, OfferKind::Free] {
            assert_eq!(refused(kind, 1), ["/minimum_seconds"], "{kind}");
        }
    }

    #[test]
    fn who_offers_time_and_says_nothing_charges_an_hour_or_a_day_at_least_or_all_of_less() {
        for (kind, period, minimum) in [
            (OfferKind::Rent, Some(86_400), 3_600),
            (OfferKind::Rent, Some(60), 60),
            (OfferKind::Subscribe, Some(2_592_000), 86_400),
            (OfferKind::Subscribe, Some(7_200), 7_200),
            (OfferKind::Buy, None, 0),
        ] {
            assert_eq!(kind.minimum_seconds(period), minimum, "{kind} {period:?}");
            let terms = Terms {
                period_seconds: period,
                minimum_seconds: minimum,
                ..terms(kind)
            };
            assert_eq!(terms.refusals(), [], "{kind} {period:?}");
        }
    }

    #[test]
    fn what_is_free_costs_nothing_and_all_else_something() {
        let one = Amount::from_base(1).unwrap();
        for kind in KINDS {
            let free = kind == OfferKind::Free;
            assert_eq!(
                terms(kind).refuses_price(Amount::ZERO).is_none(),
                free,
                "{kind}"
            );
            assert_eq!(terms(kind).refuses_price(one).is_some(), free, "{kind}");
        }
    }

    #[test]
    fn subscribers_hear_of_a_higher_price_a_whole_period_before_it_counts() {
        let (now, price) = (OffsetDateTime::UNIX_EPOCH, |base| {
            Amount::from_base(base).unwrap()
        });
        let from = |kind, before, after| {
            terms(kind).price_counts_from(price(before), price(after), now) - now
        };
        assert_eq!(
            from(OfferKind::Subscribe, 5, 6),
            Duration::days(7),
            "of a day's period"
        );
        assert_eq!(from(OfferKind::Subscribe, 5, 5), Duration::ZERO);
        assert_eq!(
            from(OfferKind::Buy, 5, 6),
            Duration::ZERO,
            "a buyer says what it expects to pay"
        );
        let monthly = Terms {
            period_seconds: Some(2_592_000),
            ..terms(OfferKind::Subscribe)
        };
        assert_eq!(
            monthly.price_counts_from(price(5), price(6), now) - now,
            Duration::days(30)
        );
    }

    #[test]
    fn a_rental_holds_its_price_for_every_second() {
        let price = Amount::from_base(7).unwrap();
        assert_eq!(
            terms(OfferKind::Rent).held(price, Some(60)).unwrap().base(),
            420
        );
        assert_eq!(terms(OfferKind::Rent).held(Amount::MAX, Some(60)), None);
        assert_eq!(
            terms(OfferKind::Subscribe).held(price, Some(86_400)),
            Some(price)
        );
        assert_eq!(
            terms(OfferKind::ComputeOnly).held(price, None),
            Some(Amount::ZERO),
            "its jobs pay"
        );
    }
}
