//! The REST API. [`app`] is the whole service as one tower `Service`, which the tests call directly.

pub mod auth;
mod availability;
pub mod calls;
mod card;
pub mod checking;
mod dataset_inputs;
mod docs;
pub mod etag;
mod facts;
mod grouped;
pub mod idempotency;
mod limiting;
pub mod mail;
pub mod metrics;
pub mod money;
mod notices;
pub mod openapi;
pub mod page;
mod quoting;
mod ranges;
mod reading;
mod routes;
mod sealed;
pub mod server;
mod shredding;
mod state;
pub mod steps;
pub mod sweeping;
mod tensors;
mod uploading;
pub mod webhooks;

use std::future::ready;

use axum::{
    Router,
    http::{HeaderValue, Method, StatusCode, header},
    middleware::{from_fn_with_state, map_response},
    response::Response,
};
use comptoir_http::{
    dialect::{self, Dialect},
    parameters::{self, Parameters},
};
use utoipa::openapi::OpenApi;

pub use comptoir_http::{FieldError, Problem, extract};
pub use comptoir_store::data_keys::RootKeyRing;
pub use routes::{AdminDb, Purchases, Rereads, Submissions};
pub use state::{AppState, Config};
pub use uploading::Uploads;

/// Bodies that are read whole may have this many bytes; routes that stream set their own limit.
pub const BODY_BYTES_MAX: usize = 1 << 20;

/// The service, and the document that describes it.
///
/// # Panics
/// Never: the document of our routes serialises.
pub fn app(state: AppState) -> (Router, OpenApi) {
    let (router, openapi) = routes::documented();
    let document = openapi.to_json().expect("a document serialises");
    let edge = state.config.edge.clone();
    let blocked_by = blocked_by(&state.config.public_origin);
    let router = router
        .layer(map_response(move |response| {
            ready(name_blocker(response, blocked_by.clone()))
        }))
        .layer(from_fn_with_state(
            Parameters::of(&openapi),
            parameters::refuse_unknown,
        ))
        .merge(routes::pages())
        .with_state(state)
        .merge(docs::router(document));
    let router = comptoir_http::finish_with(router, BODY_BYTES_MAX, &edge);
    let router = dialect::speak(router, dialect_of);
    (router, openapi)
}

/// Is this the path of a call of a model? Those are asked often, and paid for.
#[must_use]
pub fn is_call(path: &str) -> bool {
    let is_of_models = path.starts_with("/v1/models/") || path.starts_with("/v2/models/");
    let is_by_verb = path.ends_with("/infer") || path.ends_with("/generate");
    (is_of_models && is_by_verb) || matches!(path, "/v1/embeddings" | "/v1/chat/completions")
}

/// In which form clients of a route expect problems; `None`: as problem documents.
#[must_use]
pub fn dialect_of(method: &Method, path: &str) -> Option<Dialect> {
    let is_read = matches!(*method, Method::GET | Method::HEAD);
    match path.split('/').collect::<Vec<_>>()[..] {
        ["", "v2", ..] => Some(routes::inference_protocol::DIALECT),
        ["", "v1", "embeddings"] | ["", "v1", "chat", "completions"] => {
            Some(routes::openai::DIALECT)
        }
        ["", "v1", "models"] | ["", "v1", "models", _] if is_read => {
            Some(routes::openai::BESIDE_OURS)
        }
        _ => None,
    }
}

/// What a 451 links to, as RFC 7725 asks: who blocks, which is the service.
fn blocked_by(origin: &str) -> HeaderValue {
    let link = format!("<{origin}>; rel=\"blocked-by\"");
    HeaderValue::try_from(link).expect("an origin is ASCII")
}

fn name_blocker(mut response: Response, blocked_by: HeaderValue) -> Response {
    if response.status() == StatusCode::UNAVAILABLE_FOR_LEGAL_REASONS {
        response.headers_mut().insert(header::LINK, blocked_by);
    }
    response
}
