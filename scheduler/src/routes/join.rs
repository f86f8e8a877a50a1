//! A join token becomes a worker identity.

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use axum::{extract::State, http::StatusCode};
use comptoir_domain::join_token::JoinToken;
use comptoir_http::{Problem, extract::Json};
use comptoir_store::workers::{self, JoinError, NewWorker};
use comptoir_wire::join::{JoinReply, JoinRequest, WorkerFacts};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{detached, exceeded};
use crate::SchedulerState;

pub(super) fn router() -> OpenApiRouter<SchedulerState> {
    OpenApiRouter::new().routes(routes!(join))
}

/// Join with a join token
///
/// Trades one use of a join token for a worker identity bound to the worker's key. Repeating the request with the same
/// token and key is answered with the same identity. Before it shows the token, a worker compares the token's first
/// part with the SHA-256 of the canonical JSON (RFC 8785) of `GET /.well-known/jwks.json`.
#[utoipa::path(
    post, path = "/v1/join", tag = "identity", security(()), request_body = JoinRequest,
    responses(
        (status = 201, body = JoinReply),
        (status = 401, description = "`join_token_refused` or `signature_refused`", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`address_not_bound` or `worker_key_taken`", body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn join(
    State(state): State<SchedulerState>,
    Json(request): Json<JoinRequest>,
) -> Result<(StatusCode, Json<JoinReply>), Problem> {
    let token: JoinToken = request.token.parse().map_err(|_| refused())?;
    request.check().map_err(exceeded)?;
    let signed = request
        .signing_bytes()
        .map_err(|error| Problem::internal(&error))?;
    verify(&request.public_key.0, &signed, &request.signature.0)?;
    let worker = new_worker(request);
    detached(async move {
        let mut tx = state.db.begin().await?;
        let secret = token.secret_sha256();
        let joined = workers::join(&mut tx, token.id, secret, &worker, state.now()).await;
        let worker_id = joined.map_err(join_problem)?;
        tx.commit().await?;
        tracing::info!(worker = %worker_id, device = %worker.device, class = worker.numeric_class, "worker joined");
        Ok((StatusCode::CREATED, Json(JoinReply { worker_id })))
    })
    .await
}

/// Is this a signature of these bytes by the worker's key?
pub(super) fn verify(
    public_key: &[u8; 32],
    signed: &[u8],
    signature: &[u8; 64],
) -> Result<(), Problem> {
    UnparsedPublicKey::new(&ED25519, public_key)
        .verify(signed, signature)
        .map_err(|_| signature_refused())
}

pub(super) fn signature_refused() -> Problem {
    Problem::new(
        StatusCode::UNAUTHORIZED,
        "signature_refused",
        "The signature is not the worker's",
    )
}

fn refused() -> Problem {
    Problem::new(
        StatusCode::UNAUTHORIZED,
        "join_token_refused",
        "The join token is not valid",
    )
}

fn new_worker(request: JoinRequest) -> NewWorker {
    let WorkerFacts {
        device,
        device_name,
        memory_bytes,
        threads,
        numeric_class,
        libtorch,
        version,
        price_floor_nano,
        unsandboxed,
    } = request.facts;
    NewWorker {
        name: request.name,
        public_key: request.public_key.0,
        device,
        device_name,
        memory_bytes,
        threads,
        numeric_class,
        libtorch,
        version,
        price_floor_nano,
        unsandboxed,
    }
}

fn join_problem(error: JoinError) -> Problem {
    match error {
        JoinError::Token => refused(),
        JoinError::AddressNotBound => Problem::new(
            StatusCode::CONFLICT,
            "address_not_bound",
            "The account of the join token has no bound address to pay earnings to",
        ),
        JoinError::KeyTaken => Problem::new(
            StatusCode::CONFLICT,
            "worker_key_taken",
            "Another worker has this public key",
        ),
        JoinError::Database(error) => error.into(),
    }
}
