//! Receipts: one per charge, written with it and never changed.

use std::collections::HashMap;

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    bill::{Bill, Explanation},
    calls, contribution,
    digest::Sha256,
    id::{
        AccountId, ContributionId, JobId, JournalEntryId, PurchaseId, ReceiptId, SplitVersionId,
        UsageWindowId,
    },
    sale::SaleKind,
};
use sqlx::{PgConnection, types::BigDecimal};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    PgTransaction,
    codec::{to_address, to_amount, to_digest, to_document, to_numeric},
};

/// What was paid for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// A completed job.
    Job(JobId),
    /// A sale that became final.
    Sale(SaleKind, PurchaseId),
    /// A contribution that was accepted.
    Contribution(ContributionId),
    /// The calls of a window.
    Calls(UsageWindowId),
}

/// The kind of a job's leaf.
const JOB_KIND: u8 = 1;

impl Subject {
    /// The kind of its leaf.
    #[must_use]
    pub const fn leaf_kind(self) -> u8 {
        match self {
            Self::Job(_) => JOB_KIND,
            Self::Sale(kind, _) => kind.leaf_kind(),
            Self::Contribution(_) => contribution::LEAF_KIND,
            Self::Calls(_) => calls::LEAF_KIND,
        }
    }

    /// The job, where it is one.
    #[must_use]
    pub const fn job(self) -> Option<JobId> {
        match self {
            Self::Job(job) => Some(job),
            Self::Sale(..) | Self::Contribution(_) | Self::Calls(_) => None,
        }
    }

    /// The purchase, where it is one.
    #[must_use]
    pub const fn purchase(self) -> Option<PurchaseId> {
        match self {
            Self::Job(_) | Self::Contribution(_) | Self::Calls(_) => None,
            Self::Sale(_, purchase) => Some(purchase),
        }
    }

    /// The contribution, where it is one.
    #[must_use]
    pub const fn contribution(self) -> Option<ContributionId> {
        match self {
            Self::Job(_) | Self::Sale(..) | Self::Calls(_) => None,
            Self::Contribution(contribution) => Some(contribution),
        }
    }

    /// The usage window, where it is one.
    #[must_use]
    pub const fn window(self) -> Option<UsageWindowId> {
        match self {
            Self::Job(_) | Self::Sale(..) | Self::Contribution(_) => None,
            Self::Calls(window) => Some(window),
        }
    }

    fn decode(
        kind: i16,
        (job, purchase, contribution, window): (
            Option<Uuid>,
            Option<Uuid>,
            Option<Uuid>,
            Option<Uuid>,
        ),
    ) -> sqlx::Result<Self> {
        let sale = [SaleKind::Purchase, SaleKind::Rental, SaleKind::Subscription];
        let sale = sale
            .into_iter()
            .find(|it| i16::from(it.leaf_kind()) == kind);
        match (job, sale.zip(purchase), contribution, window) {
            (Some(job), None, None, None) => Ok(Self::Job(JobId(job))),
            (None, Some((kind, id)), None, None) => Ok(Self::Sale(kind, PurchaseId(id))),
            (None, None, Some(id), None) => Ok(Self::Contribution(ContributionId(id))),
            (None, None, None, Some(id)) => Ok(Self::Calls(UsageWindowId(id))),
            _ => Err(sqlx::Error::Decode(
                "a receipt is of a job, a sale, a contribution or calls".into(),
            )),
        }
    }
}

/// What a charge is explained by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// Its identifier; 16 bytes of its leaf.
    pub id: ReceiptId,
    /// Row of `assets`.
    pub asset_id: i32,
    /// Who caused it.
    pub account: AccountId,
    /// What was paid for.
    pub subject: Subject,
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
    pub bill: Explanation,
    /// The digest of `bill` in canonical form.
    pub bill_sha256: Sha256,
    /// The digest of the verdict's kind and evidence.
    pub verdict_sha256: Sha256,
    /// What `result` and `verdict_sha256` are the digests of; a job has none, and what was charged before they were kept neither.
    pub documents: Option<Documents>,
    /// When the charge was made.
    pub created_at: OffsetDateTime,
}

