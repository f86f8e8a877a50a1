//! What every OpenAPI document of ours needs and no route has to say.

use axum::http::StatusCode;
use utoipa::openapi::{
    OpenApi, RefOr,
    path::{Operation, PathItem},
};

/// Says of each answer what its status says, unless its route says more: OpenAPI demands a description.
#[must_use]
pub fn complete(mut document: OpenApi) -> OpenApi {
    for operation in document.paths.paths.values_mut().flat_map(operations) {
        for (status, response) in &mut operation.responses.responses {
            if let RefOr::T(response) = response
                && response.description.is_empty()
            {
                response.description = describe(status);
            }
        }
    }
    document
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [
        &mut item.get,
        &mut item.put,
        &mut item.post,
        &mut item.patch,
        &mut item.delete,
    ]
    .into_iter()
    .flatten()
}

fn describe(status: &str) -> String {
    let known = status
        .parse()
        .ok()
        .and_then(|status: StatusCode| status.canonical_reason());
    known.unwrap_or("The request is refused").to_owned()
}
