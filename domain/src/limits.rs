//! What one account may have and do at once, so that none crowds out the others.

use serde::{Deserialize, Serialize};

/// The limits of one account. `u64::MAX` is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Jobs that have not ended.
    pub open_jobs: u64,
    /// Jobs submitted on one day (UTC).
    pub jobs_per_day: u64,
    /// Bytes of the blobs that it may read.
    pub storage_bytes: u64,
}

/// What an operator decided for one account; `None`: as everybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OwnLimits {
    /// See [`Limits::open_jobs`].
    pub open_jobs: Option<u64>,
    /// See [`Limits::jobs_per_day`].
    pub jobs_per_day: Option<u64>,
    /// See [`Limits::storage_bytes`].
    pub storage_bytes: Option<u64>,
}

/// What an account has and did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Jobs that have not ended.
    pub open_jobs: u64,
    /// Jobs submitted today (UTC).
    pub jobs_today: u64,
    /// Bytes of the blobs that it may read.
    pub storage_bytes: u64,
}

/// A limit that stands in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Reached {
    /// Too many jobs have not ended.
    #[error("{0} jobs that have not ended are the most; wait for some to end, or cancel some")]
    OpenJobs(u64),
    /// Too many jobs for one day.
    #[error("{0} jobs are the most on one day (UTC)")]
    JobsPerDay(u64),
    /// Too many bytes.
    #[error("{0} bytes are the most that the account may store")]
    StorageBytes(u64),
}

impl Limits {
    /// What an account may have when an operator has not decided otherwise and the deployment neither.
    pub const DEFAULT: Self = Self {
        open_jobs: 10_000,
        jobs_per_day: u64::MAX,
        storage_bytes: 1 << 40,
    };
    /// No limit.
    pub const NONE: Self = Self {
        open_jobs: u64::MAX,
        jobs_per_day: u64::MAX,
        storage_bytes: u64::MAX,
    };

    /// These limits, but for what an operator decided for the account.
    #[must_use]
    pub fn with(self, own: OwnLimits) -> Self {
        Self {
            open_jobs: own.open_jobs.unwrap_or(self.open_jobs),
            jobs_per_day: own.jobs_per_day.unwrap_or(self.jobs_per_day),
            storage_bytes: own.storage_bytes.unwrap_or(self.storage_bytes),
        }
    }

    /// May there be one job more, beside those of `usage`?
    ///
    /// # Errors
    /// Names the limit that stands in the way.
    pub const fn admit_job(self, usage: Usage) -> Result<(), Reached> {
        if usage.open_jobs >= self.open_jobs {
            return Err(Reached::OpenJobs(self.open_jobs));
        }
        if usage.jobs_today >= self.jobs_per_day {
            return Err(Reached::JobsPerDay(self.jobs_per_day));
        }
        Ok(())
    }

    /// Bytes that may be stored beside those of `usage`.
    #[must_use]
    pub const fn room(self, usage: Usage) -> u64 {
        self.storage_bytes.saturating_sub(usage.storage_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        open_jobs: 2,
        jobs_per_day: 3,
        storage_bytes: 10,
    };

    #[test]
    fn a_limit_is_the_last_that_is_let_through() {
        let admit = |open_jobs, jobs_today| {
            LIMITS.admit_job(Usage {
                open_jobs,
                jobs_today,
                storage_bytes: 0,
            })
        };
        assert_eq!(admit(1, 2), Ok(()));
        assert_eq!(admit(2, 2), Err(Reached::OpenJobs(2)));
        assert_eq!(admit(0, 3), Err(Reached::JobsPerDay(3)));
        let used = |storage_bytes| Usage {
            storage_bytes,
            ..Usage::default()
        };
        assert_eq!((LIMITS.room(used(4)), LIMITS.room(used(11))), (6, 0));
    }

    #[test]
    fn an_operator_decides_for_one_account() {
        let own = OwnLimits {
            open_jobs: Some(0),
            ..OwnLimits::default()
        };
        let limits = LIMITS.with(own);
        assert_eq!((limits.open_jobs, limits.jobs_per_day), (0, 3));
        assert_eq!(
            limits.admit_job(Usage::default()),
            Err(Reached::OpenJobs(0))
        );
    }
}
