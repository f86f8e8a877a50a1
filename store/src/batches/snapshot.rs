//! What the next batch is made of.

use std::collections::{BTreeMap, BTreeSet};

use alloy_primitives::{Address, B256, FixedBytes};
use comptoir_domain::{
    amount::Amount,
    digest::Sha256,
    id::ReceiptId,
    settlement::{Account, Receipt, Split, salted},
};
use sqlx::PgConnection;

use super::movements;
use crate::{
    PgTransaction, assets,
    assets::AssetError,
    audit,
    codec::{to_address, to_amount, to_digest, to_hash},
    exits, ledger,
};

/// Open exits whose accounts get a leaf even when they never held anything.
const EXITS_MAX: i64 = 100_000;

/// Everything that a batch commits to, as one snapshot of the database sees it.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The unbatched receipts, oldest first, then the movements that are no charge; not numbered yet.
    pub receipts: Vec<Receipt>,
    /// Every account, by address.
    pub accounts: Vec<Account>,
    /// The last deposit that was credited.
    pub deposit_seq_seen: u64,
    /// The head of the audit log; none where it has no events.
    pub audit_head: Option<Sha256>,
}

impl Snapshot {
    /// The ids of the receipts, in their order.
    #[must_use]
    pub fn receipt_ids(&self) -> Vec<ReceiptId> {
        self.receipts
            .iter()
            .map(|receipt| ReceiptId(uuid::Uuid::from_bytes(receipt.receipt_id.0)))
            .collect()
    }
}

/// What waits for a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// Receipts that no batch has.
    pub receipts: u64,
    /// What they charge together.
    pub value: Amount,
    /// Is money queued to be released?
    pub releases: bool,
    /// Does somebody leave who has not been released all yet?
    pub exits: bool,
}

/// Sees what waits for a batch.
///
/// # Errors
/// When the database refuses.
pub async fn demand(conn: &mut PgConnection, asset: i32) -> sqlx::Result<Demand> {
    let row = sqlx::query!(
        r#"SELECT count(*) AS "receipts!", COALESCE(sum(gross_base), 0) AS "value!",
             EXISTS (SELECT FROM releases WHERE asset_id = $1 AND state = 'queued') AS "releases!",
             EXISTS (
                 SELECT FROM exits x JOIN ledger_accounts la ON la.asset_id = x.asset_id AND la.owner = x.owner
                 WHERE x.asset_id = $1 AND x.answered_block_number IS NULL AND la.code = 'available' AND la.balance_base > 0
             ) AS "exits!"
           FROM unbatched_receipts WHERE asset_id = $1"#,
        asset
    )
    .fetch_one(conn)
    .await?;
    Ok(Demand {
        receipts: row.receipts.cast_unsigned(),
        value: to_amount("value", &row.value)?,
        releases: row.releases,
        exits: row.exits,
    })
}

/// Reads what the next batch commits to. The transaction must be one snapshot: REPEATABLE READ.
///
/// # Errors
/// When the database refuses, or a stored value is no amount.
pub async fn snapshot(tx: &mut PgTransaction<'_>, asset: i32) -> Result<Snapshot, AssetError> {
    let mut receipts = receipts(tx, asset).await?;
    let platform = assets::platform(tx, asset).await?;
    receipts.extend(movements::waiting(tx, asset, platform).await?);
    let mut owners = ledger::all_owner_balances(tx, asset).await?;
    let house = ledger::house_balances(tx, asset).await?;
    let (deposits, deposit_seq_seen) = deposits(tx, asset).await?;
    let known: BTreeSet<_> = exits::open(tx, asset, EXITS_MAX)
        .await?
        .into_iter()
        .map(|exit| exit.owner)
        .chain(deposits.keys().copied())
        .chain([platform])
        .collect();
    for owner in known {
        owners.entry(owner).or_default();
    }
    let accounts = owners
        .into_iter()
        .map(|(owner, balances)| {
            let houses = if owner == platform {
                [house.fees, house.split_dust]
            } else {
                [Amount::ZERO; 2]
            };
            let available = balances
                .off_chain()
                .and_then(|own| Amount::sum(houses.into_iter().chain([own])));
            let available = available.ok_or_else(|| too_large("available"))?;
            Ok(Account {
                account: owner,
                payable: balances.payable.base(),
                available: available.base(),
                deposits_seen: deposits.get(&owner).copied().unwrap_or_default().base(),
            })
        })
        .collect::<sqlx::Result<_>>()?;
    Ok(Snapshot {
        receipts,
        accounts,
        deposit_seq_seen,
        audit_head: audit::head(tx).await?,
    })
}

