//! Exit codes, and which failure gets which.

use std::{fmt, process::ExitCode};

use crate::client::http::ApiError;

/// What the process ends with. `comptoir help exit-codes` and the README list them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It failed in a way that has no code of its own.
    Failure = 1,
    /// The credentials are missing, spent or too weak.
    Unauthenticated = 3,
    /// There is no such thing, or it is not yours.
    NotFound = 4,
    /// The state does not allow it, or a value is refused.
    Refused = 5,
    /// The balance does not cover it.
    InsufficientFunds = 6,
    /// A receipt or proof does not hold.
    NotVerified = 7,
    /// The service does not answer, or asks to wait.
    Unavailable = 8,
    /// The job ended without a result.
    JobNotCompleted = 9,
    /// An audit found nothing wrong, and could not prove everything.
    Undecided = 10,
    /// There is no right to the bytes: an offer has to be taken first.
    NotEntitled = 11,
    /// The right does not allow it: what may be computed on is not downloaded.
    NotAllowed = 12,
}

/// The table for people.
pub const HELP: &str = "\
Exit codes:
  0  done
  1  failed
  2  the command line is not understood
  3  credentials are missing, spent or too weak
  4  no such thing, or not yours
  5  refused: wrong state or bad value
  6  the balance does not cover it
  7  a receipt or proof does not hold
  8  the service does not answer, or asks to wait
  9  the job ended without a result
 10  an audit found nothing wrong, and could not prove everything
 11  you have no right to it: take one of its offers first
 12  your right does not allow it: it may be computed on, and is not downloaded";

/// A failure whose code the caller chose.
#[derive(Debug)]
pub struct Coded {
    /// The code.
    pub exit: Exit,
    /// What happened.
    pub message: String,
}

impl fmt::Display for Coded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Coded {}

/// A failure with that code.
#[must_use]
pub fn coded(exit: Exit, message: impl Into<String>) -> anyhow::Error {
    Coded {
        exit,
        message: message.into(),
    }
    .into()
}

/// The code of a failure.
#[must_use]
pub fn code_of(error: &anyhow::Error) -> ExitCode {
    let exit = error
        .downcast_ref::<Coded>()
        .map(|coded| coded.exit)
        .or_else(|| error.downcast_ref::<ApiError>().map(code_of_api))
        .unwrap_or(Exit::Failure);
    ExitCode::from(exit as u8)
}

fn code_of_api(error: &ApiError) -> Exit {
    match error {
        ApiError::Unreachable { .. } => Exit::Unavailable,
        ApiError::Unreadable { .. } | ApiError::Unrenewed(_) => Exit::Failure,
        ApiError::SignedOut { .. } => Exit::Unauthenticated,
        ApiError::Problem { status, code, .. } => match (*status, code.as_str()) {
            (402, "payment_required") | (403, "not_entitled") => Exit::NotEntitled,
            (403, "compute_only") => Exit::NotAllowed,
            (status, _) => code_of_status(status),
        },
    }
}

const fn code_of_status(status: u16) -> Exit {
    match status {
        401 | 403 => Exit::Unauthenticated,
        402 => Exit::InsufficientFunds,
        404 | 410 => Exit::NotFound,
        400..=499 => Exit::Refused,
        _ => Exit::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(status: u16) -> ApiError {
        ApiError::Problem {
            status,
            code: "x".into(),
            message: "x".into(),
        }
    }

    #[test]
    fn each_refusal_of_the_service_has_its_code() {
        let codes = [401, 402, 404, 409, 422, 503].map(|status| code_of_api(&problem(status)));
        assert_eq!(
            codes,
            [
                Exit::Unauthenticated,
                Exit::InsufficientFunds,
                Exit::NotFound,
                Exit::Refused,
                Exit::Refused,
                Exit::Unavailable
            ]
        );
    }

    #[test]
    fn who_has_no_right_to_bytes_is_told_so_and_not_to_sign_in_or_to_deposit() {
        let code_of = |status, code: &str| {
            code_of_api(&ApiError::Problem {
                status,
                code: code.into(),
                message: "x".into(),
            })
        };
        assert_eq!(code_of(402, "payment_required"), Exit::NotEntitled);
        assert_eq!(code_of(402, "insufficient_funds"), Exit::InsufficientFunds);
        assert_eq!(code_of(403, "not_entitled"), Exit::NotEntitled);
        assert_eq!(code_of(403, "compute_only"), Exit::NotAllowed);
        assert_eq!(code_of(403, "insufficient_scope"), Exit::Unauthenticated);
    }

    #[test]
    fn a_code_survives_the_context_around_it() {
        let error = coded(Exit::NotVerified, "no").context("verify the receipt");
        assert_eq!(code_of(&error), ExitCode::from(7));
    }
}
