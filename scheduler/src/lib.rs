//! The worker-facing service: registration by join token, leases, results, verification, and every timed step of a job.
//! [`app`] is its HTTP side as one tower `Service`, [`steps`] its clockwork, [`serve`] both on a listener. Several
//! replicas may run at once.

mod auth;
mod calls;
mod compare;
mod groups;
pub mod keys;
pub mod metrics;
pub mod openapi;
mod replay;
mod routes;
mod server;
mod state;
pub mod steps;
#[cfg(feature = "stub")]
pub mod stub;

use axum::{Router, middleware::from_fn_with_state};
use comptoir_http::parameters::{self, Parameters};
use utoipa::openapi::OpenApi;

pub use calls::Calls;
pub use server::serve;
pub use state::SchedulerState;

/// Bodies that are read whole may have this many bytes; blobs have a limit of their own.
pub const BODY_BYTES_MAX: usize = 2 << 20;
/// Largest output or checkpoint blob, in bytes: two of them fit in memory to be compared.
pub const BLOB_BYTES_MAX: u64 = 1 << 30;

/// The service, and the document that describes it.
pub fn app(state: SchedulerState) -> (Router, OpenApi) {
    let (router, openapi) = routes::documented();
    let edge = state.edge.clone();
    let router = router
        .layer(from_fn_with_state(
            Parameters::of(&openapi),
            parameters::refuse_unknown,
        ))
        .with_state(state);
    let router = comptoir_http::finish_with(router, BODY_BYTES_MAX, &edge);
    (router, openapi)
}
