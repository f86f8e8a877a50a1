//! One module per noun of the API.

mod accounts;
mod address;
mod admin;
pub(crate) mod admissions;
mod auth;
mod balance;
mod balance_alert;
mod batches;
mod blobs;
mod catalog;
mod claims;
mod contribution_terms;
mod contributions;
mod datasets;
mod deposits;
mod events;
mod explain;
mod health;
pub(crate) mod inference_protocol;
mod job_body;
mod jobs;
mod join_tokens;
mod keys;
mod library;
mod models;
mod offers;
pub(crate) mod openai;
mod passwords;
mod prices;
mod problems;
mod purchases;
mod quotes;
mod receipts;
mod sales;
mod siwe;
mod submissions;
mod submit;
mod subscriptions;
mod takedowns;
mod usage;
mod verdict;
mod version_query;
mod webhook_deliveries;
mod webhook_endpoints;
mod webhook_events;
mod withdrawals;
mod workers;

use axum::{Router, http::StatusCode};
use comptoir_store::withheld_results::Withholding;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

pub use admin::AdminDb;
pub use datasets::Rereads;
pub(crate) use datasets::require_ready;
pub use purchases::Purchases;
pub use submissions::Submissions;
pub(crate) use submit::above_spend_limit;
pub(crate) use takedowns::blocked;
pub(crate) use withdrawals::hold_refused;

use crate::{AppState, Problem, openapi};

/// Every route, and the document that they make.
pub(crate) fn documented() -> (Router<AppState>, OpenApi) {
    let (router, openapi) = document_router().split_for_parts();
    let openapi = openapi::with_cookies(comptoir_http::openapi::complete(openapi));
    (router, openapi)
}

/// Each noun adds its line.
fn document_router() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(openapi::base())
        .merge(accounts::router())
        .merge(address::router())
        .merge(admin::router())
        .merge(auth::router())
        .merge(passwords::router())
        .merge(siwe::router())
        .merge(comptoir_http::health::router())
        .merge(inference_protocol::router())
        .merge(keys::router())
        .merge(withdrawals::router())
        .merge(prices::router())
        .merge(balance::router())
        .merge(balance_alert::router())
        .merge(batches::router())
        .merge(blobs::router())
        .merge(catalog::router())
        .merge(claims::router())
        .merge(contribution_terms::router())
        .merge(contributions::router())
        .merge(datasets::router())
        .merge(deposits::router())
        .merge(events::router())
        .merge(explain::router())
        .merge(jobs::router())
        .merge(join_tokens::router())
        .merge(library::router())
        .merge(models::router())
        .merge(offers::router())
        .merge(openai::router())
        .merge(purchases::router())
        .merge(sales::router())
        .merge(subscriptions::router())
        .merge(takedowns::router())
        .merge(admissions::router())
        .merge(usage::router())
        .merge(quotes::router())
        .merge(receipts::router())
        .merge(verdict::router())
        .merge(webhook_endpoints::router())
        .merge(webhook_deliveries::router())
        .merge(webhook_events::router())
        .merge(workers::router())
}

/// Results of a job that the seller of its dataset has not released yet, or not in time.
fn withheld(why: Withholding) -> Problem {
    let (code, title, detail) = match why {
        Withholding::Awaits => (
            "awaiting_release",
            "The results wait for the seller of the dataset",
            "The job computed on a dataset whose seller looks at what ran before its results are handed out",
        ),
        Withholding::Denied => (
            "release_denied",
            "The seller of the dataset did not release the results",
            "The job computed on a dataset whose seller had seven days to release its results",
        ),
    };
    Problem::new(StatusCode::FORBIDDEN, code, title).detail(detail)
}

/// Pages for people, which the document leaves out.
pub(crate) fn pages() -> Router<AppState> {
    problems::router()
}
