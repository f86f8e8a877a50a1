//! Pauses between tries: longer each time, and never the same for two workers.

use std::time::Duration;

/// The first pause at its longest.
const FIRST: Duration = Duration::from_millis(250);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(15);

/// Counts failures in a row.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// After a success.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }

    /// After a failure: waits.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.pause()).await;
    }

    /// After a failure: how long to wait.
    pub fn pause(&mut self) -> Duration {
        self.next(random())
    }

    /// Half of the pause is fixed, half is chance.
    fn next(&mut self, chance: u32) -> Duration {
        let pause = FIRST
            .saturating_mul(1 << self.failures.min(16))
            .min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        pause / 2 + pause.mul_f64(f64::from(chance) / f64::from(u32::MAX)) / 2
    }
}

fn random() -> u32 {
    let mut bytes = [0; 4];
    aws_lc_rs::rand::fill(&mut bytes).expect("the operating system gives random bytes");
    u32::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_doubles_up_to_a_limit_and_half_of_it_is_chance() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.next(0), FIRST / 2);
        assert_eq!(backoff.next(u32::MAX), FIRST * 2);
        for _ in 0..100 {
            assert!(backoff.next(u32::MAX) <= LONGEST);
        }
        assert_eq!(backoff.next(0), LONGEST / 2);
        backoff.reset();
        assert_eq!(backoff.next(u32::MAX), FIRST);
    }
}
