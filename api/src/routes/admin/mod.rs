//! `/v1/admin`: what operators do. One module per noun; [`guard`] decides who may.

mod accounts;
mod admins;
mod audit;
mod guard;
mod jobs;
mod limits;
mod outbox;
mod prices;
mod refunds;
mod takedowns;
mod workers;

use axum::http::StatusCode;
use comptoir_domain::name::is_name;
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;

pub use guard::AdminDb;

use crate::{AppState, Problem, openapi};

/// Longest reason that an operator gives, in characters.
const REASON_CHARS_MAX: usize = 500;

pub(super) fn router() -> OpenApiRouter<AppState> {
    let mut router = OpenApiRouter::new()
        .merge(accounts::router())
        .merge(admins::router())
        .merge(audit::router())
        .merge(jobs::router())
        .merge(limits::router())
        .merge(outbox::router())
        .merge(prices::router())
        .merge(refunds::router())
        .merge(takedowns::router())
        .merge(workers::router());
    openapi::of_admins(router.get_openapi_mut());
    router
}

/// Why an operator does something: kept with it and in the audit log.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ReasonBody {
    #[schema(min_length = 1, max_length = 500)]
    reason: String,
}

impl ReasonBody {
    fn checked(self) -> Result<String, Problem> {
        check_reason(&self.reason)?;
        Ok(self.reason)
    }
}

fn check_reason(reason: &str) -> Result<(), Problem> {
    if !reason.trim().is_empty() && is_name(reason, REASON_CHARS_MAX) {
        return Ok(());
    }
    let expected = format!("expected 1 to {REASON_CHARS_MAX} characters, none of control");
    Err(Problem::invalid("/reason", expected))
}

/// The job has ended: 409.
fn job_ended(state: impl std::fmt::Display) -> Problem {
    let title = "The job has ended in another way";
    Problem::new(StatusCode::CONFLICT, "job_ended", title).detail(format!("The job is {state}"))
}
