//! The states of a job and of the replicas that execute it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

macro_rules! text_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:tt),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $text)] $variant),+
        }

        impl $name {
            /// The text form, in JSON and in Postgres.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// The value of a text form.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$variant),)+ _ => None }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

pub(crate) use text_enum;

text_enum! {
    /// Where a job stands. The last four are final.
    JobState {
        /// Waits for a worker.
        Queued = "queued",
        /// At least one replica runs.
        Leased = "leased",
        /// Every replica has sealed its result; the verdict is not in.
        Verifying = "verifying",
        /// Verified, charged, receipted.
        Completed = "completed",
        /// Ended without a result; nothing charged.
        Failed = "failed",
        /// Ended by its owner; nothing charged.
        Cancelled = "cancelled",
        /// Not done by its deadline; nothing charged.
        Expired = "expired",
    }
}

text_enum! {
    /// Where one execution stands.
    ReplicaState {
        /// Waits for a worker.
        Queued = "queued",
        /// A worker holds a lease on it.
        Leased = "leased",
        /// Its worker has committed to a result hash.
        Sealed = "sealed",
        /// Its worker has shown the result.
        Revealed = "revealed",
        /// The verdict took its result.
        Accepted = "accepted",
        /// The verdict refused its result.
        Rejected = "rejected",
        /// It ended without a result.
        Failed = "failed",
        /// The job ended before it did.
        Cancelled = "cancelled",
    }
}

text_enum! {
    /// How a job's result is verified; chosen and priced at submission.
    Tier {
        /// Not at all: the client's own risk, the cheapest.
        None = "none",
        /// One worker, whose results are run again by another owner at a rate that its record decides; the pay is held back.
        Sampled = "sampled",
        /// Two workers of different owners, a third on mismatch.
        Replicated = "replicated",
        /// Three workers of different owners, of whom two must agree.
        Quorum = "quorum",
    }
}

text_enum! {
    /// Who answers for a failure; the refund rule follows from it.
    Cause {
        /// The program, the data or the specification.
        Client = "client",
        /// The machine or the owner that ran it.
        Worker = "worker",
        /// The service.
        Operator = "operator",
        /// The chain.
        Chain = "chain",
    }
}

text_enum! {
    /// What kind of device a job runs on; prices are per kind.
    Device {
        /// Any x86-64 or ARM processor.
        Cpu = "cpu",
        /// An NVIDIA GPU.
        Cuda = "cuda",
    }
}

/// The event does not fit the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the job is {from}, which does not allow {event}")]
pub struct InvalidTransition {
    /// The state it is in.
    pub from: JobState,
    /// What was asked.
    pub event: &'static str,
}

impl JobState {
    /// Will it never change again?
    #[must_use]
    pub const fn is_final(self) -> bool {
        match self {
            Self::Completed | Self::Failed | Self::Cancelled | Self::Expired => true,
            Self::Queued | Self::Leased | Self::Verifying => false,
        }
    }

    /// A worker took a replica.
    pub fn lease(self) -> Result<Self, InvalidTransition> {
        match self {
            Self::Queued | Self::Leased | Self::Verifying => Ok(Self::Leased),
            Self::Completed | Self::Failed | Self::Cancelled | Self::Expired => {
                Err(self.refuse("lease"))
            }
        }
    }

    /// No replica runs any more, though some must run again.
    pub fn requeue(self) -> Result<Self, InvalidTransition> {
        match self {
            Self::Leased | Self::Queued | Self::Verifying => Ok(Self::Queued),
            Self::Completed | Self::Failed | Self::Cancelled | Self::Expired => {
                Err(self.refuse("requeue"))
            }
        }
    }

    /// Every replica has sealed.
    pub fn verify(self) -> Result<Self, InvalidTransition> {
        match self {
            Self::Leased => Ok(Self::Verifying),
            Self::Queued
            | Self::Verifying
            | Self::Completed
            | Self::Failed
            | Self::Cancelled
            | Self::Expired => Err(self.refuse("verify")),
        }
    }

    /// The verdict accepted a result.
    pub fn complete(self) -> Result<Self, InvalidTransition> {
        match self {
            Self::Verifying => Ok(Self::Completed),
            Self::Queued
            | Self::Leased
            | Self::Completed
            | Self::Failed
            | Self::Cancelled
            | Self::Expired => Err(self.refuse("complete")),
        }
    }

    /// It ends without a result: `Failed`, `Cancelled` or `Expired`.
    pub fn end(self, as_state: EndedAs) -> Result<Self, InvalidTransition> {
        if self.is_final() {
            return Err(self.refuse("end"));
        }
        Ok(match as_state {
            EndedAs::Failed => Self::Failed,
            EndedAs::Cancelled => Self::Cancelled,
            EndedAs::Expired => Self::Expired,
        })
    }

    const fn refuse(self, event: &'static str) -> InvalidTransition {
        InvalidTransition { from: self, event }
    }
}

/// How a job ends without a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndedAs {
    /// Its attempts are spent, or it cannot run.
    Failed,
    /// Its owner took it back.
    Cancelled,
    /// Its deadline passed.
    Expired,
}

impl Tier {
    /// All, the cheapest first.
    pub const ALL: [Self; 4] = [Self::None, Self::Sampled, Self::Replicated, Self::Quorum];

    /// How many executions the price pays for. A third on mismatch is the operator's cost.
    #[must_use]
    pub const fn replicas(self) -> u16 {
        match self {
            Self::None | Self::Sampled => 1,
            Self::Replicated => 2,
            Self::Quorum => 3,
        }
    }

    /// What the price adds for audits, in millionths of one execution. By simulation they take 10.7 to 12 % of a worker's
    /// first 500 results, 7.9 % of 1,000, and 5 % in the end. It is paid whether a job is audited or not; what audits
    /// cost is the house's.
    #[must_use]
    pub const fn audit_ppm(self) -> u32 {
        match self {
            Self::Sampled => 100_000,
            Self::None | Self::Replicated | Self::Quorum => 0,
        }
    }

    /// Is a result taken only when a second owner's run confirms it, sooner or later or by chance?
    #[must_use]
    pub const fn is_verified(self) -> bool {
        match self {
            Self::None => false,
            Self::Sampled | Self::Replicated | Self::Quorum => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_final_state_allows_nothing() {
        for state in [
            JobState::Completed,
            JobState::Failed,
            JobState::Cancelled,
            JobState::Expired,
        ] {
            assert!(state.is_final());
            assert!(state.lease().is_err() && state.requeue().is_err() && state.verify().is_err());
            assert!(state.complete().is_err() && state.end(EndedAs::Cancelled).is_err());
        }
    }

    #[test]
    fn only_a_verified_job_completes() {
        assert_eq!(JobState::Verifying.complete(), Ok(JobState::Completed));
        assert!(JobState::Leased.complete().is_err());
        assert!(JobState::Queued.complete().is_err());
    }

    #[test]
    fn text_forms_are_those_of_json() {
        for tier in Tier::ALL {
            assert_eq!(Tier::parse(tier.as_str()), Some(tier));
            assert_eq!(serde_json::to_value(tier).unwrap(), tier.as_str());
        }
        assert_eq!(Tier::parse("tee"), None);
    }
}
