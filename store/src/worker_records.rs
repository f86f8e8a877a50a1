//! Workers' records: the trust that audits earned, the faults not made good, and who was barred.

use comptoir_domain::{
    id::{AttemptId, WorkerId},
    policy::{
        Checked, Identity, Trust,
        audit::POLICY,
        reputation::{Offence, STRIKES_MAX},
    },
};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::PgTransaction;

/// What a worker earned with its results.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Who it is now.
    pub worker: Identity,
    /// What it earned.
    pub trust: Trust,
    /// Results whose pay was held back.
    pub results: u64,
    /// Was it barred?
    pub barred: bool,
}

impl Record {
    /// Its trusted results, as far as they still count.
    #[must_use]
    pub fn trusted(&self, now: OffsetDateTime) -> u32 {
        self.trust.left(&self.worker, now)
    }
}

/// Locks a worker's record to the end of the transaction, and reads it. Lock the job first, and the records of several
/// workers in the order of their ids.
pub async fn lock(
    tx: &mut PgTransaction<'_>,
    worker: WorkerId,
    now: OffsetDateTime,
) -> sqlx::Result<Record> {
    sqlx::query!(
        "INSERT INTO worker_records (worker_id, public_key, numeric_class, network, worked_at)
         SELECT worker_id, public_key, numeric_class, network, $2 FROM workers WHERE worker_id = $1
         ON CONFLICT (worker_id) DO NOTHING",
        worker.0,
        now,
    )
    .execute(&mut **tx)
    .await?;
    let row = sqlx::query!(
        r#"SELECT workers.public_key, workers.numeric_class, workers.network, records.public_key AS of_key,
             records.numeric_class AS of_class, records.network AS of_network, trusted, results, worked_at, barred_at IS NOT NULL AS "barred!"
           FROM worker_records records JOIN workers USING (worker_id) WHERE worker_id = $1
           FOR NO KEY UPDATE OF records"#,
        worker.0,
    )
    .fetch_one(&mut **tx)
    .await?;
    Ok(Record {
        worker: identity(&row.public_key, row.numeric_class, row.network)?,
        trust: Trust {
            of: identity(&row.of_key, row.of_class, row.of_network)?,
            trusted: row.trusted.unsigned_abs(),
            worked_at: row.worked_at,
        },
        results: row.results.unsigned_abs(),
        barred: row.barred,
    })
}

fn identity(
    public_key: &[u8],
    numeric_class: String,
    network: Option<String>,
) -> sqlx::Result<Identity> {
    let public_key = public_key
        .try_into()
        .map_err(|_| sqlx::Error::ColumnDecode {
            index: "public_key".into(),
            source: "not 32 bytes".into(),
        })?;
    Ok(Identity {
        public_key,
        numeric_class,
        network,
    })
}

/// Writes down what a look at a worker's result found, under the lock of [`lock`]. An accepted result makes one fault good.
pub async fn judge(
    tx: &mut PgTransaction<'_>,
    worker: WorkerId,
    record: &Record,
    checked: Checked,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    let trusted = POLICY.after(record.trusted(now), checked);
    sqlx::query!(
        "UPDATE worker_records
         SET trusted = $2, public_key = $3, numeric_class = $4, worked_at = $5, network = coalesce($7, network),
             strikes = CASE WHEN $6 THEN strikes ELSE greatest(strikes - 1, 0) END
         WHERE worker_id = $1",
        worker.0,
        i32::try_from(trusted).unwrap_or(i32::MAX),
        &record.worker.public_key,
        record.worker.numeric_class,
        now,
        checked == Checked::Refuted,
        record.worker.network,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}

/// Gives the worker's next result its number, under the lock of [`lock`].
pub async fn number_result(tx: &mut PgTransaction<'_>, worker: WorkerId) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        "UPDATE worker_records SET results = results + 1 WHERE worker_id = $1 RETURNING results",
        worker.0,
    )
    .fetch_one(&mut **tx)
    .await
}

/// Bars the worker: two other owners agreed on another result than this attempt's. The first reason stands.
pub async fn bar(
    tx: &mut PgTransaction<'_>,
    worker: WorkerId,
    attempt: AttemptId,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE worker_records SET barred_at = $2, barred_for = $3 WHERE worker_id = $1 AND barred_at IS NULL",
        worker.0,
        now,
        attempt.0,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}

/// Counts a fault of the worker that had the attempt. One that hides a result costs its trust as well.
pub(crate) async fn strike(
    conn: &mut PgConnection,
    attempt: AttemptId,
    offence: Offence,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO worker_records AS records (worker_id, public_key, numeric_class, network, worked_at, strikes)
         SELECT worker_id, public_key, workers.numeric_class, network, $2, $3
         FROM attempts JOIN workers USING (worker_id) WHERE attempt_id = $1
         ON CONFLICT (worker_id) DO UPDATE
         SET strikes = least(records.strikes + excluded.strikes, $4),
             trusted = CASE WHEN $5 THEN 0 ELSE records.trusted END",
        attempt.0,
        now,
        i32::try_from(offence.strikes()).unwrap_or(i32::MAX),
        i32::try_from(STRIKES_MAX).unwrap_or(i32::MAX),
        offence == Offence::Unrevealed,
    )
    .execute(conn)
    .await
    .map(drop)
}
