//! What a frozen account, or one at a limit, is told; and whoever comes when too many wait.

use axum::http::StatusCode;
use comptoir_store::{group::GroupError, limits::LimitError};

use crate::Problem;

/// Why an account may not do something: 403.
pub(crate) fn limited(error: LimitError) -> Problem {
    match error {
        LimitError::Frozen => Problem::new(
            StatusCode::FORBIDDEN,
            "account_frozen",
            "The account is frozen",
        ),
        LimitError::Reached(reached) => Problem::new(
            StatusCode::FORBIDDEN,
            "limit_reached",
            "A limit of the account is reached",
        )
        .detail(reached.to_string()),
        LimitError::Database(error) => error.into(),
    }
}

/// What is answered to somebody whose group gave no answer.
pub(crate) fn ungrouped(error: GroupError) -> Problem {
    match error {
        GroupError::Full => Problem::unavailable("Too many requests wait"),
        GroupError::Lost => Problem::internal(&error),
    }
}
