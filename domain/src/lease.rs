//! Leases on replicas: how long they live, and what follows when an attempt ends without a result.

use time::Duration;

use crate::job::{Cause, Tier};

/// How long a lease lives from its grant and from each heartbeat, in milliseconds.
pub const LEASE_MS: u32 = 30_000;
/// How long a worker has to reveal a sealed result once it is told to, in milliseconds.
pub const REVEAL_MS: u32 = 60_000;
/// Attempts of one replica; after the last the job fails.
pub const ATTEMPTS_MAX: u32 = 5;
/// Owners whose attempts must blame the client before a verified job fails for it.
pub const CLIENT_FAULT_OWNERS: u64 = 2;
/// How long a replica waits for another worker before one that failed it may try again.
pub const PREFER_OTHERS: Duration = Duration::seconds(60);
/// Pause before the second attempt; it doubles with each further one.
const BACKOFF: Duration = Duration::seconds(1);

/// [`LEASE_MS`] as a duration.
pub const LEASE: Duration = Duration::milliseconds(LEASE_MS as i64);
/// [`REVEAL_MS`] as a duration.
pub const REVEAL: Duration = Duration::milliseconds(REVEAL_MS as i64);

/// What follows when an attempt ends without a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterFailure {
    /// Another attempt, after a pause.
    Retry {
        /// How long the replica rests.
        after: Duration,
    },
    /// The job fails.
    GiveUp,
}

/// What follows when attempt `number` (from 1) of a replica ends without a result. No worker can mend what the
/// client got wrong, so that is never tried again.
#[must_use]
pub fn after_failure(number: u32, cause: Cause) -> AfterFailure {
    match cause {
        Cause::Client => AfterFailure::GiveUp,
        Cause::Worker | Cause::Operator | Cause::Chain if number >= ATTEMPTS_MAX => {
            AfterFailure::GiveUp
        }
        Cause::Worker | Cause::Operator | Cause::Chain => AfterFailure::Retry {
            after: BACKOFF.saturating_mul(1 << number.saturating_sub(1)),
        },
    }
}

/// Is the client at fault, when the attempts of so many owners say so? One owner's word ends no job that is verified
/// because nobody is taken at his word.
#[must_use]
pub const fn is_client_at_fault(tier: Tier, owners: u64) -> bool {
    if tier.is_verified() {
        owners >= CLIENT_FAULT_OWNERS
    } else {
        owners >= 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_s_failure_is_tried_again_until_attempts_are_spent() {
        let after = |number| after_failure(number, Cause::Worker);
        assert_eq!(
            after(1),
            AfterFailure::Retry {
                after: Duration::seconds(1)
            }
        );
        assert_eq!(
            after(4),
            AfterFailure::Retry {
                after: Duration::seconds(8)
            }
        );
        assert_eq!(after(ATTEMPTS_MAX), AfterFailure::GiveUp);
    }

    #[test]
    fn a_client_s_failure_is_final_at_once() {
        assert_eq!(after_failure(1, Cause::Client), AfterFailure::GiveUp);
    }

    #[test]
    fn a_verified_job_takes_two_owners_to_blame_the_client() {
        let blamed = |tier| [0, 1, 2].map(|owners| is_client_at_fault(tier, owners));
        assert_eq!(blamed(Tier::None), [false, true, true]);
        for verified in [Tier::Sampled, Tier::Replicated, Tier::Quorum] {
            assert_eq!(blamed(verified), [false, false, true]);
        }
    }
}
