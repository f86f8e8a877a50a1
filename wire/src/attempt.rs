//! Routes of one attempt: metrics (`POST /v1/attempts/{id}/events`), checkpoints
//! (`POST /v1/attempts/{id}/segments`) and blobs (`GET` and `PUT /v1/attempts/{id}/blobs/{sha256}`).
//!
//! All carry the lease token in [`crate::LEASE_TOKEN_HEADER`]. A lease that is gone answers 409
//! `stale_lease`; another worker's attempt answers 404. Blobs travel as `application/octet-stream`:
//! a worker reads the inputs and the resume checkpoint of its job, writes outputs and checkpoints, and
//! sees nothing else. A `PUT` needs `Content-Length` and is answered 204; one that does not hash to
//! its name is answered 422 `digest_mismatch`.

use std::collections::BTreeMap;

use comptoir_domain::digest::Sha256;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What happened in an attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EventsRequest {
    /// 1 to 64, in rising order of `seq`.
    #[schema(min_items = 1, max_items = 64)]
    pub events: Vec<AttemptEvent>,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AttemptEvent {
    /// Counts the attempt's events from 1. An event that was already taken is taken for a repetition.
    #[schema(minimum = 1)]
    pub seq: u64,
    /// What happened.
    pub event: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum EventKind {
    /// An epoch of training ended.
    Metrics {
        /// The epoch, from 0.
        epoch: u32,
        /// Optimizer steps since the job's start.
        step: u64,
        /// Value by name, such as `loss`; `null` where it is not finite. At most 32 of 100 characters.
        values: BTreeMap<String, Option<f64>>,
    },
    /// How far the attempt is.
    Progress {
        /// Steps or rows done.
        done: u64,
        /// Steps or rows in all.
        of: u64,
    },
}

/// What was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventsReply {
    /// The highest `seq` that the server has; the next event has a greater one.
    pub last_seq: u64,
}

/// A training attempt reached a checkpoint, and its blob is uploaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SegmentRequest {
    /// The segment that ended, from 0: optimizer steps `segment * segment_steps` up to
    /// `(segment + 1) * segment_steps` of the specification. The rest after the last whole segment has
    /// no checkpoint; the sealed result ends it.
    pub segment: u32,
    /// The digest of the checkpoint blob.
    pub checkpoint: Sha256,
}

/// The checkpoint is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SegmentReply {
    /// The segment that a retry would resume after.
    pub segment: u32,
}

/// Where a retry goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Checkpoint {
    /// The last segment that ended.
    pub segment: u32,
    /// Optimizer steps done at the checkpoint.
    pub step: u64,
    /// Its blob.
    pub sha256: Sha256,
    /// The blob's size, in bytes.
    pub bytes: u64,
}