/// What a sale or a reward gave, and what made it final.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Documents {
    /// The right that was given.
    pub right: serde_json::Value,
    /// What made it final, and when.
    pub finality: serde_json::Value,
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

/// Writes receipts with their shares.
pub(crate) async fn insert_all(
    tx: &mut PgTransaction<'_>,
    receipts: &[Receipt],
) -> sqlx::Result<()> {
    let it = Columns::of(receipts)?;
    sqlx::query!(
        "WITH receipt AS (
             INSERT INTO receipts (receipt_id, asset_id, account_id, kind, job_id, purchase_id, contribution_id, window_id, journal_entry_id, payer,
                 gross_base, split_version_id, input_sha256, input_salt, result_sha256, result_salt, meter, meter_sha256,
                 verdict_sha256, created_at, right_given, finality)
             SELECT it.id, it.asset, it.account, it.kind, it.job, it.purchase, it.contribution, it.usage_window, it.entry, it.payer, it.gross, it.split,
                 it.input, it.input_salt, it.result, it.result_salt, it.meter, it.meter_sha256, it.verdict, it.created_at, it.right_given, it.finality
             FROM UNNEST($1::uuid[], $2::integer[], $3::uuid[], $4::uuid[], $5::uuid[], $6::bytea[], $7::numeric[], $8::uuid[],
                     $9::bytea[], $10::bytea[], $11::bytea[], $12::bytea[], $13::jsonb[], $14::bytea[], $15::bytea[],
                     $16::timestamptz[], $21::smallint[], $22::uuid[], $23::uuid[], $24::jsonb[], $25::jsonb[], $26::uuid[])
                 AS it (id, asset, account, job, entry, payer, gross, split, input, input_salt, result, result_salt, meter,
                     meter_sha256, verdict, created_at, kind, purchase, contribution, right_given, finality, usage_window)
         )
         INSERT INTO receipt_splits (receipt_id, party, payee, amount_base)
         SELECT * FROM UNNEST($17::uuid[], $18::smallint[], $19::bytea[], $20::numeric[])",
        &it.ids,
        &it.assets,
        &it.accounts,
        &it.jobs as &[Option<Uuid>],
        &it.entries,
        &it.payers,
        &it.gross,
        &it.splits,
        &it.inputs,
        &it.input_salts,
        &it.results,
        &it.result_salts,
        &it.bills,
        &it.bill_digests,
        &it.verdicts,
        &it.times,
        &it.share_receipts,
        &it.parties,
        &it.payees,
        &it.amounts,
        &it.kinds,
        &it.purchases as &[Option<Uuid>],
        &it.contributions as &[Option<Uuid>],
        &it.rights as &[Option<serde_json::Value>],
        &it.finalities as &[Option<serde_json::Value>],
        &it.windows as &[Option<Uuid>],
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}

/// Receipts and their shares as columns.
#[derive(Default)]
struct Columns {
    ids: Vec<Uuid>,
    assets: Vec<i32>,
    accounts: Vec<Uuid>,
    kinds: Vec<i16>,
    jobs: Vec<Option<Uuid>>,
    purchases: Vec<Option<Uuid>>,
    contributions: Vec<Option<Uuid>>,
    windows: Vec<Option<Uuid>>,
    entries: Vec<Uuid>,
    payers: Vec<Vec<u8>>,
    gross: Vec<BigDecimal>,
    splits: Vec<Uuid>,
    inputs: Vec<Vec<u8>>,
    input_salts: Vec<Vec<u8>>,
    results: Vec<Vec<u8>>,
    result_salts: Vec<Vec<u8>>,
    bills: Vec<serde_json::Value>,
    bill_digests: Vec<Vec<u8>>,
    verdicts: Vec<Vec<u8>>,
    rights: Vec<Option<serde_json::Value>>,
    finalities: Vec<Option<serde_json::Value>>,
    times: Vec<OffsetDateTime>,
    share_receipts: Vec<Uuid>,
    parties: Vec<i16>,
    payees: Vec<Vec<u8>>,
    amounts: Vec<BigDecimal>,
}

