//! What an operator decides about a worker.

use comptoir_domain::id::WorkerId;
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{
    PgTransaction,
    faults::FaultError,
    recalls::{self, Recalled},
};

/// What an operator decided about a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// It finishes what it has and gets nothing more.
    Draining,
    /// It gets nothing more, and what it has was taken back.
    Quarantined,
}

/// Why nothing was decided about a worker.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No such worker.
    #[error("no such worker")]
    NotFound,
    /// It was taken out for good.
    #[error("the worker was taken out")]
    Revoked,
    /// Its leases were not taken back.
    #[error("take the leases of a worker back")]
    Recall(#[from] FaultError),
    /// The database failed.
    #[error("write what was decided about a worker")]
    Database(#[from] sqlx::Error),
}

impl Control {
    /// The text form.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::Quarantined => "quarantined",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Draining, Self::Quarantined]
            .into_iter()
            .find(|it| it.as_str() == text)
    }
}

/// Drains a worker, or puts it into quarantine: then its leases are taken back with the decision. A decision replaces the
/// one before. Claims of this very moment do not see it: call [`recalls::of_worker`] once more after the commit of a quarantine.
///
/// # Errors
/// When there is none, or it was taken out.
pub async fn control(
    tx: &mut PgTransaction<'_>,
    worker: WorkerId,
    (control, reason): (Control, &str),
    now: OffsetDateTime,
) -> Result<Recalled, ControlError> {
    refuse_revoked(tx, worker).await?;
    sqlx::query!(
        "INSERT INTO worker_controls (worker_id, state, reason, since) VALUES ($1, $2, $3, $4)
         ON CONFLICT (worker_id) DO UPDATE SET state = $2, reason = $3, since = $4
         WHERE worker_controls.state <> $2",
        worker.0,
        control.as_str(),
        reason,
        now,
    )
    .execute(&mut **tx)
    .await?;
    match control {
        Control::Draining => Ok(Recalled::default()),
        Control::Quarantined => Ok(recalls::of_worker(tx, worker, now).await?),
    }
}

/// Lets a worker work again. Doing it again changes nothing.
///
/// # Errors
/// When there is none, or it was taken out.
pub async fn restore(tx: &mut PgTransaction<'_>, worker: WorkerId) -> Result<(), ControlError> {
    refuse_revoked(tx, worker).await?;
    sqlx::query!("DELETE FROM worker_controls WHERE worker_id = $1", worker.0)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// Lets a worker that was refuted have work again; its trust starts anew, and what it forfeited stays so. Doing it again changes
/// nothing.
///
/// # Errors
/// When there is none, or it was taken out.
pub async fn lift_bar(tx: &mut PgTransaction<'_>, worker: WorkerId) -> Result<(), ControlError> {
    refuse_revoked(tx, worker).await?;
    sqlx::query!(
        "UPDATE worker_records SET barred_at = NULL, barred_for = NULL, trusted = 0
         WHERE worker_id = $1 AND barred_at IS NOT NULL",
        worker.0
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Takes a worker out for good: its leases are taken back and its tokens refused. Doing it again changes nothing.
///
/// # Errors
/// When there is none.
pub async fn disable(
    tx: &mut PgTransaction<'_>,
    worker: WorkerId,
    now: OffsetDateTime,
) -> Result<Recalled, ControlError> {
    let found = sqlx::query!(
        "UPDATE workers SET revoked_at = coalesce(revoked_at, $2) WHERE worker_id = $1",
        worker.0,
        now,
    )
    .execute(&mut **tx)
    .await?;
    if found.rows_affected() == 0 {
        return Err(ControlError::NotFound);
    }
    Ok(recalls::of_worker(tx, worker, now).await?)
}

async fn refuse_revoked(conn: &mut PgConnection, worker: WorkerId) -> Result<(), ControlError> {
    let revoked = sqlx::query_scalar!(
        r#"SELECT revoked_at IS NOT NULL AS "revoked!" FROM workers WHERE worker_id = $1"#,
        worker.0,
    )
    .fetch_optional(conn)
    .await?
    .ok_or(ControlError::NotFound)?;
    if revoked {
        Err(ControlError::Revoked)
    } else {
        Ok(())
    }
}
