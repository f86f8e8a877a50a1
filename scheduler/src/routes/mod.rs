//! The routes of the worker protocol, one module per noun.

mod attempts;
mod blobs;
mod calls;
mod datasets;
mod health;
mod heartbeats;
mod join;
mod reports;
mod token;
mod work;

use axum::Router;
use comptoir_http::{FieldError, Problem};
use comptoir_wire::limits::Exceeded;
use tracing::Instrument as _;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::{SchedulerState, openapi};

/// Every route, and the document that they make.
pub(crate) fn documented() -> (Router<SchedulerState>, OpenApi) {
    let (router, openapi) = document_router().split_for_parts();
    (router, comptoir_http::openapi::complete(openapi))
}

/// Each noun adds its line.
fn document_router() -> OpenApiRouter<SchedulerState> {
    OpenApiRouter::with_openapi(openapi::base())
        .merge(join::router())
        .merge(token::router())
        .merge(work::router())
        .merge(heartbeats::router())
        .merge(attempts::router())
        .merge(blobs::router())
        .merge(datasets::router())
        .merge(calls::router())
        .merge(comptoir_http::health::router())
}

/// Runs to its end even when the caller hangs up: a transaction is not to be dropped between two statements.
async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, Problem>> + Send + 'static,
) -> Result<T, Problem> {
    tokio::spawn(work.in_current_span())
        .await
        .map_err(|error| Problem::internal(&error))?
}

/// A request that passes limits of the protocol: 422, with all of them.
fn exceeded(fields: Vec<Exceeded>) -> Problem {
    let fields = fields.into_iter();
    Problem::invalid_fields(fields.map(|it| FieldError::new(it.pointer, it.detail)))
}
