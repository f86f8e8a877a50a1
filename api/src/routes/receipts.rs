//! `/v1/receipts`: what was charged, and its proof once the chain holds it.

use alloy_primitives::{B256, FixedBytes};
use axum::{extract::State, response::Response};
use comptoir_domain::{
    asset::Asset,
    digest::Sha256,
    id::{BatchId, ContributionId, JobId, PurchaseId, ReceiptId, UsageWindowId},
    sale::SaleKind,
    settlement::{self, ReceiptDocument, Split, Tree, document::Disclosure, salted},
};
use comptoir_store::{
    assets,
    batches::{self, Batch},
    receipts::{self, Reader, Receipt, Subject},
};
use serde::Serialize;
use sqlx::PgConnection;
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::batches::BatchState;
use crate::{
    AppState, Problem,
    auth::{Caller, Identity, needs},
    etag::Conditions,
    extract::Path,
    money::MoneyBody,
    page::{List, Page, PageQuery},
    quoting::no_asset,
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_receipts))
        .routes(routes!(find_receipt))
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ReceiptObject {
    Receipt,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ReceiptKind {
    /// A completed job.
    Job,
    /// Something that was bought for good.
    Purchase,
    /// Something that was rented.
    Rental,
    /// A period of a subscription.
    Subscription,
    /// What was contributed to a dataset.
    Contribution,
    /// Calls of a model.
    Calls,
}

/// Who was credited with how much.
#[derive(Serialize, ToSchema)]
struct ReceiptSplit {
    /// As CAIP-10 names it.
    payee: String,
    amount: MoneyBody,
}

/// The batch that settles it.
#[derive(Serialize, ToSchema)]
struct ReceiptBatch {
    #[schema(value_type = String)]
    id: BatchId,
    /// Its number on the chain.
    number: u64,
    state: BatchState,
    /// The receipt's place in it.
    index: u64,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Receipt)]
