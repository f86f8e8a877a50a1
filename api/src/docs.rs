//! The document, and the page that shows it: everything comes from this service.

use std::sync::Arc;

use axum::{
    Router,
    http::{HeaderValue, header},
    middleware::map_response,
    response::{IntoResponse as _, Response},
    routing::get,
};
use utoipa_swagger_ui::{Config, SwaggerUi};

/// The page may load from here alone; it sets styles from its script.
const CONTENT_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'",
);

/// `/openapi.json` and `/docs`.
pub(crate) fn router(document: String) -> Router {
    let document: Arc<str> = document.into();
    let show = async move || {
        let json = [(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        )];
        (json, document.to_string()).into_response()
    };
    // By default the page asks a validator on the internet.
    let config = Config::new(["/openapi.json"]).validator_url("none");
    let page: Router = SwaggerUi::new("/docs").config(config).into();
    Router::new()
        .route("/openapi.json", get(show))
        .merge(page.layer(map_response(async |mut response: Response| {
            response
                .headers_mut()
                .insert(header::CONTENT_SECURITY_POLICY, CONTENT_POLICY);
            response
        })))
}
