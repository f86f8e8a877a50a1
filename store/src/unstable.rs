//! Programs whose results no class of workers that is there can be held to: honest workers could not agree about them.

use std::collections::HashSet;

use comptoir_domain::{digest::Sha256, job::Device};
use sqlx::PgConnection;
use time::{Duration, OffsetDateTime};

use crate::codec::{to_digest, to_enum};

/// How long a class counts as unstable for a program.
const COUNTS_FOR: Duration = Duration::days(30);
/// A worker that was not heard of for longer is not there.
const THERE_FOR: Duration = Duration::minutes(10);
/// Most programs that are looked at, the latest first.
const PROGRAMS_MAX: i64 = 10_000;

/// Marks that were made after this count.
pub(crate) fn marked_since(now: OffsetDateTime) -> OffsetDateTime {
    now.saturating_sub(COUNTS_FOR)
}

/// Programs, and the kind of device on which no worker is there whose class is not marked as unstable for them.
///
/// # Errors
/// When the statement fails.
pub async fn programs(
    conn: &mut PgConnection,
    now: OffsetDateTime,
) -> sqlx::Result<HashSet<(Sha256, Device)>> {
    let rows = sqlx::query!(
        r#"SELECT marked.program_sha256 AS "program!", devices.device AS "device!"
           FROM (
               SELECT program_sha256 FROM unstable_classes WHERE marked_at > $1
               GROUP BY program_sha256 ORDER BY max(marked_at) DESC LIMIT $3
           ) marked CROSS JOIN unnest($4::text[]) AS devices (device)
           WHERE EXISTS (
               SELECT FROM unstable_classes it JOIN workers USING (numeric_class)
               WHERE it.program_sha256 = marked.program_sha256 AND marked_at > $1 AND workers.device = devices.device
           ) AND NOT EXISTS (
               SELECT FROM workers JOIN worker_heartbeats USING (worker_id)
               WHERE workers.device = devices.device AND revoked_at IS NULL AND seen_at > $2 AND NOT EXISTS (
                   SELECT FROM unstable_classes it WHERE it.program_sha256 = marked.program_sha256
                       AND it.numeric_class = workers.numeric_class AND marked_at > $1
               )
           )"#,
        marked_since(now),
        now.saturating_sub(THERE_FOR),
        PROGRAMS_MAX,
        &[Device::Cpu, Device::Cuda].map(|it| it.as_str().to_owned()),
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            let device = to_enum("device", &row.device, Device::parse)?;
            Ok((to_digest("program", &row.program)?, device))
        })
        .collect()
}