struct ReceiptBody {
    #[schema(value_type = String, example = "rcpt_01h455vb4pex5vsknk084sn02q")]
    id: ReceiptId,
    object: ReceiptObject,
    kind: ReceiptKind,
    /// The job that was paid for; `null` of anything else.
    #[schema(required = true, value_type = Option<String>)]
    job_id: Option<JobId>,
    /// The purchase that was paid for; `null` of anything else.
    #[schema(required = true, value_type = Option<String>)]
    purchase_id: Option<PurchaseId>,
    /// The contribution that was paid for; `null` of anything else.
    #[schema(required = true, value_type = Option<String>)]
    contribution_id: Option<ContributionId>,
    /// The usage window whose calls were paid for; `null` of anything else.
    #[schema(required = true, value_type = Option<String>)]
    window_id: Option<UsageWindowId>,
    /// Who paid, as CAIP-10 names it.
    payer: String,
    /// What was charged.
    gross: MoneyBody,
    /// Who was credited. What does not divide waits as dust until it does.
    splits: Vec<ReceiptSplit>,
    /// Every term of the price.
    #[schema(value_type = Object)]
    bill: serde_json::Value,
    /// Digest of the verdict's kind and evidence.
    #[schema(value_type = String)]
    verdict_sha256: Sha256,
    /// The batch that settles it; `null` until one is sealed.
    #[schema(required = true)]
    batch: Option<ReceiptBatch>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

/// A receipt with what proves it.
#[derive(Serialize, ToSchema)]
struct ProvenReceipt {
    #[serde(flatten)]
    receipt: ReceiptBody,
    /// Proves the receipt against the chain, without this service; `null` until its batch is anchored.
    #[schema(required = true)]
    document: Option<ReceiptDocument>,
}

impl ReceiptBody {
    fn new(
        receipt: &Receipt,
        batch: Option<&(Batch, u64)>,
        asset: &Asset,
    ) -> Result<Self, Problem> {
        let split = |share: &receipts::ReceiptShare| ReceiptSplit {
            payee: asset.caip10(share.payee),
            amount: MoneyBody::new(share.amount, asset),
        };
        Ok(Self {
            id: receipt.id,
            object: ReceiptObject::Receipt,
            kind: match receipt.subject {
                Subject::Job(_) => ReceiptKind::Job,
                Subject::Sale(SaleKind::Purchase, _) => ReceiptKind::Purchase,
                Subject::Sale(SaleKind::Rental, _) => ReceiptKind::Rental,
                Subject::Sale(SaleKind::Subscription, _) => ReceiptKind::Subscription,
                Subject::Contribution(_) => ReceiptKind::Contribution,
                Subject::Calls(_) => ReceiptKind::Calls,
            },
            job_id: receipt.subject.job(),
            purchase_id: receipt.subject.purchase(),
            contribution_id: receipt.subject.contribution(),
            window_id: receipt.subject.window(),
            payer: asset.caip10(receipt.payer),
            gross: MoneyBody::new(receipt.gross, asset),
            splits: receipt.shares.iter().map(split).collect(),
            bill: bill(receipt)?,
            verdict_sha256: receipt.verdict_sha256,
            batch: batch.map(|(batch, index)| ReceiptBatch {
                id: batch.id,
                number: batch.header.id,
                state: batch.state.into(),
                index: *index,
            }),
            created_at: receipt.created_at,
        })
    }
}

fn bill(receipt: &Receipt) -> Result<serde_json::Value, Problem> {
    serde_json::to_value(&receipt.bill).map_err(|error| Problem::internal(&error))
}

fn reader(caller: &Identity) -> Reader {
    Reader {
        account: caller.account,
        address: caller.address,
    }
}

/// The receipts of what the account paid and of what its address earned, newest first.
#[utoipa::path(
    get, path = "/v1/receipts", tag = "settlement", security(("session" = []), ("api_key" = ["receipts:read"])),
    params(PageQuery),
    responses(
        (status = 200, body = Page<ReceiptBody>),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn list_receipts(
    State(state): State<AppState>,
    caller: Caller<needs::ReceiptsRead>,
    list: List,
) -> Result<Page<ReceiptBody>, Problem> {
    let before: Option<ReceiptId> = list.position(&state, &caller)?;
    let mut connection = caller.read(&state).await?;
    let asset = assets::current(&mut connection).await.map_err(no_asset)?;
    let rows = receipts::list_for(&mut connection, reader(&caller), before, list.fetch()).await?;
    let mut bodies = Vec::with_capacity(rows.len());
    for receipt in &rows {
        let batch = batches::of_receipt(&mut connection, receipt.id).await?;
        bodies.push(ReceiptBody::new(receipt, batch.as_ref(), &asset)?);
    }
    Ok(list.page(&state, &caller, bodies, |body| body.id, |body| body))
}

/// One receipt, for who paid it and for whom it paid, with its proof once the chain holds its batch for good. Only who
/// paid it is told what the salted hashes of input and result hide.
#[utoipa::path(
    get, path = "/v1/receipts/{id}", tag = "settlement", security(("session" = []), ("api_key" = ["receipts:read"])),
    params(("id" = String, Path)),
    responses(
        (status = 200, body = ProvenReceipt, headers(("ETag" = String))),
        (status = 304),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn find_receipt(
    State(state): State<AppState>,
    caller: Caller<needs::ReceiptsRead>,
    Path(id): Path<ReceiptId>,
    conditions: Conditions,
) -> Result<Response, Problem> {
    let mut connection = caller.read(&state).await?;
    let receipt = receipts::find_for(&mut connection, reader(&caller), id).await?;
    let receipt = receipt.ok_or_else(Problem::not_found)?;
    let asset = assets::find(&mut connection, receipt.asset_id)
        .await
        .map_err(no_asset)?;
    let batch = batches::of_receipt(&mut connection, id).await?;
    let document = match &batch {
        Some((batch, index)) if batch.state.is_anchored() => {
            let discloses = receipt.account == caller.account;
            Some(
                document(
                    &mut connection,
                    &receipt,
                    (batch, *index),
                    &asset,
                    discloses,
                )
                .await?,
            )
        }
        _ => None,
    };
    let receipt = ReceiptBody::new(&receipt, batch.as_ref(), &asset)?;
    Ok(conditions.answer(ProvenReceipt { receipt, document }))
}

/// Makes the document, and checks it as whoever receives it will.
async fn document(
    connection: &mut PgConnection,
    receipt: &Receipt,
    (batch, index): (&Batch, u64),
    asset: &Asset,
    discloses: bool,
) -> Result<ReceiptDocument, Problem> {
    let leaves = batches::items(connection, batch.id).await?;
    let place = usize::try_from(index).map_err(|error| Problem::internal(&error))?;
    let proof = tokio::task::spawn_blocking(move || Tree::new(&leaves).proof(place));
    let proof = proof.await.map_err(|error| Problem::internal(&error))?;
    let (input_salt, result_salt) = (
        B256::from(receipt.input_salt),
        B256::from(receipt.result_salt),
    );
    let documents = receipt.documents.as_ref();
    let open = |sha256, salt| discloses.then_some(Disclosure { sha256, salt });
    let document = ReceiptDocument {
        chain_id: asset.chain_id,
        contract: asset.contract,
        header: batch.header,
        receipt: settlement::Receipt {
            batch_id: batch.header.id,
            index,
            receipt_id: FixedBytes(receipt.id.0.into_bytes()),
            kind: receipt.subject.leaf_kind(),
            payer: receipt.payer,
            gross: receipt.gross.base(),
            splits: receipt
                .shares
                .iter()
                .map(|share| Split {
                    payee: share.payee,
                    amount: share.amount.base(),
                })
                .collect(),
            input_hash: salted(input_salt, receipt.input),
            result_hash: salted(result_salt, receipt.result),
            meter_hash: B256::from(receipt.bill_sha256.0),
            verdict_hash: B256::from(receipt.verdict_sha256.0),
        },
        input: open(receipt.input, input_salt),
        result: open(receipt.result, result_salt),
        meter: bill(receipt)?,
        // Who bought what is the payer's to tell, as what `result` hides is.
        right: documents.filter(|_| discloses).map(|it| it.right.clone()),
        finality: documents.map(|it| it.finality.clone()),
        proof: proof.unwrap_or_default(),
    };
    document
        .verify()
        .map_err(|error| Problem::internal(&error))?;
    Ok(document)
}
