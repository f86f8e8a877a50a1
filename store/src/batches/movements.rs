//! Movements of money between owners that are no charge: each is a leaf among the receipts of a batch, or nobody outside
//! could explain how a balance changed.

use alloy_primitives::{Address, B256, FixedBytes};
use comptoir_domain::{
    id::BatchId,
    settlement::{Receipt, Split},
};
use uuid::Uuid;

use crate::{
    PgTransaction,
    codec::{to_address, to_amount},
};

/// The movements that no standing batch has, oldest first; not numbered yet. What the house gives is the platform's.
pub(super) async fn waiting(
    tx: &mut PgTransaction<'_>,
    asset: i32,
    platform: Address,
) -> sqlx::Result<Vec<Receipt>> {
    let rows = sqlx::query!(
        r#"SELECT journal_entry_id, kind, owner AS "owner!", GREATEST(-net, 0) AS "gave!", GREATEST(net, 0) AS "got!"
           FROM (
               SELECT m.journal_entry_id, m.kind, COALESCE(a.owner, $2) AS owner, sum(p.amount_base) AS net
               FROM unbatched_movements m
               JOIN postings p USING (journal_entry_id)
               JOIN ledger_accounts a USING (ledger_account_id)
               WHERE m.asset_id = $1
               GROUP BY m.journal_entry_id, m.kind, COALESCE(a.owner, $2)
           ) moved
           ORDER BY journal_entry_id, owner"#,
        asset,
        platform.as_slice(),
    )
    .fetch_all(&mut **tx)
    .await?;
    let mut receipts: Vec<Receipt> = Vec::new();
    for row in rows {
        let id = FixedBytes(row.journal_entry_id.into_bytes());
        let kind = u8::try_from(row.kind).map_err(|error| sqlx::Error::Decode(error.into()))?;
        if receipts.last().is_none_or(|it| it.receipt_id != id) {
            receipts.push(movement(id, kind, platform));
        }
        let receipt = receipts.last_mut().expect("one was just added");
        let owner = to_address("owner", &row.owner)?;
        let (gave, got) = (to_amount("gave", &row.gave)?, to_amount("got", &row.got)?);
        if !gave.is_zero() {
            if receipt.gross != 0 {
                return Err(sqlx::Error::Decode("a movement has one payer".into()));
            }
            receipt.payer = owner;
            receipt.gross = gave.base();
        } else if !got.is_zero() {
            receipt.splits.push(Split {
                payee: owner,
                amount: got.base(),
            });
        }
    }
    Ok(receipts)
}

/// A movement has no input, result, bill or verdict of its own. One that leaves the platform's money with it moves nothing.
const fn movement(id: FixedBytes<16>, kind: u8, platform: Address) -> Receipt {
    Receipt {
        batch_id: 0,
        index: 0,
        receipt_id: id,
        kind,
        payer: platform,
        gross: 0,
        splits: Vec::new(),
        input_hash: B256::ZERO,
        result_hash: B256::ZERO,
        meter_hash: B256::ZERO,
        verdict_hash: B256::ZERO,
    }
}

/// Takes those of some items that are movements out of the queue; returns how many.
pub(super) async fn settle(
    tx: &mut PgTransaction<'_>,
    batch: BatchId,
    (ids, leaves): (&[Uuid], &[Vec<u8>]),
) -> sqlx::Result<u64> {
    let settled = sqlx::query!(
        "WITH taken AS (
             DELETE FROM unbatched_movements WHERE journal_entry_id = ANY ($2) RETURNING journal_entry_id, asset_id, kind
         )
         INSERT INTO batch_movements (journal_entry_id, asset_id, kind, batch_id, idx, leaf)
         SELECT journal_entry_id, asset_id, kind, $1, item.number - 1, item.leaf
         FROM UNNEST($2::uuid[], $3::bytea[]) WITH ORDINALITY AS item (journal_entry_id, leaf, number)
         JOIN taken USING (journal_entry_id)",
        batch.0,
        ids,
        leaves,
    )
    .execute(&mut **tx)
    .await?;
    Ok(settled.rows_affected())
}

/// The movements of a batch that was vetoed wait for the next one again.
pub(super) async fn give_back(tx: &mut PgTransaction<'_>, batch: BatchId) -> sqlx::Result<()> {
    sqlx::query!(
        "WITH released AS (DELETE FROM batch_movements WHERE batch_id = $1 RETURNING journal_entry_id, asset_id, kind)
         INSERT INTO unbatched_movements (journal_entry_id, asset_id, kind)
         SELECT journal_entry_id, asset_id, kind FROM released",
        batch.0
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}
