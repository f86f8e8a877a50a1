//! What a frozen account, or one at a limit, is told.

use axum::http::StatusCode;
use comptoir_store::limits::LimitError;

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
