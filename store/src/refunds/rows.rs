//! Refunds as they are stored.

use comptoir_domain::{
    id::{AccountId, JobId, JournalEntryId, ReceiptId, RefundId},
    refund::RefundState,
};
use sqlx::{PgConnection, types::BigDecimal};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Filter, Refund};
use crate::codec::{to_amount, to_enum};

struct Row {
    refund_id: Uuid,
    asset_id: i32,
    receipt_id: Uuid,
    job_id: Uuid,
    account_id: Uuid,
    amount_base: BigDecimal,
    reason: String,
    state: String,
    proposed_by: Uuid,
    created_at: OffsetDateTime,
    expires_at: OffsetDateTime,
    decided_by: Option<Uuid>,
    decided_at: Option<OffsetDateTime>,
    journal_entry_id: Option<Uuid>,
}

/// A proposal whose time ran out is expired, whether anybody wrote that down or not.
pub(super) async fn select(
    conn: &mut PgConnection,
    id: Option<RefundId>,
    filter: Filter,
    before: Option<RefundId>,
    limit: i64,
    now: OffsetDateTime,
) -> sqlx::Result<Vec<Refund>> {
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT refund_id, asset_id, receipt_id, job_id, account_id, amount_base, reason, shown.state AS "state!",
               proposed_by, created_at, expires_at, decided_by,
               CASE WHEN shown.state = 'expired' THEN expires_at ELSE decided_at END AS decided_at, journal_entry_id
           FROM refunds, LATERAL (
               SELECT CASE WHEN refunds.state = 'proposed' AND expires_at <= $6 THEN 'expired' ELSE refunds.state END AS state
           ) AS shown
           WHERE ($1::uuid IS NULL OR refund_id = $1) AND ($2::text IS NULL OR shown.state = $2)
               AND ($3::uuid IS NULL OR job_id = $3) AND ($4::uuid IS NULL OR refund_id < $4)
           ORDER BY refund_id DESC LIMIT $5"#,
        id.map(|it| it.0),
        filter.state.map(RefundState::as_str),
        filter.job.map(|it| it.0),
        before.map(|it| it.0),
        limit,
        now,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Row::decode).collect()
}

impl Row {
    fn decode(self) -> sqlx::Result<Refund> {
        Ok(Refund {
            id: RefundId(self.refund_id),
            asset_id: self.asset_id,
            receipt: ReceiptId(self.receipt_id),
            job: JobId(self.job_id),
            account: AccountId(self.account_id),
            amount: to_amount("amount_base", &self.amount_base)?,
            reason: self.reason,
            state: to_enum("state", &self.state, RefundState::parse)?,
            proposed_by: AccountId(self.proposed_by),
            created_at: self.created_at,
            expires_at: self.expires_at,
            decided_by: self.decided_by.map(AccountId),
            decided_at: self.decided_at,
            entry: self.journal_entry_id.map(JournalEntryId),
        })
    }
}
