//! RFC 9457 problem details: the one shape of every error response.

use axum::{
    Json,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{dialect, request_id};

/// Names the kind of a problem that is told in another form than ours.
pub const PROBLEM: HeaderName = HeaderName::from_static("comptoir-problem");

/// What went wrong, as `application/problem+json`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Problem {
    /// The page that explains this kind of problem; stable, clients may match on it.
    #[serde(rename = "type")]
    #[schema(value_type = String, format = "uri-reference")]
    kind: Box<str>,
    title: &'static str,
    status: u16,
    /// What is particular to this occurrence.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, nullable = false)]
    detail: Option<Box<str>>,
    /// The kind in one stable word; clients may match on it.
    code: &'static str,
    /// The fields that were refused.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldError>,
    /// Name this when you report the problem.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, nullable = false)]
    request_id: Option<Box<str>>,
    /// May the same request succeed later?
    retryable: bool,
    #[serde(skip)]
    headers: Box<HeaderMap>,
}

/// One refused field of the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldError {
    /// Where in the request body, as a JSON pointer (RFC 6901).
    pub pointer: String,
    /// What is wrong with it.
    pub detail: String,
}

impl FieldError {
    /// A refused field.
    pub fn new(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            pointer: pointer.into(),
            detail: detail.into(),
        }
    }
}

impl Problem {
    /// A problem of a kind listed in [`crate::codes::ALL`]; a test holds every code to that table.
    #[must_use]
    pub fn new(status: StatusCode, code: &'static str, title: &'static str) -> Self {
        Self {
            kind: format!("/problems/{code}").into(),
            title,
            status: status.as_u16(),
            detail: None,
            code,
            errors: Vec::new(),
            request_id: None,
            retryable: matches!(status.as_u16(), 429 | 503),
            headers: Box::default(),
        }
    }

    /// Says what is particular to this occurrence.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into().into());
        self
    }

    /// Names the refused fields.
    #[must_use]
    pub fn errors(mut self, errors: impl IntoIterator<Item = FieldError>) -> Self {
        self.errors.extend(errors);
        self
    }

    /// The same request may succeed later.
    #[must_use]
    pub fn retryable(mut self) -> Self {
        self.retryable = true;
        self
    }

    /// The same request may succeed after `seconds`.
    #[must_use]
    pub fn retry_after(self, seconds: u32) -> Self {
        self.retryable()
            .header(header::RETRY_AFTER, HeaderValue::from(seconds))
    }

    /// Sends a header along.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// One field has a value that cannot be accepted: 422.
    #[must_use]
    pub fn invalid(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::invalid_fields([FieldError::new(pointer, detail)])
    }

    /// Some fields have values that cannot be accepted: 422.
    #[must_use]
    pub fn invalid_fields(errors: impl IntoIterator<Item = FieldError>) -> Self {
        Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid_request",
            "A value in the request cannot be accepted",
        )
        .errors(errors)
    }

    /// Refuses what has values that cannot be accepted, each at its place: JSON pointers and reasons.
    ///
    /// # Errors
    /// 422, unless there are none.
    pub fn refuse<P: Into<String>, W: Into<String>>(
        refusals: impl IntoIterator<Item = (P, W)>,
    ) -> Result<(), Self> {
        let errors = refusals.into_iter();
        let errors: Vec<_> = errors.map(|(at, why)| FieldError::new(at, why)).collect();
        if errors.is_empty() {
            return Ok(());
        }
        Err(Self::invalid_fields(errors))
    }

    /// The request is not well formed: 400.
    #[must_use]
    pub fn malformed(detail: impl Into<String>) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "malformed_request",
            "The request is not well formed",
        )
        .detail(detail)
    }

    /// There is no such thing, or it is another tenant's: 404.
    #[must_use]
    pub fn not_found() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "not_found",
            "There is no such object",
        )
    }

    /// Who is calling is not known: 401.
    #[must_use]
    pub fn unauthenticated() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "unauthenticated",
            "Credentials are missing or not valid",
        )
        .header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
    }

    /// The caller learns nothing of the cause; the log gets the whole chain, once, here. Where the cause is a
    /// database that cannot answer now, the caller may come back: 503.
    pub fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        let chain = || std::iter::successors(Some(error), |error| error.source());
        let causes: Vec<String> = chain().map(ToString::to_string).collect();
        let error = causes.join(": ");
        if chain()
            .filter_map(|error| error.downcast_ref())
            .any(is_passing)
        {
            tracing::warn!(error, "request refused for now");
            return Self::unavailable("The database has more work than it can take, or is away");
        }
        tracing::error!(error, "request failed");
        Self::unexpected()
    }

    /// What [`Self::internal`] and a panic answer.
    #[must_use]
    pub(crate) fn unexpected() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "The service could not complete the request",
        )
        .retryable()
    }

    /// A part that the service needs does not answer now: 503.
    #[must_use]
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            "The service cannot answer this now",
        )
        .detail(detail)
        .retry_after(1)
    }

    /// Requests are done in groups, and the group gave no answer: it was full, so that nothing was done, or what was done is
    /// not known.
    #[must_use]
    pub fn ungrouped(error: &(dyn std::error::Error + 'static), is_full: bool) -> Self {
        if is_full {
            Self::unavailable("Too many requests wait")
        } else {
            Self::internal(error)
        }
    }

    /// The status that this problem is answered with.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// All of it in one line, for protocols whose errors are one text.
    #[must_use]
    pub fn message(&self) -> String {
        let detail = self.detail.iter().map(ToString::to_string);
        let errors = self.errors.iter();
        let errors = errors.map(|it| format!("{}: {}", it.pointer, it.detail));
        let parts = std::iter::once(self.title.to_owned());
        let parts: Vec<_> = parts.chain(detail).chain(errors).collect();
        parts.join("; ")
    }

    /// The fields that were refused.
    #[must_use]
    pub fn refused_fields(&self) -> &[FieldError] {
        &self.errors
    }

    /// The kind in one stable word.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        self.code
    }
}

impl IntoResponse for Problem {
    fn into_response(mut self) -> Response {
        let status = self.status();
        let headers = std::mem::take(&mut self.headers);
        self.request_id = request_id::current().map(Into::into);
        let kind = HeaderValue::from_static("application/problem+json");
        let kind = [(header::CONTENT_TYPE, kind)];
        let mut response = match dialect::spoken() {
            None => (status, kind, Json(self)).into_response(),
            Some(told) if told.is_beside => {
                (status, kind, Json(told.beside(&self))).into_response()
            }
            Some(told) => {
                let code = [(PROBLEM, HeaderValue::from_static(self.code))];
                let body = Json((told.body)(&self));
                ((told.status)(status), code, body).into_response()
            }
        };
        response.headers_mut().extend(*headers);
        response
    }
}

impl From<sqlx::Error> for Problem {
    fn from(error: sqlx::Error) -> Self {
        Self::internal(&error)
    }
}

/// States of Postgres in which the same statement may succeed later: serialization, deadlock, lock timeout,
/// cancelled, shutting down, starting up, too many connections.
const PASSING_STATES: &[&str] = &[
    "40001", "40P01", "55P03", "57014", "57P01", "57P02", "57P03", "53300",
];

fn is_passing(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::Io(_) => true,
        sqlx::Error::Database(error) => error
            .code()
            .is_some_and(|state| PASSING_STATES.contains(&&*state)),
        _ => false,
    }
}
