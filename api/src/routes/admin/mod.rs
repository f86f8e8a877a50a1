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
mod workers;

use axum::http::StatusCode;
use comptoir_store::PgTransaction;
use futures::future::BoxFuture;
use serde::Deserialize;
use sqlx::PgPool;
use tracing::Instrument as _;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;

use crate::{AppState, Problem};

/// Longest reason that an operator gives, in characters.
const REASON_CHARS_MAX: usize = 500;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .merge(accounts::router())
        .merge(admins::router())
        .merge(audit::router())
        .merge(jobs::router())
        .merge(limits::router())
        .merge(outbox::router())
        .merge(prices::router())
        .merge(refunds::router())
        .merge(workers::router())
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
    let is_told = !reason.trim().is_empty()
        && reason.chars().count() <= REASON_CHARS_MAX
        && !reason.contains(char::is_control);
    if is_told {
        return Ok(());
    }
    let expected = format!("expected 1 to {REASON_CHARS_MAX} characters, none of control");
    Err(Problem::invalid("/reason", expected))
}

/// Runs an action in one transaction, in a task of its own: a client that hangs up leaves nothing half done.
async fn transact<T, F>(db: PgPool, action: F) -> Result<T, Problem>
where
    T: Send + 'static,
    F: for<'t> FnOnce(&'t mut PgTransaction<'static>) -> BoxFuture<'t, Result<T, Problem>>
        + Send
        + 'static,
{
    let work = async move {
        let mut tx = db.begin().await?;
        match action(&mut tx).await {
            Ok(done) => {
                tx.commit().await?;
                Ok(done)
            }
            Err(problem) => {
                tx.rollback().await?;
                Err(problem)
            }
        }
    };
    let done = tokio::spawn(work.in_current_span()).await;
    done.map_err(|error| Problem::internal(&error))?
}

/// The job has ended: 409.
fn job_ended(state: impl std::fmt::Display) -> Problem {
    let title = "The job has ended in another way";
    Problem::new(StatusCode::CONFLICT, "job_ended", title).detail(format!("The job is {state}"))
}
