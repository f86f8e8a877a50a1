//! Who asked the contract to leave. Nothing is spent for an owner while its exit is open: what it holds is released to
//! it at the next seal instead.

use alloy_primitives::Address;
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::codec::to_address;

/// An exit that was not answered yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The request, among all events of the contract.
    pub event_seq: u64,
    /// Who leaves.
    pub owner: Address,
    /// When anyone may freeze the contract over it.
    pub due_at: OffsetDateTime,
}

/// Has this owner an open exit?
///
/// # Errors
/// When the database refuses.
pub async fn is_leaving(conn: &mut PgConnection, asset: i32, owner: Address) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM exits WHERE asset_id = $1 AND owner = $2 AND answered_block_number IS NULL) AS "leaving!""#,
        asset,
        owner.as_slice()
    )
    .fetch_one(conn)
    .await
}

/// The open exits, oldest first.
///
/// # Errors
/// When the database refuses.
pub async fn open(conn: &mut PgConnection, asset: i32, limit: i64) -> sqlx::Result<Vec<Exit>> {
    sqlx::query!(
        "SELECT event_seq, owner, due_at FROM exits
         WHERE asset_id = $1 AND answered_block_number IS NULL ORDER BY event_seq LIMIT $2",
        asset,
        limit
    )
    .fetch_all(conn)
    .await?
    .into_iter()
    .map(|row| {
        Ok(Exit {
            event_seq: row.event_seq.cast_unsigned(),
            owner: to_address("owner", &row.owner)?,
            due_at: row.due_at,
        })
    })
    .collect()
}
