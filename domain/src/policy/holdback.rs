//! When pay that is held back is released: after so many later results of the same worker, or once a worker that has
//! stopped has been silent for the dispute window.

use time::{Duration, OffsetDateTime};

use super::AuditPolicy;

/// How long a result may be disputed: what is held back of a worker that works no more is released after it.
pub const DISPUTE_WINDOW: Duration = Duration::hours(1);
/// An owner that leaves is owed everything by then; what is held back is released this long before.
pub const EXIT_MARGIN: Duration = Duration::minutes(20);

impl AuditPolicy {
    /// Is the pay of a worker's result of this number released, when `latest` is its newest result's number?
    #[must_use]
    pub const fn is_past_holdback(&self, number: u64, latest: u64) -> bool {
        number.saturating_add(self.holdback) <= latest
    }
}

/// Is the pay of a result of that moment released because its worker has stopped?
#[must_use]
pub fn is_past_dispute(completed_at: OffsetDateTime, now: OffsetDateTime) -> bool {
    now - completed_at > DISPUTE_WINDOW
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::audit::POLICY;
    use time::macros::datetime;

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
    fn a_worker_that_stopped_waits_for_the_dispute_window() {
        let done = datetime!(2026-11-22 12:00 UTC);
        assert!(!is_past_dispute(done, done + DISPUTE_WINDOW));
        assert!(is_past_dispute(
            done,
            done + DISPUTE_WINDOW + Duration::SECOND
        ));
    }
}
