//! Results that the seller of a dataset has not consented to yet.

use comptoir_domain::{
    dataset_input::RELEASE_WITHIN,
    digest::Sha256,
    id::{AccountId, DatasetId, DatasetVersionId, JobId},
};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{PgTransaction, codec::to_digest, dataset_inputs::Computed, verdicts::Case};

/// What a seller is asked to consent to. It says what ran, and nothing of what came out but how large it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withheld {
    /// The job.
    pub job: JobId,
    /// Which version it read.
    pub version: DatasetVersionId,
    /// `training` or `inference`.
    pub kind: String,
    /// The program that ran.
    pub program: Sha256,
    /// The weights that it ran with, where they are not its own.
    pub weights: Option<Sha256>,
    /// Bytes of all results.
    pub output_bytes: u64,
    /// When the job completed.
    pub completed_at: OffsetDateTime,
    /// When the seller consented.
    pub released_at: Option<OffsetDateTime>,
    /// When they were denied, since the seller did not.
    pub denied_at: Option<OffsetDateTime>,
}

/// Why results are withheld from a job's owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Withholding {
    /// They wait for the seller.
    Awaits,
    /// The seller did not release them in time.
    Denied,
}

impl Withholding {
    const fn of(is_denied: bool) -> Self {
        if is_denied {
            Self::Denied
        } else {
            Self::Awaits
        }
    }
}

/// What became of a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Released {
    /// The job's owner has its results now.
    Now,
    /// It had them before, or was denied them.
    Before,
    /// Nothing of this job waits for this seller.
    Unknown,
}

/// Keeps the results of jobs, which were written in the same transaction, from their owners.
pub(crate) async fn withhold(
    tx: &mut PgTransaction<'_>,
    jobs: &[(&Case, &Computed)],
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    for (case, data) in jobs {
        sqlx::query!(
            "INSERT INTO withheld_results (job_id, account_id, seller_id, dataset_id, version_id, kind, program, weights, output_bytes, completed_at)
             SELECT $1, $2, $3, $4, $5, $6, $7, $8, coalesce(sum(bytes), 0)::bigint, $9
             FROM job_outputs JOIN blobs USING (sha256) WHERE job_id = $1",
            case.job.0,
            case.account.0,
            data.seller.0,
            data.dataset.0,
            data.version.0,
            case.spec.kind(),
            &case.spec.program().0,
            case.spec.weights().map(|it| it.0.to_vec()),
            now,
        )
        .execute(&mut **tx)
        .await?;
    }
    Ok(())
}

struct Row {
    job_id: Uuid,
    version_id: Uuid,
    kind: String,
    program: Vec<u8>,
    weights: Option<Vec<u8>>,
    output_bytes: i64,
    completed_at: OffsetDateTime,
    released_at: Option<OffsetDateTime>,
    denied_at: Option<OffsetDateTime>,
}

impl TryFrom<Row> for Withheld {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        let weights = row.weights.map(|it| to_digest("weights", &it));
        Ok(Self {
            job: JobId(row.job_id),
            version: DatasetVersionId(row.version_id),
            kind: row.kind,
            program: to_digest("program", &row.program)?,
            weights: weights.transpose()?,
            output_bytes: row.output_bytes.unsigned_abs(),
            completed_at: row.completed_at,
            released_at: row.released_at,
            denied_at: row.denied_at,
        })
    }
}

/// What waited, or waits, for the seller of a dataset; newest jobs first.
pub async fn list(
    conn: &mut PgConnection,
    (seller, dataset): (AccountId, DatasetId),
    before: Option<JobId>,
    limit: i64,
) -> sqlx::Result<Vec<Withheld>> {
    let rows = sqlx::query_as!(
        Row,
        "SELECT job_id, version_id, kind, program, weights, output_bytes, completed_at, released_at, denied_at
         FROM withheld_results WHERE seller_id = $1 AND dataset_id = $2 AND ($3::uuid IS NULL OR job_id < $3)
         ORDER BY job_id DESC LIMIT $4",
        seller.0,
        dataset.0,
        before.map(|id| id.0),
        limit,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Withheld::try_from).collect()
}

/// What waited, or waits, for the seller of a dataset of one job.
pub async fn find(
    conn: &mut PgConnection,
    (seller, dataset): (AccountId, DatasetId),
    job: JobId,
) -> sqlx::Result<Option<Withheld>> {
    let row = sqlx::query_as!(
        Row,
        "SELECT job_id, version_id, kind, program, weights, output_bytes, completed_at, released_at, denied_at
         FROM withheld_results WHERE seller_id = $1 AND dataset_id = $2 AND job_id = $3",
        seller.0,
        dataset.0,
        job.0,
    )
    .fetch_optional(conn)
    .await?;
    row.map(Withheld::try_from).transpose()
}

/// The seller consents: the job's owner gets its results.
pub async fn release(
    tx: &mut PgTransaction<'_>,
    (seller, dataset): (AccountId, DatasetId),
    job: JobId,
    now: OffsetDateTime,
) -> sqlx::Result<Released> {
    let done = sqlx::query_scalar!(
        "SELECT release_results($1, $2, $3, $4)",
        seller.0,
        dataset.0,
        job.0,
        now,
    )
    .fetch_one(&mut **tx)
    .await?;
    Ok(match done {
        Some(true) => Released::Now,
        Some(false) => Released::Before,
        None => Released::Unknown,
    })
}

/// Denies results that nobody released in time, for good; whose jobs they are.
pub async fn deny_due(
    conn: &mut PgConnection,
    now: OffsetDateTime,
    limit: i64,
) -> sqlx::Result<Vec<JobId>> {
    let denied = sqlx::query_scalar!(
        "UPDATE withheld_results SET denied_at = $1 WHERE job_id IN (
             SELECT job_id FROM withheld_results WHERE released_at IS NULL AND denied_at IS NULL AND completed_at <= $2
             ORDER BY completed_at LIMIT $3 FOR NO KEY UPDATE SKIP LOCKED
         ) RETURNING job_id",
        now,
        now.saturating_sub(RELEASE_WITHIN),
        limit,
    )
    .fetch_all(conn)
    .await?;
    Ok(denied.into_iter().map(JobId).collect())
}

/// Is this a result of the account that is withheld from it, and why?
pub async fn of_result(
    conn: &mut PgConnection,
    account: AccountId,
    sha256: Sha256,
) -> sqlx::Result<Option<Withholding>> {
    let is_denied = sqlx::query_scalar!(
        r#"SELECT bool_and(w.denied_at IS NOT NULL) FROM withheld_results w JOIN job_outputs o USING (job_id)
           WHERE w.account_id = $1 AND w.released_at IS NULL AND o.sha256 = $2"#,
        account.0,
        &sha256.0,
    )
    .fetch_one(conn)
    .await?;
    Ok(is_denied.map(Withholding::of))
}

/// Are the results of the account's job withheld, and why?
pub async fn of_job(
    conn: &mut PgConnection,
    account: AccountId,
    job: JobId,
) -> sqlx::Result<Option<Withholding>> {
    let is_denied = sqlx::query_scalar!(
        r#"SELECT denied_at IS NOT NULL AS "is_denied!" FROM withheld_results WHERE job_id = $1 AND account_id = $2 AND released_at IS NULL"#,
        job.0,
        account.0,
    )
    .fetch_optional(conn)
    .await?;
    Ok(is_denied.map(Withholding::of))
}
