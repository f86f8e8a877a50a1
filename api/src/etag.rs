//! Strong validators of single objects: `If-None-Match` saves a reply, `If-Match` saves a change.

use std::convert::Infallible;

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use comptoir_domain::digest::Sha256;
use serde::Serialize;

use crate::{Problem, extract::Json};

/// Bytes of the digest that make the tag.
const TAG_BYTES: usize = 16;

/// The conditions of a request for a single object, as its headers tell them.
#[derive(Debug, Clone)]
pub struct Conditions(HeaderMap);

impl<S: Send + Sync> FromRequestParts<S> for Conditions {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(parts.headers.clone()))
    }
}

impl Conditions {
    /// The object with its tag, or 304 where the client has it already.
    pub fn answer(&self, body: impl Serialize) -> Response {
        let tag = tag(&body);
        let mut response = if self.names(&header::IF_NONE_MATCH, &tag) {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            Json(body).into_response()
        };
        response.headers_mut().insert(header::ETAG, tag);
        response
    }

    /// Lets a change of the object pass when the client has seen it as it is: 428 or 412 otherwise.
    pub fn require_match(&self, body: &impl Serialize) -> Result<(), Problem> {
        if !self.0.contains_key(header::IF_MATCH) {
            return Err(Problem::new(
                StatusCode::PRECONDITION_REQUIRED,
                "precondition_required",
                "If-Match is needed",
            ));
        }
        if self.names(&header::IF_MATCH, &tag(body)) {
            return Ok(());
        }
        Err(Problem::new(
            StatusCode::PRECONDITION_FAILED,
            "precondition_failed",
            "The object changed since it was read",
        ))
    }

    fn names(&self, condition: &HeaderName, tag: &HeaderValue) -> bool {
        let listed = self
            .0
            .get_all(condition)
            .iter()
            .filter_map(|value| value.to_str().ok());
        listed
            .flat_map(|list| list.split(','))
            .map(str::trim)
            .any(|candidate| candidate == "*" || candidate.as_bytes() == tag.as_bytes())
    }
}

fn tag(body: &impl Serialize) -> HeaderValue {
    let text = serde_json::to_vec(body).expect("bodies have string keys and serialise");
    let digest = BASE64_URL_SAFE_NO_PAD.encode(&Sha256::of(&text).0[..TAG_BYTES]);
    HeaderValue::try_from(format!("\"{digest}\"")).expect("base64 is printable ASCII")
}
