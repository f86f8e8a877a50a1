//! What every OpenAPI document of ours needs and no route has to say.

use axum::http::StatusCode;
use serde_json::{Map, Value, json};
use utoipa::openapi::{
    OpenApi, RefOr,
    path::{Operation, PathItem},
};

use crate::rate_limit::UNLIMITED;

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
    let mut json = serde_json::to_value(&document).expect("a document serialises");
    merge_tagged(&mut json["components"]["schemas"]);
    tell_of_refusals(&mut json);
    serde_json::from_value(json).expect("what a document is written as reads as one")
}

/// A variant of an enum with a tag is written as all of two objects, of which the one knows no tag and the other nothing but
/// the tag; where either denies what it does not know, no document fits both. So each becomes one object with the fields of both.
fn merge_tagged(schemas: &mut Value) {
    let known = schemas.clone();
    let all = schemas.as_object_mut().into_iter().flatten();
    let variants = all.filter_map(|(_, schema)| schema["oneOf"].as_array_mut());
    for variant in variants.flatten() {
        let Some([named, tag]) = variant["allOf"].as_array().map(Vec::as_slice) else {
            continue;
        };
        let name = named["$ref"].as_str().and_then(|it| it.rsplit('/').next());
        let Some(mut merged) = name.and_then(|name| known.get(name)).cloned() else {
            continue;
        };
        let fields = tag["properties"].as_object().cloned().unwrap_or_default();
        if let Some(properties) = merged["properties"].as_object_mut() {
            properties.extend(fields);
        }
        let required = tag["required"].as_array().cloned().unwrap_or_default();
        if let Some(names) = merged["required"].as_array_mut() {
            names.extend(required);
        }
        *variant = merged;
    }
}

/// What every operation refuses before its handler is asked, where it does not document all refusals as one: whoever asks too
/// often, and bodies that cannot be read.
fn tell_of_refusals(document: &mut Value) {
    if document["components"]["schemas"]["Problem"].is_null() {
        return;
    }
    let paths = document["paths"].as_object_mut().into_iter().flatten();
    let limited = paths.filter(|(path, _)| !UNLIMITED.contains(&path.as_str()));
    let operations = limited.filter_map(|(_, item)| item.as_object_mut());
    for operation in operations.flat_map(Map::values_mut) {
        let content = &operation["requestBody"]["content"];
        let of_bodies: &[&str] = match (content.is_null(), content["application/json"].is_null()) {
            (true, _) => &[],
            (false, true) => &["415"],
            (false, false) => &["400", "413", "415"],
        };
        let Some(responses) = operation["responses"].as_object_mut() else {
            continue;
        };
        if responses.contains_key("4XX") {
            continue;
        }
        for status in of_bodies.iter().chain(&["429"]) {
            let problem = json!({ "$ref": "#/components/schemas/Problem" });
            let refusal = json!({
                "description": describe(status),
                "content": { "application/problem+json": { "schema": problem } },
            });
            responses.entry(*status).or_insert(refusal);
        }
    }
}

/// The operations of one path.
pub fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
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
