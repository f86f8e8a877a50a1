//! When pay that is held back is released: after so many later results of the same worker, or once a worker that has
//! stopped has been silent for the dispute window of the job.

use time::Duration;

use super::AuditPolicy;
use crate::amount::Amount;

/// How long results may be disputed: what is held back of a worker that works no more is released after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DisputeWindows {
    /// Of most jobs.
    pub usual: Duration,
    /// Of jobs whose pay is large.
    pub large: Duration,
    /// From this pay on it is, in base units.
    pub large_from: Amount,
}

impl Default for DisputeWindows {
    /// An hour; a day from 100 tokens of 18 decimals on.
    fn default() -> Self {
        Self {
            usual: Duration::hours(1),
            large: Duration::hours(24),
            large_from: Amount::from_base(100_000_000_000_000_000_000).expect("below 2^120"),
        }
    }
}

impl DisputeWindows {
    /// The window of a job with this pay.
    #[must_use]
    pub fn of(&self, pay: Amount) -> Duration {
        if pay < self.large_from {
            self.usual
        } else {
            self.large
        }
    }
}

/// An owner that leaves is owed everything by then; what is held back is released this long before, or a third of the time that is left from when
/// the exit is seen, whichever is more: a batch must be sealed, wait for its activation, and answer the exit.
pub const EXIT_MARGIN: Duration = Duration::minutes(20);

impl AuditPolicy {
    /// Is the pay of a worker's result of this number released, when `latest` is its newest result's number?
    #[must_use]
    pub const fn is_past_holdback(&self, number: u64, latest: u64) -> bool {
        number.saturating_add(self.holdback) <= latest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::audit::POLICY;

    #[test]
    fn pay_is_released_by_the_fiftieth_later_result() {
        assert!(!POLICY.is_past_holdback(1, 50));
        assert!(POLICY.is_past_holdback(1, 51));
        let none = AuditPolicy {
            holdback: 0,
            ..POLICY
        };
        assert!(none.is_past_holdback(1, 1));
    }

    #[test]
    fn large_pay_may_be_disputed_for_longer() {
        let windows = DisputeWindows::default();
        let below = windows
            .large_from
            .checked_sub(Amount::from_base(1).unwrap());
        assert_eq!(windows.of(below.unwrap()), Duration::hours(1));
        assert_eq!(windows.of(windows.large_from), Duration::DAY);
    }
}