impl Receipt {
    /// The bill of a job's receipt.
    #[must_use]
    pub const fn job_bill(&self) -> Option<&Bill> {
        match &self.bill {
            Explanation::Job(bill) => Some(bill),
            Explanation::Sale(_) | Explanation::Contribution(_) | Explanation::Calls(_) => None,
        }
    }
}

impl Columns {
    fn of(receipts: &[Receipt]) -> sqlx::Result<Self> {
        let mut columns = Self::default();
        for receipt in receipts {
            let bill = serde_json::to_value(&receipt.bill)
                .map_err(|error| sqlx::Error::Encode(error.into()))?;
            columns.ids.push(receipt.id.0);
            columns.assets.push(receipt.asset_id);
            columns.accounts.push(receipt.account.0);
            let subject = receipt.subject;
            columns.kinds.push(subject.leaf_kind().into());
            columns.jobs.push(subject.job().map(|it| it.0));
            columns.purchases.push(subject.purchase().map(|it| it.0));
            let contribution = subject.contribution().map(|it| it.0);
            columns.contributions.push(contribution);
            columns.windows.push(subject.window().map(|it| it.0));
            columns.entries.push(receipt.entry.0);
            columns.payers.push(receipt.payer.to_vec());
            columns.gross.push(to_numeric(receipt.gross));
            columns.splits.push(receipt.split_version.0);
            columns.inputs.push(receipt.input.0.to_vec());
            columns.input_salts.push(receipt.input_salt.to_vec());
            columns.results.push(receipt.result.0.to_vec());
            columns.result_salts.push(receipt.result_salt.to_vec());
            columns.bills.push(bill);
            columns.bill_digests.push(receipt.bill_sha256.0.to_vec());
            columns.verdicts.push(receipt.verdict_sha256.0.to_vec());
            let documents = receipt.documents.as_ref();
            columns.rights.push(documents.map(|it| it.right.clone()));
            let finality = documents.map(|it| it.finality.clone());
            columns.finalities.push(finality);
            columns.times.push(receipt.created_at);
            for (party, share) in (0_i16..).zip(&receipt.shares) {
                columns.share_receipts.push(receipt.id.0);
                columns.parties.push(party);
                columns.payees.push(share.payee.to_vec());
                columns.amounts.push(to_numeric(share.amount));
            }
        }
        Ok(columns)
    }
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

/// The receipt of a purchase.
///
/// # Errors
/// When the statement fails.
pub async fn id_of_purchase(
    conn: &mut PgConnection,
    purchase: PurchaseId,
) -> sqlx::Result<Option<ReceiptId>> {
    let id = sqlx::query_scalar!(
        "SELECT receipt_id FROM receipts WHERE purchase_id = $1",
        purchase.0
    )
    .fetch_optional(conn)
    .await?;
    Ok(id.map(ReceiptId))
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
        "SELECT receipt_id, asset_id, account_id, kind, job_id, purchase_id, contribution_id, window_id, journal_entry_id, payer,
             gross_base, split_version_id, input_sha256, input_salt, result_sha256, result_salt, meter, meter_sha256,
             verdict_sha256, right_given, finality, created_at
         FROM receipts WHERE receipt_id = ANY ($1) ORDER BY receipt_id DESC",
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
    kind: i16,
    job_id: Option<Uuid>,
    purchase_id: Option<Uuid>,
    contribution_id: Option<Uuid>,
    window_id: Option<Uuid>,
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
    right_given: Option<serde_json::Value>,
    finality: Option<serde_json::Value>,
    created_at: OffsetDateTime,
}

impl Row {
    fn decode(self, shares: Vec<ReceiptShare>) -> sqlx::Result<Receipt> {
        Ok(Receipt {
            id: ReceiptId(self.receipt_id),
            asset_id: self.asset_id,
            account: AccountId(self.account_id),
            subject: Subject::decode(
                self.kind,
                (
                    self.job_id,
                    self.purchase_id,
                    self.contribution_id,
                    self.window_id,
                ),
            )?,
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
            documents: self
                .right_given
                .zip(self.finality)
                .map(|(right, finality)| Documents { right, finality }),
            created_at: self.created_at,
        })
    }
}
