//! axum's extractors, with rejections that are problem documents rather than plain text.

use std::time::Duration;

use axum::{
    body::Bytes,
    extract::{
        FromRequest, FromRequestParts, Request,
        rejection::{BytesRejection, PathRejection, QueryRejection},
    },
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use comptoir_domain::strict::{self, NoDocument};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::timeout;

use crate::problem::{FieldError, Problem};

/// How long a body that is read whole may take. One that trickles in would never stand still for long enough to be given up.
pub const BODY_WHOLE_MAX: Duration = Duration::from_mins(1);

/// A JSON body, in and out.
#[derive(Debug, Clone, Copy)]
pub struct Json<T>(pub T);

/// The parameters in the path.
#[derive(Debug, Clone, Copy, FromRequestParts)]
#[from_request(via(axum::extract::Path), rejection(Problem))]
pub struct Path<T>(pub T);

/// The parameters behind the `?`.
#[derive(Debug, Clone, Copy, FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(Problem))]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let headers = request.headers().clone();
        let body = read_body(request, state).await?;
        parse_json(&headers, &body).map(Self)
    }
}

/// Reads a body whole.
///
/// # Errors
/// 413 for a body that is too large, 408 for one that is not there within [`BODY_WHOLE_MAX`], 400 for one that ended early.
pub async fn read_body<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Problem> {
    read_within(BODY_WHOLE_MAX, request, state).await
}

async fn read_within<S: Send + Sync>(
    limit: Duration,
    request: Request,
    state: &S,
) -> Result<Bytes, Problem> {
    match timeout(limit, Bytes::from_request(request, state)).await {
        Ok(body) => Ok(body?),
        Err(_) => Err(Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            "request_timeout",
            "The body took too long to arrive",
        )),
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

/// Reads a JSON body that was sent with these headers.
///
/// # Errors
/// 415 for another content type, 400 for what is not JSON, 422 for JSON of another shape (unknown
/// fields too, where the type denies them) and for text that Postgres cannot hold.
pub fn parse_json<T: DeserializeOwned>(headers: &HeaderMap, body: &[u8]) -> Result<T, Problem> {
    require_json(headers)?;
    strict::read(body).map_err(|error| match error {
        NoDocument::Malformed(detail) => Problem::malformed(detail),
        NoDocument::Invalid { pointer, detail } => Problem::invalid(pointer, detail),
    })
}

/// Is the body said to be JSON?
///
/// # Errors
/// 415 for another content type.
pub fn require_json(headers: &HeaderMap) -> Result<(), Problem> {
    let mut kinds = headers.get_all(header::CONTENT_TYPE).iter();
    let kind = kinds
        .next()
        .and_then(|kind| kind.to_str().ok())
        .unwrap_or_default();
    if kinds.next().is_some() || !is_json(kind) {
        let detail = "The body must be sent as application/json";
        return Err(Problem::unsupported_media_type(detail));
    }
    Ok(())
}

fn is_json(content_type: &str) -> bool {
    let mut parts = content_type.split(';').map(str::trim);
    let kinds = ["application/json", "application/merge-patch+json"];
    parts
        .next()
        .is_some_and(|kind| kinds.iter().any(|known| kind.eq_ignore_ascii_case(known)))
        && parts.all(|parameter| parameter.eq_ignore_ascii_case("charset=utf-8"))
}

impl From<BytesRejection> for Problem {
    fn from(rejection: BytesRejection) -> Self {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            Self::too_large()
        } else {
            Self::malformed("The body ended early")
        }
    }
}

impl From<PathRejection> for Problem {
    /// A path that no identifier can have names nothing.
    fn from(rejection: PathRejection) -> Self {
        if rejection.status().is_server_error() {
            Self::internal(&rejection)
        } else {
            Self::not_found()
        }
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::malformed(rejection.body_text())
    }
}

impl Problem {
    /// The body is larger than the route takes: 413.
    #[must_use]
    pub fn too_large() -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "payload_too_large",
            "The body is larger than this route takes",
        )
    }

    /// The body is said to be in another form than the route takes: 415.
    #[must_use]
    pub fn unsupported_media_type(detail: &str) -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "The body is not in the form that this route takes",
        )
        .detail(detail)
    }

    /// One parameter of the query cannot be accepted: 400.
    #[must_use]
    pub fn bad_parameter(name: &str, detail: impl Into<String>) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "malformed_request",
            "The request is not well formed",
        )
        .errors([FieldError::new(format!("?{name}"), detail)])
    }
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::HeaderValue};
    use futures::{StreamExt as _, stream};
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Order {
        #[expect(dead_code, reason = "only the shape matters")]
        items: Vec<Item>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Item {
        #[expect(dead_code, reason = "only the shape matters")]
        name: String,
    }

    fn parse(kind: &'static str, body: &str) -> Result<Order, Problem> {
        let headers =
            HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(kind))]);
        parse_json(&headers, body.as_bytes())
    }

    #[test]
    fn a_refused_value_is_named_by_a_pointer() {
        let problem =
            parse("application/json", r#"{"items":[{"name":"a"},{"name":7}]}"#).unwrap_err();
        let problem = serde_json::to_value(problem).unwrap();
        assert_eq!(problem["status"], 422);
        assert_eq!(problem["errors"][0]["pointer"], "/items/1/name");
        assert_eq!(
            problem["errors"][0]["detail"],
            "invalid type: integer `7`, expected a string"
        );
    }

    #[test]
    fn each_kind_of_bad_body_has_its_status() {
        let cases = [
            ("application/json; charset=utf-8", r#"{"items":[]}"#, 200),
            ("text/plain", r#"{"items":[]}"#, 415),
            ("application/json; charset=latin-1", r#"{"items":[]}"#, 415),
            ("application/json", r#"{"items":["#, 400),
            ("application/json", "", 400),
            ("application/json", "[[]", 400),
            ("application/json", "[[]]", 422),
            ("application/json", "null", 422),
            ("application/json", "\r\n\t {\"items\":[]}", 200),
            ("application/json", r#"{"items":[]} x"#, 400),
            ("application/json", r#"{"items":[],"extra":1}"#, 422),
            ("application/json", r#"{"items":[],"items":[]}"#, 422),
            ("application/json", r#"{"items":[{"name":"a\u0000"}]}"#, 422),
            (
                "application/json",
                r#"{"items":[{"name":"a\\u0000"}]}"#,
                200,
            ),
            ("application/json", r#"{"items":[{"name":"\ud800"}]}"#, 400),
        ];
        for (kind, body, expected) in cases {
            let status =
                parse(kind, body).map_or_else(|problem| problem.status().as_u16(), |_| 200);
            assert_eq!(status, expected, "{kind} {body}");
        }
    }

    #[tokio::test]
    async fn a_body_that_trickles_in_is_given_up() {
        let trickle = stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            Some((
                Ok::<_, std::convert::Infallible>(Bytes::from_static(b" ")),
                (),
            ))
        });
        let request = Request::new(Body::from_stream(trickle.boxed()));
        let refused = read_within(Duration::from_millis(50), request, &()).await;
        let response = refused.expect_err("it never ends").into_response();
        assert_eq!(response.status(), StatusCode::REQUEST_TIMEOUT);
    }
}