fn too_large(column: &'static str) -> sqlx::Error {
    sqlx::Error::ColumnDecode {
        index: column.into(),
        source: "more than 2^120 base units".into(),
    }
}

/// What was credited to each owner, and the number of the last deposit that was.
async fn deposits(
    tx: &mut PgTransaction<'_>,
    asset: i32,
) -> sqlx::Result<(BTreeMap<Address, Amount>, u64)> {
    let rows = sqlx::query!(
        r#"SELECT owner, sum(amount_base) AS "sum!", max(deposit_seq) AS "last!" FROM deposits
           WHERE asset_id = $1 AND credited_at IS NOT NULL GROUP BY owner"#,
        asset
    )
    .fetch_all(&mut **tx)
    .await?;
    let last = rows
        .iter()
        .map(|row| row.last)
        .max()
        .unwrap_or(0)
        .cast_unsigned();
    let sums = rows
        .into_iter()
        .map(|row| {
            Ok((
                to_address("owner", &row.owner)?,
                to_amount("sum", &row.sum)?,
            ))
        })
        .collect::<sqlx::Result<_>>()?;
    Ok((sums, last))
}

async fn receipts(tx: &mut PgTransaction<'_>, asset: i32) -> sqlx::Result<Vec<Receipt>> {
    let rows = sqlx::query!(
        "SELECT r.receipt_id, r.kind, r.payer, r.gross_base, r.input_sha256, r.input_salt, r.result_sha256, r.result_salt,
                r.meter_sha256, r.verdict_sha256
         FROM unbatched_receipts u JOIN receipts r USING (receipt_id)
         WHERE u.asset_id = $1 ORDER BY r.receipt_id",
        asset
    )
    .fetch_all(&mut **tx)
    .await?;
    let mut splits = splits(tx, asset).await?;
    rows.into_iter()
        .map(|row| {
            Ok(Receipt {
                batch_id: 0,
                index: 0,
                receipt_id: FixedBytes(row.receipt_id.into_bytes()),
                kind: u8::try_from(row.kind).map_err(|error| sqlx::Error::Decode(error.into()))?,
                payer: to_address("payer", &row.payer)?,
                gross: to_amount("gross_base", &row.gross_base)?.base(),
                splits: splits.remove(&row.receipt_id).unwrap_or_default(),
                input_hash: salted(
                    to_hash("input_salt", &row.input_salt)?,
                    to_digest("input_sha256", &row.input_sha256)?,
                ),
                result_hash: salted(
                    to_hash("result_salt", &row.result_salt)?,
                    to_digest("result_sha256", &row.result_sha256)?,
                ),
                meter_hash: B256::from(to_digest("meter_sha256", &row.meter_sha256)?.0),
                verdict_hash: B256::from(to_digest("verdict_sha256", &row.verdict_sha256)?.0),
            })
        })
        .collect()
}

async fn splits(
    tx: &mut PgTransaction<'_>,
    asset: i32,
) -> sqlx::Result<BTreeMap<uuid::Uuid, Vec<Split>>> {
    let rows = sqlx::query!(
        "SELECT s.receipt_id, s.payee, s.amount_base
         FROM unbatched_receipts u JOIN receipt_splits s USING (receipt_id)
         WHERE u.asset_id = $1 ORDER BY s.receipt_id, s.party",
        asset
    )
    .fetch_all(&mut **tx)
    .await?;
    let mut splits: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for row in rows {
        splits.entry(row.receipt_id).or_default().push(Split {
            payee: to_address("payee", &row.payee)?,
            amount: to_amount("amount_base", &row.amount_base)?.base(),
        });
    }
    Ok(splits)
}
