//! What happened to an owner's money, posting by posting, newest first.

use alloy_primitives::Address;
use comptoir_domain::{amount::Amount, id::JournalEntryId, ledger::Change};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{codec::to_amount, ledger::to_change};

/// One change of one of the owner's ledger accounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatementLine {
    /// Where it stands in the pages.
    pub position: Position,
    /// When it was posted.
    pub posted_at: OffsetDateTime,
    /// What happened.
    pub kind: String,
    /// What the ledger account is for.
    pub code: String,
    /// The change.
    pub change: Change,
    /// The ledger account's balance after it.
    pub balance_after: Amount,
    /// What kind of thing caused it.
    pub source_kind: String,
    /// Which one.
    pub source_id: String,
}

/// The key that pages follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The journal entry.
    pub entry: JournalEntryId,
    /// The line in it.
    pub line: i16,
}

/// The owner's postings, newest first, older than `before`.
///
/// # Errors
/// When the statement fails.
pub async fn page(
    conn: &mut PgConnection,
    owner: Address,
    asset_id: i32,
    before: Option<Position>,
    limit: i64,
) -> sqlx::Result<Vec<StatementLine>> {
    // Each of the owner's few accounts gives its newest lines by index; the page is the newest of those.
    let rows = sqlx::query!(
        "SELECT p.journal_entry_id, p.line, e.posted_at, e.kind, la.code, p.amount_base, p.balance_after_base,
             e.source_kind, e.source_id
         FROM ledger_accounts la
         CROSS JOIN LATERAL (
             SELECT journal_entry_id, line, amount_base, balance_after_base FROM postings
             WHERE ledger_account_id = la.ledger_account_id
               AND ($3::uuid IS NULL OR (journal_entry_id, line) < ($3, $4::smallint))
             ORDER BY journal_entry_id DESC, line DESC LIMIT $5
         ) p
         JOIN journal_entries e USING (journal_entry_id)
         WHERE la.asset_id = $1 AND la.owner = $2
         ORDER BY p.journal_entry_id DESC, p.line DESC LIMIT $5",
        asset_id,
        owner.as_slice(),
        before.map(|it| it.entry.0),
        before.map(|it| it.line),
        limit,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            let entry = JournalEntryId(row.journal_entry_id);
            Ok(StatementLine {
                position: Position {
                    entry,
                    line: row.line,
                },
                posted_at: row.posted_at,
                kind: row.kind,
                code: row.code,
                change: to_change("amount_base", &row.amount_base)?,
                balance_after: to_amount("balance_after_base", &row.balance_after_base)?,
                source_kind: row.source_kind,
                source_id: row.source_id,
            })
        })
        .collect()
}
