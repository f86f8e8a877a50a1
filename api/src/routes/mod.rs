//! One module per noun of the API.

mod accounts;
mod auth;
mod health;
mod keys;
mod problems;

use axum::Router;
use utoipa_axum::router::OpenApiRouter;

use crate::{AppState, openapi};

/// Every route of the document; each noun adds its line.
pub(crate) fn document_router() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(openapi::base())
        .merge(accounts::router())
        .merge(auth::router())
        .merge(health::router())
        .merge(keys::router())
}

/// Pages for people, which the document leaves out.
pub(crate) fn pages() -> Router<AppState> {
    problems::router()
}
