//! When a delivery is tried again, and when an endpoint is left alone.

use time::Duration;

/// What is waited before each attempt: 75.6 hours in all, as Standard Webhooks suggests.
pub const SCHEDULE: [Duration; 10] = [
    Duration::ZERO,
    Duration::seconds(5),
    Duration::minutes(5),
    Duration::minutes(30),
    Duration::hours(2),
    Duration::hours(5),
    Duration::hours(10),
    Duration::hours(14),
    Duration::hours(20),
    Duration::hours(24),
];
/// A pause is longer than the schedule says by up to so many thousandths, so that what failed together is not tried together.
pub const JITTER_MAX_PERMILLE: u16 = 100;
/// An endpoint at which nothing succeeded for so long is disabled.
pub const DISABLED_AFTER: Duration = Duration::days(3);
/// So many failures in a row, and an endpoint gets one attempt at a time, with pauses between.
pub const PAUSED_AFTER: u32 = 5;
/// The first of those pauses; each further one is twice as long,
const PAUSE_FIRST: Duration = Duration::minutes(1);
/// but no longer than this.
const PAUSE_MAX: Duration = Duration::hours(1);

/// What is waited after `tries` attempts failed; nothing when there are no more. `jitter` is between 0 and 1000.
#[must_use]
pub fn retry_after(tries: u16, jitter: u16) -> Option<Duration> {
    let pause = SCHEDULE.get(usize::from(tries))?;
    let permille = i64::from(jitter.min(1_000)) * i64::from(JITTER_MAX_PERMILLE) / 1_000;
    let longer = pause.whole_milliseconds() * i128::from(permille) / 1_000;
    let longer = i64::try_from(longer).unwrap_or(i64::MAX);
    Some(pause.saturating_add(Duration::milliseconds(longer)))
}

/// For how long an endpoint is left alone after so many failures in a row; not at all while there are few.
#[must_use]
pub fn pause_after(failures: u32) -> Option<Duration> {
    let doublings = failures.checked_sub(PAUSED_AFTER)?;
    let factor = 1_i32.checked_shl(doublings.min(16)).unwrap_or(i32::MAX);
    let pause = PAUSE_FIRST.checked_mul(factor).unwrap_or(PAUSE_MAX);
    Some(pause.min(PAUSE_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_is_tried_ten_times_within_seventy_six_hours() {
        let pauses: Vec<_> = (0..20).map_while(|tries| retry_after(tries, 0)).collect();
        assert_eq!(pauses, SCHEDULE);
        let all: Duration = pauses.into_iter().sum();
        assert_eq!(all.whole_seconds(), 272_105, "75.6 hours");
        assert_eq!(retry_after(10, 0), None);
    }

    #[test]
    fn jitter_only_lengthens_and_by_a_tenth_at_most() {
        for tries in 0..10 {
            let least = SCHEDULE[usize::from(tries)];
            for jitter in [0, 1, 500, 1_000, u16::MAX] {
                let pause = retry_after(tries, jitter).unwrap();
                assert!(pause >= least && pause <= least * 1.1, "{pause}");
            }
        }
        assert_eq!(retry_after(2, 1_000), Some(Duration::seconds(330)));
    }

    #[test]
    fn pauses_double_up_to_an_hour() {
        assert_eq!(pause_after(PAUSED_AFTER - 1), None);
        assert_eq!(pause_after(PAUSED_AFTER), Some(Duration::minutes(1)));
        assert_eq!(pause_after(PAUSED_AFTER + 2), Some(Duration::minutes(4)));
        assert_eq!(pause_after(u32::MAX), Some(Duration::hours(1)));
    }
}
