//! `POST /v1/worker-token`: a signature becomes a one-hour token for every other route.

use comptoir_domain::id::WorkerId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::encoded::Base64;

/// What the signed bytes of a token request start with.
pub const TOKEN_CONTEXT: &[u8] = b"comptoir-worker-token/1\0";
/// How far `issued_at_ms` may be from the server's clock, in milliseconds.
pub const TOKEN_SKEW_MS: u64 = 60_000;
/// How long a worker token lives, in seconds.
pub const TOKEN_LIFE_S: u32 = 3_600;

/// Asks for a worker token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WorkerTokenRequest {
    /// Who asks.
    #[schema(value_type = String, example = "wrk_01h455vb4pex5vsknk084sn02q")]
    pub worker_id: WorkerId,
    /// The worker's clock, in Unix milliseconds: within 60 s of the server's, and greater in every
    /// accepted request of this worker than in the one before.
    pub issued_at_ms: u64,
    /// Ed25519 over `"comptoir-worker-token/1"`, a zero byte, the 16 bytes of the worker's UUID, and
    /// `issued_at_ms` as 8 big-endian bytes: 64 bytes in base64.
    #[schema(value_type = String, format = Byte)]
    pub signature: Base64<64>,
}

/// The token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WorkerTokenReply {
    /// A JWT (`EdDSA`, audience `comptoir-worker`), for `Authorization: Bearer`.
    pub token: String,
    /// How long it lives from now, in seconds.
    pub expires_in_s: u32,
}

impl std::fmt::Debug for WorkerTokenReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerTokenReply")
            .field("expires_in_s", &self.expires_in_s)
            .finish_non_exhaustive()
    }
}

/// The bytes that a token request's `signature` signs.
#[must_use]
pub fn token_signing_bytes(worker: WorkerId, issued_at_ms: u64) -> Vec<u8> {
    [
        TOKEN_CONTEXT,
        worker.0.as_bytes(),
        &issued_at_ms.to_be_bytes(),
    ]
    .concat()
}
