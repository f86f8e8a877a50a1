//! The OpenAPI document of the worker protocol: made from the routes and committed.

use utoipa::{
    Modify, OpenApi as _,
    openapi::{
        OpenApi,
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

/// What the document says beside the routes.
#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Comptoir worker protocol",
        description = "How a worker joins, takes jobs, keeps its leases and delivers results. A worker may be written in any \
                       language: this document and the notes on its fields are all it needs.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    servers((url = "/", description = "This service")),
    modifiers(&Security),
    security(("worker" = [])),
    tags(
        (name = "identity", description = "From a join token to a worker token"),
        (name = "work", description = "The exchange: reports out, leases and orders in"),
        (name = "attempts", description = "Metrics, checkpoints and blobs of one attempt"),
        (name = "calls", description = "Calls of models that the worker hosts"),
        (name = "service", description = "How the service is"),
    ),
)]
struct Document;

struct Security;

impl Modify for Security {
    fn modify(&self, document: &mut OpenApi) {
        let worker = SecurityScheme::Http(
            HttpBuilder::new()
                .scheme(HttpAuthScheme::Bearer)
                .bearer_format("JWT")
                .description(Some("A worker token from POST /v1/worker-token: one hour."))
                .build(),
        );
        document
            .components
            .get_or_insert_default()
            .add_security_scheme("worker", worker);
    }
}

/// What routes are added to.
pub(crate) fn base() -> OpenApi {
    Document::openapi()
}

/// The document of every route, as it is committed in `openapi/scheduler.json` (which ends with an end of line).
#[must_use]
pub fn committed() -> String {
    let (_, openapi) = crate::routes::documented();
    openapi.to_pretty_json().expect("a document serialises")
}
