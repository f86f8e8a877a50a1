//! Routes that clients of `OpenAI` know: `/v1/embeddings` and `/v1/chat/completions`, beside `/v1/models`, which serves both. Fields that are not known are ignored, and errors
//! are `{"error": {…}}` (docs/adr/0026).

mod chat;
mod embeddings;

use axum::http::StatusCode;
use comptoir_http::dialect::Dialect;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;

use crate::{AppState, Problem};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .merge(embeddings::router())
        .merge(chat::router())
}

/// Problems as these clients read them.
pub(crate) const DIALECT: Dialect = Dialect {
    body: told,
    status: |status| match status {
        // A value that cannot be accepted is a bad request to them.
        StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
        status => status,
    },
    is_beside: false,
};

/// The same, where clients of ours read the document.
pub(crate) const BESIDE_OURS: Dialect = Dialect {
    is_beside: true,
    ..DIALECT
};

fn told(problem: &Problem) -> Value {
    let first = problem.refused_fields().first();
    let place = first.map(|it| it.pointer.trim_start_matches(['/', '?']));
    let param = place.and_then(|it| it.split('/').next());
    json!({ "error": {
        "message": problem.message(),
        "type": kind(problem.status()),
        "param": param.filter(|it| !it.is_empty()),
        "code": problem.code(),
    }})
}

fn kind(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::PAYMENT_REQUIRED => "insufficient_quota",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        status if status.is_server_error() => "server_error",
        _ => "invalid_request_error",
    }
}

/// What went wrong, as [`DIALECT`] says it.
#[derive(ToSchema)]
#[schema(as = OpenAiError)]
#[expect(dead_code, reason = "it documents what every problem becomes here")]
struct ErrorBody {
    error: ErrorDetail,
}

#[derive(ToSchema)]
#[schema(as = OpenAiErrorDetail)]
#[expect(dead_code, reason = "it documents what every problem becomes here")]
struct ErrorDetail {
    message: String,
    r#type: String,
    /// The field that was refused.
    #[schema(required = true)]
    param: Option<String>,
    /// The kind of the problem: `/problems/<code>` explains it.
    code: String,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ListObject {
    List,
}
