//! Why an attempt failed, and who answers for it.

use comptoir_domain::job::Cause;
use serde::{Deserialize, Serialize};

use crate::aten::AtenError;

/// Longest detail that is passed on, in bytes.
pub const DETAIL_BYTES_MAX: usize = 2_000;

/// What went wrong, in a word that stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The archive is not a program that may run here.
    InvalidProgram,
    /// The weights do not fit the program.
    InvalidWeights,
    /// The inputs or the target do not fit the program, or are not readable.
    InvalidInput,
    /// An operator refused what it was given.
    OperatorFailed,
    /// The loss is no longer a finite number.
    Diverged,
    /// The checkpoint to resume from does not fit the job.
    InvalidCheckpoint,
    /// The memory limit was reached.
    OutOfMemory,
    /// The time limit was reached.
    TimeLimit,
    /// The scratch folder is full.
    DiskLimit,
    /// The child ended without saying why.
    Crashed,
    /// The child said something that it must not.
    Protocol,
    /// The worker's own disk, pipe or device failed.
    Machine,
}

impl Code {
    /// Who answers for it.
    #[must_use]
    pub const fn cause(self) -> Cause {
        match self {
            Self::InvalidProgram
            | Self::InvalidWeights
            | Self::InvalidInput
            | Self::OperatorFailed
            | Self::Diverged => Cause::Client,
            Self::InvalidCheckpoint
            | Self::OutOfMemory
            | Self::TimeLimit
            | Self::DiskLimit
            | Self::Crashed
            | Self::Protocol
            | Self::Machine => Cause::Worker,
        }
    }

    /// The word, as in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidProgram => "invalid_program",
            Self::InvalidWeights => "invalid_weights",
            Self::InvalidInput => "invalid_input",
            Self::OperatorFailed => "operator_failed",
            Self::Diverged => "diverged",
            Self::InvalidCheckpoint => "invalid_checkpoint",
            Self::OutOfMemory => "out_of_memory",
            Self::TimeLimit => "time_limit",
            Self::DiskLimit => "disk_limit",
            Self::Crashed => "crashed",
            Self::Protocol => "protocol",
            Self::Machine => "machine",
        }
    }
}

/// A failed attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{}: {detail}", code.as_str())]
pub struct Failure {
    /// What went wrong.
    pub code: Code,
    /// A sentence for whoever answers for it.
    pub detail: String,
}

impl Failure {
    /// A failure with its sentence, shortened to what is passed on.
    #[must_use]
    pub fn new(code: Code, detail: impl std::fmt::Display) -> Self {
        let mut detail = detail.to_string();
        let mut end = DETAIL_BYTES_MAX.min(detail.len());
        while !detail.is_char_boundary(end) {
            end -= 1;
        }
        detail.truncate(end);
        Self { code, detail }
    }

    /// A failure inside libtorch: memory is the machine's matter, everything else that of `code`.
    #[must_use]
    pub fn from_aten(code: Code, during: &str, error: &AtenError) -> Self {
        let code = if error.is_out_of_memory() {
            Code::OutOfMemory
        } else {
            code
        };
        Self::new(code, format_args!("{during}: {error}"))
    }

    /// Who answers for it.
    #[must_use]
    pub const fn cause(&self) -> Cause {
        self.code.cause()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_has_one_word() {
        for code in [
            Code::InvalidProgram,
            Code::OutOfMemory,
            Code::TimeLimit,
            Code::DiskLimit,
            Code::Machine,
        ] {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        }
    }

    #[test]
    fn a_long_detail_is_cut_between_characters() {
        let failure = Failure::new(Code::Crashed, "é".repeat(DETAIL_BYTES_MAX));
        assert_eq!(failure.detail.len(), DETAIL_BYTES_MAX);
        assert_eq!(
            Failure::new(Code::Crashed, format!("a{}", failure.detail))
                .detail
                .len(),
            DETAIL_BYTES_MAX - 1
        );
    }
}
