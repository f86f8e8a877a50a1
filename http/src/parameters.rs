//! Parameters behind the `?` that an operation does not document are refused: a misspelt filter must not list everything.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{
    extract::{MatchedPath, Request, State},
    http::Method,
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use serde_json::Value;
use utoipa::openapi::OpenApi;

use crate::Problem;

/// The parameters of every operation of a document.
#[derive(Debug, Clone)]
pub struct Parameters(Arc<BTreeMap<String, BTreeSet<String>>>);

impl Parameters {
    /// Those that the document names.
    ///
    /// # Panics
    /// Never: a document serialises.
    #[must_use]
    pub fn of(document: &OpenApi) -> Self {
        let document = serde_json::to_value(document).expect("a document serialises");
        let paths = document["paths"].as_object().into_iter().flatten();
        let operations = paths.flat_map(|(path, item)| {
            let operations = item.as_object().into_iter().flatten();
            operations.map(|(method, operation)| (name(method, path), query_names(operation)))
        });
        Self(Arc::new(operations.collect()))
    }

    /// The first parameter of the request that its operation does not know. What no operation answers is refused elsewhere.
    fn unknown(&self, request: &Request) -> Option<String> {
        let query = request.uri().query()?;
        let path = request.extensions().get::<MatchedPath>()?;
        let method = match *request.method() {
            // A HEAD is answered as a GET is.
            Method::HEAD => "get".to_owned(),
            ref method => method.as_str().to_lowercase(),
        };
        let known = self.0.get(&name(&method, path.as_str()))?;
        let pairs: Vec<(String, String)> = serde_urlencoded::from_str(query).ok()?;
        pairs
            .into_iter()
            .map(|(name, _)| name)
            .find(|name| !known.contains(name))
    }
}

fn name(method: &str, path: &str) -> String {
    format!("{method} {path}")
}

fn query_names(operation: &Value) -> BTreeSet<String> {
    let parameters = operation["parameters"].as_array().into_iter().flatten();
    parameters
        .filter(|parameter| parameter["in"] == "query")
        .filter_map(|parameter| parameter["name"].as_str())
        .map(str::to_owned)
        .collect()
}

/// Answers 400 to a parameter that the operation does not document.
pub async fn refuse_unknown(
    State(parameters): State<Parameters>,
    request: Request,
    next: Next,
) -> Response {
    match parameters.unknown(&request) {
        None => next.run(request).await,
        Some(name) => Problem::bad_parameter(&name, "unknown parameter").into_response(),
    }
}
