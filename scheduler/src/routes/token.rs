//! A signature becomes a worker token; the key set that signs them.

use axum::{extract::State, http::StatusCode};
use comptoir_domain::policy::audit::block_of;
use comptoir_http::{Problem, client_ip, extract::Json, jwt::Jwks};
use comptoir_store::workers;
use comptoir_wire::token::{
    TOKEN_LIFE_S, TOKEN_SKEW_MS, WorkerTokenReply, WorkerTokenRequest, token_signing_bytes,
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    detached,
    join::{signature_refused, verify},
};
use crate::{SchedulerState, auth};

pub(super) fn router() -> OpenApiRouter<SchedulerState> {
    OpenApiRouter::new()
        .routes(routes!(issue))
        .routes(routes!(find_keys))
}

/// Get a worker token
///
/// One hour; ask again before it ends.
#[utoipa::path(
    post, path = "/v1/worker-token", tag = "identity", security(()), request_body = WorkerTokenRequest,
    responses(
        (status = 200, body = WorkerTokenReply),
        (status = 401, description = "`signature_refused`", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "`worker_revoked`", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`token_request_replayed`", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`clock_skewed`", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn issue(
    State(state): State<SchedulerState>,
    Json(request): Json<WorkerTokenRequest>,
) -> Result<Json<WorkerTokenReply>, Problem> {
    let now = state.now();
    let mut conn = state.db.acquire().await?;
    let worker = workers::find(&mut conn, request.worker_id)
        .await?
        .ok_or_else(signature_refused)?;
    let signed = token_signing_bytes(request.worker_id, request.issued_at_ms);
    verify(&worker.public_key, &signed, &request.signature.0)?;
    if worker.revoked {
        return Err(auth::revoked());
    }
    let now_ms = now.unix_timestamp_nanos() / 1_000_000;
    if now_ms.abs_diff(i128::from(request.issued_at_ms)) > u128::from(TOKEN_SKEW_MS) {
        return Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "clock_skewed",
            "The moment is too far from the server's clock",
        )
        .detail(format!("The server's clock says {now_ms}")));
    }
    drop(conn);
    let network = client_ip::current().map(block_of);
    detached(async move {
        let mut conn = state.db.acquire().await?;
        let noted = (request.issued_at_ms, network.as_deref());
        if workers::note_token(&mut conn, request.worker_id, noted).await? {
            let token = state.keys.worker_token(request.worker_id, now);
            Ok(Json(WorkerTokenReply {
                token,
                expires_in_s: TOKEN_LIFE_S,
            }))
        } else {
            Err(Problem::new(
                StatusCode::CONFLICT,
                "token_request_replayed",
                "A token request of this or a later moment was answered before",
            ))
        }
    })
    .await
}

/// The public keys of worker tokens
#[utoipa::path(
    get, path = "/.well-known/jwks.json", tag = "identity", security(()),
    responses((status = 200, body = Jwks)),
)]
async fn find_keys(State(state): State<SchedulerState>) -> Json<Jwks> {
    Json(state.keys.jwks())
}
