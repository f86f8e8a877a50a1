//! `POST /v1/heartbeats`: keeps all leases of a worker in one call.

use comptoir_domain::id::{AttemptId, LeaseToken};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

/// An attempt and the secret of the lease on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Held {
    /// The attempt.
    #[schema(value_type = String, example = "att_01h455vb4pex5vsknk084sn02q")]
    pub attempt_id: AttemptId,
    /// Its lease token.
    #[schema(value_type = String, example = "lse_01h455vb4pex5vsknk084sn02q")]
    pub lease_token: LeaseToken,
}

/// Renews leases, those of sealed attempts too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HeartbeatRequest {
    /// At most 512.
    #[schema(max_items = 512)]
    pub leases: Vec<Held>,
}

/// How each lease stands, in the order asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HeartbeatReply {
    /// One per lease asked.
    pub leases: Vec<LeaseStatus>,
}

/// How one lease stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeaseStatus {
    /// The attempt.
    #[schema(value_type = String)]
    pub attempt_id: AttemptId,
    /// What to do about it.
    pub status: LeaseState,
    /// When the lease ends now; `null` unless `ok`. To show: count [`crate::LEASE_MS`] from the answer instead.
    #[serde(with = "time::serde::rfc3339::option")]
    pub expires_at: Option<OffsetDateTime>,
}

/// What a worker does about one lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LeaseState {
    /// Go on.
    Ok,
    /// It passed to another worker or ran out: stop, report nothing.
    Lost,
    /// The job ended: stop, report nothing.
    Cancelled,
}
