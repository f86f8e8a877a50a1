//! What a veto takes back: the releases of the seal whose batch never counted. Nobody could claim against it, so the
//! money is where it was put, and waits again as if the seal had not been.

use std::collections::BTreeSet;

use comptoir_domain::{
    amount::Amount,
    id::{BatchId, JournalEntryId, ReleaseId},
};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    PgTransaction,
    codec::to_numeric,
    ledger::{self, PostError},
};

/// Notes an entry of a seal with what it moved of each release; releases that it left alone may be among them.
pub(crate) async fn note(
    tx: &mut PgTransaction<'_>,
    asset_id: i32,
    entry: JournalEntryId,
    parts: &[(ReleaseId, Amount)],
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO seal_entries (journal_entry_id, asset_id) VALUES ($1, $2)",
        entry.0,
        asset_id
    )
    .execute(&mut **tx)
    .await?;
    let parts = parts.iter().filter(|(_, moved)| !moved.is_zero());
    let (ids, moved): (Vec<_>, Vec<_>) =
        parts.map(|(id, moved)| (id.0, to_numeric(*moved))).unzip();
    sqlx::query!(
        "INSERT INTO seal_releases (journal_entry_id, release_id, moved_base)
         SELECT $1, it.id, it.moved FROM UNNEST($2::uuid[], $3::numeric[]) AS it (id, moved)",
        entry.0,
        &ids,
        &moved,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// The batch is stored: it has what its seal released, and what seals before it released that were cut short.
pub(crate) async fn come_to(
    conn: &mut PgConnection,
    asset_id: i32,
    batch: BatchId,
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE seal_entries SET batch_id = $2 WHERE asset_id = $1 AND batch_id IS NULL",
        asset_id,
        batch.0
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Reverses what was released for a batch, and queues it again. What its owner has taken back of a withdrawal meanwhile
/// stays taken back.
pub(crate) async fn give_back(
    tx: &mut PgTransaction<'_>,
    asset_id: i32,
    batch: BatchId,
    now: OffsetDateTime,
) -> Result<(), PostError> {
    let entries = sqlx::query_scalar!(
        "SELECT journal_entry_id FROM seal_entries WHERE batch_id = $1 AND reversed_at IS NULL ORDER BY journal_entry_id",
        batch.0
    )
    .fetch_all(&mut **tx)
    .await?;
    if entries.is_empty() {
        return Ok(());
    }
    lock_all(tx, asset_id, &entries).await?;
    queue_again(tx, &entries).await?;
    for entry in &entries {
        ledger::reverse(tx, JournalEntryId(*entry), now).await?;
    }
    sqlx::query!(
        "UPDATE seal_entries SET reversed_at = $2 WHERE journal_entry_id = ANY ($1)",
        &entries,
        now
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Locks every account of all entries together, in id order, before one of them is reversed.
async fn lock_all(tx: &mut PgTransaction<'_>, asset_id: i32, entries: &[Uuid]) -> sqlx::Result<()> {
    let mut accounts = BTreeSet::new();
    for entry in entries {
        accounts.extend(ledger::accounts_of(tx, JournalEntryId(*entry)).await?);
    }
    ledger::lock(tx, asset_id, accounts).await
}

async fn queue_again(tx: &mut PgTransaction<'_>, entries: &[Uuid]) -> sqlx::Result<()> {
    // Before the releases change: a withdrawal that was cancelled is as large as what it had released.
    sqlx::query!(
        "WITH given AS (
             SELECT release_id, sum(moved_base) AS moved FROM seal_releases
             WHERE journal_entry_id = ANY ($1) GROUP BY release_id
         )
         UPDATE holds SET
             amount_base = CASE r.state WHEN 'cancelled' THEN r.released_base ELSE holds.amount_base END,
             moved_base = holds.moved_base - given.moved,
             ended_at = NULL
         FROM given JOIN releases r USING (release_id)
         WHERE holds.source_kind = 'withdrawal' AND holds.source_id = given.release_id",
        entries
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "WITH given AS (
             SELECT release_id, sum(moved_base) AS moved FROM seal_releases
             WHERE journal_entry_id = ANY ($1) GROUP BY release_id
         )
         UPDATE releases SET
             amount_base = CASE releases.state WHEN 'cancelled' THEN releases.released_base ELSE releases.amount_base END,
             released_base = releases.released_base - given.moved,
             state = 'queued',
             released_at = NULL
         FROM given WHERE releases.release_id = given.release_id",
        entries
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}
