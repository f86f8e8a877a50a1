//! Who did how much of the work that a charge pays for.

use std::collections::BTreeMap;

use alloy_primitives::Address;
use comptoir_domain::{
    id::{ReplicaId, WorkerId},
    job::JobSpec,
    segment::{steps_by_worker, steps_in_all},
};
use sqlx::PgConnection;

use super::{Case, ShownResult};
use crate::codec::to_address;

/// What one owner's workers did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    /// Who is paid.
    pub payee: Address,
    /// One worker of the owner that took part.
    pub worker: WorkerId,
    /// Optimizer steps of training, whole executions of inference.
    pub steps: u64,
}

/// Who did how much of these results.
pub(super) async fn of(
    conn: &mut PgConnection,
    case: &Case,
    results: &[&ShownResult],
) -> sqlx::Result<Vec<Share>> {
    let mut work: BTreeMap<Address, (WorkerId, u64)> = BTreeMap::new();
    for result in results {
        let last = (payee(conn, result.worker).await?, result.worker);
        let steps = match &case.spec {
            JobSpec::Inference(_) => BTreeMap::from([(last, 1)]),
            JobSpec::Training(spec) => {
                let segments = segments_run(conn, result.replica).await?;
                steps_by_worker(steps_in_all(spec, case.meter.rows()), segments, last)
            }
        };
        for ((payee, worker), steps) in steps {
            let (_, share) = work.entry(payee).or_insert((worker, 0));
            *share = share.saturating_add(steps);
        }
    }
    let shares = work.into_iter();
    Ok(shares
        .map(|(payee, (worker, steps))| Share {
            payee,
            worker,
            steps,
        })
        .collect())
}

/// Whom a worker's earnings go to.
pub(super) async fn payee(conn: &mut PgConnection, worker: WorkerId) -> sqlx::Result<Address> {
    let address = sqlx::query_scalar!(
        r#"SELECT address AS "address!" FROM workers JOIN accounts USING (account_id) WHERE worker_id = $1"#,
        worker.0,
    )
    .fetch_one(conn)
    .await?;
    to_address("address", &address)
}

/// The steps of each finished segment of a replica, who ran them, and whom they are paid to.
async fn segments_run(
    conn: &mut PgConnection,
    replica: ReplicaId,
) -> sqlx::Result<Vec<((Address, WorkerId), u64)>> {
    let rows = sqlx::query!(
        r#"SELECT address AS "address!", worker_id, step_to - step_from AS "steps!"
           FROM segments
           JOIN attempts USING (attempt_id)
           JOIN workers USING (worker_id)
           JOIN accounts USING (account_id)
           WHERE segments.replica_id = $1
           ORDER BY segment"#,
        replica.0,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            let payee = to_address("address", &row.address)?;
            Ok(((payee, WorkerId(row.worker_id)), row.steps.unsigned_abs()))
        })
        .collect()
}
