//! `POST /v1/work`: one exchange. The worker reports what ended since last time and asks for leases.
//!
//! The reply comes at once when it has acks, leases or orders, else when one appears, at the latest
//! after `wait_ms`. Reports may be repeated: one that was already taken is accepted again.
//!
//! Every result is committed before it is shown, whatever the job: the worker uploads its output blobs,
//! sends a [`Seal`], keeps its lease by heartbeats, and sends the [`Reveal`] when the reply orders it.
//! It is not told how many others run the same job.

use std::collections::BTreeMap;

use comptoir_domain::{
    digest::Sha256,
    id::{AttemptId, LeaseToken},
    job::JobSpec,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use crate::{attempt::Checkpoint, encoded::Base64, heartbeat::Held};

/// One exchange.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WorkRequest {
    /// Leases wanted: 0 to 256.
    #[schema(maximum = 256)]
    pub wanted: u16,
    /// How long to hold the request when there is nothing to say, in milliseconds: 0 to 30000.
    #[schema(maximum = 30000)]
    pub wait_ms: u32,
    /// Attempts that the worker still has, running or sealed; orders come for these alone. At most 512.
    #[serde(default)]
    #[schema(max_items = 512)]
    pub held: Vec<Held>,
    /// Results that were committed to. At most 512.
    #[serde(default)]
    #[schema(max_items = 512)]
    pub seals: Vec<Seal>,
    /// Results that are shown, as ordered. At most 512.
    #[serde(default)]
    #[schema(max_items = 512)]
    pub reveals: Vec<Reveal>,
    /// Attempts that failed. At most 512.
    #[serde(default)]
    #[schema(max_items = 512)]
    pub failures: Vec<Failure>,
}

/// Commits to the result of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Seal {
    /// The attempt.
    #[schema(value_type = String)]
    pub attempt_id: AttemptId,
    /// Its lease token.
    #[schema(value_type = String)]
    pub lease_token: LeaseToken,
    /// [`crate::seal::seal`]: the SHA-256 of worker UUID, attempt UUID, salt and result digest.
    pub seal: Sha256,
    /// How long the attempt computed, in milliseconds. Shown, never charged.
    pub compute_ms: u64,
}

/// Shows the result that a seal committed to. Every output blob is uploaded before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Reveal {
    /// The attempt.
    #[schema(value_type = String)]
    pub attempt_id: AttemptId,
    /// Its lease token.
    #[schema(value_type = String)]
    pub lease_token: LeaseToken,
    /// The 32 random bytes of the seal, in base64.
    #[schema(value_type = String, format = Byte)]
    pub salt: Base64<32>,
    /// [`crate::seal::result_sha256`]: the SHA-256 of the canonical JSON of `outputs`.
    pub result_sha256: Sha256,
    /// Blob digest by output name: 1 to 16, names of 1 to 100 characters. [`crate::OUTPUT_WEIGHTS`] for
    /// training, [`crate::OUTPUT_TENSORS`] for inference.
    #[schema(value_type = BTreeMap<String, String>)]
    pub outputs: BTreeMap<String, Sha256>,
}

/// An attempt ended without a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// The attempt.
    #[schema(value_type = String)]
    pub attempt_id: AttemptId,
    /// Its lease token.
    #[schema(value_type = String)]
    pub lease_token: LeaseToken,
    /// Who answers for it.
    pub cause: FailureCause,
    /// A stable word for it, `snake_case`: 1 to 64 characters.
    #[schema(min_length = 1, max_length = 64, pattern = "^[a-z][a-z0-9_]*$")]
    pub code: String,
    /// What happened, for people: at most 2000 characters.
    #[schema(max_length = 2000)]
    pub detail: String,
}

/// Who answers for a failure, as far as a worker can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailureCause {
    /// The program, the data or the specification: no worker could run it. Ends the job.
    Client,
    /// This machine: another worker tries.
    Worker,
}

/// What the server says.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct WorkReply {
    /// Attempts to run.
    pub leases: Vec<Lease>,
    /// One per report, in the order seals, reveals, failures.
    pub acks: Vec<Ack>,
    /// Sealed attempts to reveal now.
    pub reveal: Vec<RevealOrder>,
    /// Held attempts whose job ended or whose lease is lost: stop them, report nothing.
    #[schema(value_type = Vec<String>)]
    pub cancel: Vec<AttemptId>,
}

/// An attempt to run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Lease {
    /// The attempt.
    #[schema(value_type = String, example = "att_01h455vb4pex5vsknk084sn02q")]
    pub attempt_id: AttemptId,
    /// The secret that every write of this attempt names.
    #[schema(value_type = String, example = "lse_01h455vb4pex5vsknk084sn02q")]
    pub lease_token: LeaseToken,
    /// When the lease ends unless a heartbeat renews it; to show. Count [`crate::LEASE_MS`] from the answer instead.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    /// When the job ends, done or not.
    #[serde(with = "time::serde::rfc3339")]
    pub deadline_at: OffsetDateTime,
    /// What to compute.
    pub job: JobSpec,
    /// Every blob that the job reads, once, with its size.
    pub blobs: Vec<BlobSize>,
    /// Where to go on, for training that an earlier attempt began.
    pub resume: Option<Checkpoint>,
    /// Stop after this optimizer step: a piece of a training is run again. Post no metrics and no checkpoints; the one
    /// output is [`crate::OUTPUT_CHECKPOINT`], or [`crate::OUTPUT_WEIGHTS`] where the step is the last of the run. Left
    /// out where all of it is run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_step: Option<u64>,
    /// What the attempt may use.
    pub limits: Limits,
}

/// A blob to fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BlobSize {
    /// Its name.
    pub sha256: Sha256,
    /// Its size, in bytes.
    pub bytes: u64,
}

/// What an attempt may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Limits {
    /// Memory that the job was quoted to need, in bytes.
    pub memory_bytes: u64,
    /// Largest output or checkpoint blob, in bytes.
    pub blob_bytes_max: u64,
}

/// What became of one report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Ack {
    /// The attempt that was reported.
    #[schema(value_type = String)]
    pub attempt_id: AttemptId,
    /// What was reported.
    pub report: Report,
    /// What became of it.
    pub outcome: AckOutcome,
}

/// What was reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// A seal.
    Seal,
    /// A reveal.
    Reveal,
    /// A failure.
    Failure,
}

/// What became of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AckOutcome {
    /// Taken, now or before.
    Accepted,
    /// The lease is gone, or never was: drop the attempt.
    StaleLease,
    /// A reveal before it was ordered: wait for the order.
    NotOrdered,
    /// An output that this attempt did not upload: upload it, then reveal again before the deadline.
    BlobMissing,
    /// The reveal does not open the seal. The attempt has failed.
    SealMismatch,
    /// The result lacks the output that every job of its kind has. The attempt has failed.
    OutputMissing,
}

/// Show the result of a sealed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RevealOrder {
    /// The attempt.
    #[schema(value_type = String)]
    pub attempt_id: AttemptId,
    /// A reveal that comes later counts as a fault.
    #[serde(with = "time::serde::rfc3339")]
    pub reveal_by: OffsetDateTime,
}
