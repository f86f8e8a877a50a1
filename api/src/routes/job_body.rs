//! A job as clients see it.

use comptoir_domain::{
    asset::Asset,
    digest::Sha256,
    id::{JobId, QuoteId, ReceiptId, ReplicaId},
    job::{Cause, Device, JobSpec, JobState, ReplicaState, Tier, waiting::StatusReason},
    price::Meter,
};
use comptoir_store::jobs::{Failure, Job, Output, Replica};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use crate::money::MoneyBody;

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum JobObject {
    Job,
}

/// What kind of work a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum JobKind {
    Training,
    Inference,
}

impl JobKind {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Training => "training",
            Self::Inference => "inference",
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = Job)]
pub(super) struct JobBody {
    #[schema(value_type = String, example = "job_01h455vb4pex5vsknk084sn02q")]
    id: JobId,
    object: JobObject,
    #[schema(required = true)]
    name: Option<String>,
    kind: JobKind,
    tier: Tier,
    device: Device,
    state: JobState,
    /// Why it stands where it stands; `null` once it ended, and in lists.
    #[schema(required = true)]
    status_reason: Option<StatusReason>,
    #[schema(value_type = String, example = "quo_01h455vb4pex5vsknk084sn02q")]
    quote_id: QuoteId,
    spec: JobSpec,
    /// What is counted of it; the price version and the exact price are in the quote.
    meter: Meter,
    /// Memory that a worker must offer for it.
    min_memory_bytes: u64,
    /// The most you allowed.
    max_cost: MoneyBody,
    /// What it costs at most, held until it ends.
    quoted: MoneyBody,
    /// What it cost; `null` unless it completed.
    #[schema(required = true)]
    charged: Option<MoneyBody>,
    /// What the operator gave back of it; `null` when nothing.
    #[schema(required = true)]
    refunded: Option<MoneyBody>,
    /// The receipt of the charge.
    #[schema(value_type = Option<String>, required = true, example = "rcpt_01h455vb4pex5vsknk084sn02q")]
    receipt_id: Option<ReceiptId>,
    /// The numeric class that its replicas are bound to, once the first has begun.
    #[schema(required = true)]
    numeric_class: Option<String>,
    /// How the result was verified: `unverified`, `sampled`, `bitwise`, `tolerance`, `unstable`.
    #[schema(required = true)]
    verdict: Option<String>,
    /// Why it failed.
    #[schema(required = true)]
    failure: Option<FailureBody>,
    /// Its executions. Who runs them is not told.
    replicas: Vec<ReplicaBody>,
    /// Its results, once it completed: blobs of your account.
    outputs: Vec<OutputBody>,
    /// Do its results wait for the consent of the seller of the dataset that it computed on? `outputs` is empty until then.
    awaits_release: bool,
    /// Did that seller not release them in time? Then they are never handed out.
    release_denied: bool,
    /// When it ends, done or not.
    #[serde(with = "time::serde::rfc3339")]
    deadline_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    started_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    finished_at: Option<OffsetDateTime>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = JobFailure)]
struct FailureBody {
    /// Who answers for it. Nothing is charged for a failed job, whoever does.
    cause: Cause,
    /// A stable word.
    code: String,
    /// A sentence for people.
    #[schema(required = true)]
    detail: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Replica)]
struct ReplicaBody {
    #[schema(value_type = String, example = "rep_01h455vb4pex5vsknk084sn02q")]
    id: ReplicaId,
    state: ReplicaState,
    /// Tries so far.
    attempts: i32,
    /// The numeric class of the latest try.
    #[schema(required = true)]
    numeric_class: Option<String>,
    /// How long the latest try computed, as its worker says. Never charged.
    #[schema(required = true)]
    compute_ms: Option<i64>,
}

/// A result.
#[derive(Serialize, ToSchema)]
#[schema(as = JobOutput)]
pub(super) struct OutputBody {
    /// `weights` of training, `outputs` of inference.
    name: String,
    /// The blob: `GET /v1/blobs/{sha256}`.
    #[schema(value_type = String)]
    sha256: Sha256,
    bytes: u64,
}

impl From<Output> for OutputBody {
    fn from(output: Output) -> Self {
        Self {
            name: output.name,
            sha256: output.sha256,
            bytes: output.bytes,
        }
    }
}

impl From<Failure> for FailureBody {
    fn from(failure: Failure) -> Self {
        Self {
            cause: failure.cause,
            code: failure.code,
            detail: failure.detail,
        }
    }
}

impl From<Replica> for ReplicaBody {
    fn from(replica: Replica) -> Self {
        Self {
            id: replica.id,
            state: replica.state,
            attempts: replica.attempts,
            numeric_class: replica.numeric_class,
            compute_ms: replica.compute_ms,
        }
    }
}

impl JobBody {
    pub(super) fn new(job: Job, status_reason: Option<StatusReason>, asset: &Asset) -> Self {
        let kind = match job.spec {
            JobSpec::Training(_) => JobKind::Training,
            JobSpec::Inference(_) => JobKind::Inference,
        };
        Self {
            id: job.id,
            object: JobObject::Job,
            name: job.name,
            kind,
            tier: job.tier,
            device: job.device,
            state: job.state,
            status_reason,
            quote_id: job.quote,
            spec: job.spec,
            meter: job.meter,
            min_memory_bytes: job.min_memory_bytes,
            max_cost: MoneyBody::new(job.max_cost, asset),
            quoted: MoneyBody::new(job.hold, asset),
            charged: job.charge.map(|it| MoneyBody::new(it.amount, asset)),
            refunded: job
                .charge
                .filter(|it| !it.refunded.is_zero())
                .map(|it| MoneyBody::new(it.refunded, asset)),
            receipt_id: job.charge.map(|it| it.receipt),
            numeric_class: job.numeric_class,
            verdict: job.verdict,
            failure: job.failure.map(FailureBody::from),
            replicas: job.replicas.into_iter().map(ReplicaBody::from).collect(),
            outputs: job.outputs.into_iter().map(OutputBody::from).collect(),
            awaits_release: job.awaits_release,
            release_denied: job.release_denied,
            deadline_at: job.deadline_at,
            created_at: job.created_at,
            started_at: job.started_at,
            finished_at: job.finished_at,
        }
    }
}
