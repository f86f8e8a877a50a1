//! What a worker's record means for the work that it is offered: faults give others a head start, a refuted result
//! ends its work.

use time::Duration;

/// What a strike gives others as a head start on new work.
const HEAD_START: Duration = Duration::seconds(2);
/// No head start is longer.
pub const HEAD_START_MAX: Duration = Duration::seconds(30);
/// No record has more strikes: half an hour of good work mends the worst.
pub const STRIKES_MAX: u32 = 15;

/// A worker's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reputation {
    /// Faults that were not made good: lost leases, failures of its own, results sealed and not shown.
    pub strikes: u32,
    /// Was it barred, because two other owners agreed on another result?
    pub barred: bool,
}

/// What a worker is offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Work that has waited this long for others.
    Offered {
        /// The head start of others.
        after: Duration,
    },
    /// Nothing any more.
    Barred,
}

/// What a fault weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offence {
    /// An attempt ended without a result, through the worker.
    Failed,
    /// A result was sealed and not shown in time: as bad as hiding a wrong one.
    Unrevealed,
}

impl Offence {
    /// Strikes that it adds.
    #[must_use]
    pub const fn strikes(self) -> u32 {
        match self {
            Self::Failed => 1,
            Self::Unrevealed => 5,
        }
    }
}

impl Reputation {
    /// What the worker is offered. An accepted result takes one strike off.
    #[must_use]
    pub fn standing(self) -> Standing {
        if self.barred {
            return Standing::Barred;
        }
        let strikes = i32::try_from(self.strikes.min(STRIKES_MAX)).expect("at most 15");
        Standing::Offered {
            after: HEAD_START.saturating_mul(strikes).min(HEAD_START_MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(strikes: u32) -> Standing {
        Reputation {
            strikes,
            barred: false,
        }
        .standing()
    }

    #[test]
    fn each_strike_gives_others_a_head_start_up_to_half_a_minute() {
        let offered = |seconds| Standing::Offered {
            after: Duration::seconds(seconds),
        };
        assert_eq!(after(0), offered(0));
        assert_eq!(after(1), offered(2));
        assert_eq!(after(STRIKES_MAX), offered(30));
        assert_eq!(after(u32::MAX), offered(30));
    }

    #[test]
    fn a_barred_worker_is_offered_nothing() {
        let barred = Reputation {
            strikes: 0,
            barred: true,
        };
        assert_eq!(barred.standing(), Standing::Barred);
    }
}
