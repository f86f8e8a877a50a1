//! Receipts: one per charge, written with it and never changed.

use std::collections::HashMap;

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    bill::Bill,
    digest::Sha256,
    id::{AccountId, JobId, JournalEntryId, ReceiptId, SplitVersionId},
};
use sqlx::{PgConnection, types::BigDecimal};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    PgTransaction,
    codec::{to_address, to_amount, to_digest, to_document, to_numeric},
};

/// What a charge is explained by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// Its identifier; 16 bytes of its leaf.
    pub id: ReceiptId,
    /// Row of `assets`.
    pub asset_id: i32,
    /// Whose job it was.
    pub account: AccountId,
    /// The job that was paid for.
    pub job: JobId,
    /// The ledger entry of the charge.
    pub entry: JournalEntryId,
    /// Who paid.
    pub payer: Address,
    /// What was paid.
    pub gross: Amount,
    /// The split that shared it.
    pub split_version: SplitVersionId,
    /// Who got what. The shares and what the dust account took or gave sum to `gross`.
    pub shares: Vec<ReceiptShare>,
    /// What went in.
    pub input: Sha256,
    /// Hides `input` in the leaf.
    pub input_salt: [u8; 32],
    /// What came out.
    pub result: Sha256,
    /// Hides `result` in the leaf.
    pub result_salt: [u8; 32],
    /// What the charge was computed from.
    pub bill: Bill,
    /// The digest of `bill` in canonical form.
    pub bill_sha256: Sha256,
    /// The digest of the verdict's kind and evidence.
    pub verdict_sha256: Sha256,
    /// When the charge was made.
    pub created_at: OffsetDateTime,
}

/// One party's part of a receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceiptShare {
    /// Who was paid. The platform's share goes to `fees`, which are in the leaf of this address.
    pub payee: Address,
    /// How much.
    pub amount: Amount,
}

/// Which receipts a reader may see: those it paid for, and those that paid its address.
#[derive(Debug, Clone, Copy)]
pub struct Reader {
    /// The account that reads.
    pub account: AccountId,
    /// Its bound address.
    pub address: Option<Address>,
}

pub(crate) async fn insert(tx: &mut PgTransaction<'_>, receipt: &Receipt) -> sqlx::Result<()> {
    let bill =
        serde_json::to_value(&receipt.bill).map_err(|error| sqlx::Error::Encode(error.into()))?;
    sqlx::query!(
        "INSERT INTO receipts (receipt_id, asset_id, account_id, kind, job_id, journal_entry_id, payer, gross_base,
             split_version_id, input_sha256, input_salt, result_sha256, result_salt, meter, meter_sha256,
             verdict_sha256, created_at)
         VALUES ($1, $2, $3, 1, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)",
        receipt.id.0,
        receipt.asset_id,
        receipt.account.0,
        receipt.job.0,
        receipt.entry.0,
        receipt.payer.as_slice(),
        to_numeric(receipt.gross),
        receipt.split_version.0,
        &receipt.input.0,
        &receipt.input_salt,
        &receipt.result.0,
        &receipt.result_salt,
        bill,
        &receipt.bill_sha256.0,
        &receipt.verdict_sha256.0,
        receipt.created_at,
    )
    .execute(&mut **tx)
    .await?;
    let payees: Vec<_> = receipt
        .shares
        .iter()
        .map(|share| share.payee.to_vec())
        .collect();
    let amounts: Vec<_> = receipt
        .shares
        .iter()
        .map(|share| to_numeric(share.amount))
        .collect();
    sqlx::query!(
        "INSERT INTO receipt_splits (receipt_id, party, payee, amount_base)
         SELECT $1, it.number - 1, it.payee, it.amount
         FROM UNNEST($2::bytea[], $3::numeric[]) WITH ORDINALITY AS it (payee, amount, number)",
        receipt.id.0,
        &payees,
        &amounts,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// A receipt.
///
/// # Errors
/// When the statement fails or what is stored is not a receipt.
pub async fn find(conn: &mut PgConnection, id: ReceiptId) -> sqlx::Result<Option<Receipt>> {
    Ok(list(conn, &[id]).await?.pop())
}

/// A receipt that the reader may see.
///
/// # Errors
/// When the statement fails or what is stored is not a receipt.
pub async fn find_for(
    conn: &mut PgConnection,
    reader: Reader,
    id: ReceiptId,
) -> sqlx::Result<Option<Receipt>> {
    let receipt = find(conn, id).await?;
    Ok(receipt.filter(|it| {
        let paid = |address| it.shares.iter().any(|share| share.payee == address);
        it.account == reader.account || reader.address.is_some_and(paid)
    }))
}

/// The receipt of a job.
///
/// # Errors
/// When the statement fails or what is stored is not a receipt.
pub async fn find_of_job(conn: &mut PgConnection, job: JobId) -> sqlx::Result<Option<Receipt>> {
    let id = sqlx::query_scalar!("SELECT receipt_id FROM receipts WHERE job_id = $1", job.0)
        .fetch_optional(&mut *conn)
        .await?;
    match id {
        Some(id) => find(conn, ReceiptId(id)).await,
        None => Ok(None),
    }
}

/// The receipts that a reader may see, newest first, older than `before`.
///
/// # Errors
/// When a statement fails or what is stored is not a receipt.
pub async fn list_for(
    conn: &mut PgConnection,
    reader: Reader,
    before: Option<ReceiptId>,
    limit: i64,
) -> sqlx::Result<Vec<Receipt>> {
    let ids = sqlx::query_scalar!(
        r#"(SELECT receipt_id AS "id!" FROM receipts
            WHERE account_id = $1 AND ($3::uuid IS NULL OR receipt_id < $3)
            ORDER BY receipt_id DESC LIMIT $4)
           UNION
           (SELECT receipt_id FROM receipt_splits
            WHERE payee = $2 AND ($3::uuid IS NULL OR receipt_id < $3)
            ORDER BY receipt_id DESC LIMIT $4)
           ORDER BY 1 DESC LIMIT $4"#,
        reader.account.0,
        reader.address.map(|address| address.to_vec()),
        before.map(|id| id.0),
        limit,
    )
    .fetch_all(&mut *conn)
    .await?;
    let ids: Vec<_> = ids.into_iter().map(ReceiptId).collect();
    list(conn, &ids).await
}

/// Those receipts, newest first.
///
/// # Errors
/// When a statement fails or what is stored is not a receipt.
pub async fn list(conn: &mut PgConnection, ids: &[ReceiptId]) -> sqlx::Result<Vec<Receipt>> {
    let ids: Vec<_> = ids.iter().map(|id| id.0).collect();
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT receipt_id, asset_id, account_id, job_id AS "job_id!", journal_entry_id, payer, gross_base,
               split_version_id, input_sha256, input_salt, result_sha256, result_salt, meter, meter_sha256,
               verdict_sha256, created_at
           FROM receipts WHERE receipt_id = ANY ($1) ORDER BY receipt_id DESC"#,
        &ids,
    )
    .fetch_all(&mut *conn)
    .await?;
    let shares = sqlx::query!(
        "SELECT receipt_id, payee, amount_base FROM receipt_splits
         WHERE receipt_id = ANY ($1) ORDER BY receipt_id, party",
        &ids,
    )
    .fetch_all(conn)
    .await?;
    let mut by_receipt: HashMap<Uuid, Vec<ReceiptShare>> = HashMap::new();
    for share in shares {
        let payee = to_address("payee", &share.payee)?;
        let amount = to_amount("amount_base", &share.amount_base)?;
        by_receipt
            .entry(share.receipt_id)
            .or_default()
            .push(ReceiptShare { payee, amount });
    }
    rows.into_iter()
        .map(|row| {
            let shares = by_receipt.remove(&row.receipt_id).unwrap_or_default();
            row.decode(shares)
        })
        .collect()
}

struct Row {
    receipt_id: Uuid,
    asset_id: i32,
    account_id: Uuid,
    job_id: Uuid,
    journal_entry_id: Uuid,
    payer: Vec<u8>,
    gross_base: BigDecimal,
    split_version_id: Uuid,
    input_sha256: Vec<u8>,
    input_salt: Vec<u8>,
    result_sha256: Vec<u8>,
    result_salt: Vec<u8>,
    meter: serde_json::Value,
    meter_sha256: Vec<u8>,
    verdict_sha256: Vec<u8>,
    created_at: OffsetDateTime,
}

impl Row {
    fn decode(self, shares: Vec<ReceiptShare>) -> sqlx::Result<Receipt> {
        Ok(Receipt {
            id: ReceiptId(self.receipt_id),
            asset_id: self.asset_id,
            account: AccountId(self.account_id),
            job: JobId(self.job_id),
            entry: JournalEntryId(self.journal_entry_id),
            payer: to_address("payer", &self.payer)?,
            gross: to_amount("gross_base", &self.gross_base)?,
            split_version: SplitVersionId(self.split_version_id),
            shares,
            input: to_digest("input_sha256", &self.input_sha256)?,
            input_salt: to_digest("input_salt", &self.input_salt)?.0,
            result: to_digest("result_sha256", &self.result_sha256)?,
            result_salt: to_digest("result_salt", &self.result_salt)?.0,
            bill: to_document("meter", self.meter)?,
            bill_sha256: to_digest("meter_sha256", &self.meter_sha256)?,
            verdict_sha256: to_digest("verdict_sha256", &self.verdict_sha256)?,
            created_at: self.created_at,
        })
    }
}
