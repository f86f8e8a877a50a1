//! Receipts: list, fetch, recompute, verify.

use std::{fs::File, path::Path};

use anyhow::Context as _;
use comptoir_domain::{
    bill::Bill,
    program::{archive::Archive, meter},
    settlement::ReceiptDocument,
};
use serde_json::{Value, json};
use url::Url;

use comptoir_settler::verify::{self, OnChain, VerifyError};

use super::{Context, jobs::list_path};
use crate::{
    args::{BillArgs, Receipt, VerifyArgs},
    exit::{Exit, coded},
    output,
};

/// A receipt is a few kilobytes; more is not one.
const RECEIPT_BYTES_MAX: u64 = 1 << 20;

/// The receipt verbs.
pub async fn run(context: &Context, verb: &Receipt) -> anyhow::Result<()> {
    let api = context.api().await?;
    match verb {
        Receipt::List(page) => {
            let fields = [
                "id",
                "kind",
                "job_id",
                "gross",
                "batch.number",
                "batch.state",
                "created_at",
            ];
            context
                .output
                .list(&api.get(&list_path("/v1/receipts", page)).await?, &fields);
        }
        Receipt::Get { id } => {
            let receipt = api.get(&format!("/v1/receipts/{id}")).await?;
            if receipt["document"].is_null() {
                let state = receipt["batch"]["state"]
                    .as_str()
                    .unwrap_or("in no batch yet");
                let message =
                    format!("{id} has no proof until its batch is anchored: it is {state}");
                return Err(coded(Exit::Refused, message));
            }
            output::say(format_args!("{:#}", receipt["document"]));
        }
    }
    Ok(())
}

/// Checks a receipt against the chain. A receipt proves what a contract holds, so whose contract it is matters: it is
/// printed, and compared with the one that the caller names.
///
/// # Errors
/// With [`Exit::NotVerified`] when the receipt does not hold, or is another contract's.
pub async fn verify(context: &Context, args: &VerifyArgs) -> anyhow::Result<()> {
    let document = read(&args.receipt)?;
    match args.contract {
        Some(known) if known != document.contract => {
            let message = format!(
                "the receipt is of contract {}, not {known}",
                document.contract
            );
            return Err(coded(Exit::NotVerified, message));
        }
        Some(_) => {}
        None => output::tell(format_args!(
            "make sure that {} is the contract you deal with, or name yours with --contract",
            document.contract
        )),
    }
    let on_chain = check(&document, &args.rpc).await?;
    let report = json!({
        "verified": true,
        "chain_id": document.chain_id,
        "contract": document.contract.to_string(),
        "batch": document.header.id,
        "gross": document.receipt.gross.to_string(),
        "payer": document.receipt.payer.to_string(),
        "in_ring": on_chain.in_ring,
        "headers_followed": on_chain.headers_followed,
        "active": on_chain.active,
    });
    let fields = [
        "verified",
        "chain_id",
        "contract",
        "batch",
        "payer",
        "gross",
        "in_ring",
        "headers_followed",
        "active",
    ];
    context.output.object(&report, &fields);
    Ok(())
}

/// Checks a document: its parts fit, and the chain has its batch.
///
/// # Errors
/// With [`Exit::NotVerified`] when it does not hold.
pub async fn check(document: &ReceiptDocument, rpc: &Url) -> anyhow::Result<OnChain> {
    verify::receipt(rpc.clone(), document)
        .await
        .map_err(|error| match &error {
            VerifyError::Document(mismatch) => coded(Exit::NotVerified, mismatch.to_string()),
            VerifyError::NotOnChain { .. } | VerifyError::HeaderMissing(_) => {
                coded(Exit::NotVerified, error.to_string())
            }
            VerifyError::Chain(_) => {
                let message = format!(
                    "the chain does not answer as it should: {:#}",
                    anyhow::Error::from(error)
                );
                coded(Exit::Unavailable, message)
            }
        })
}

/// Recomputes a charge: multiply-adds from the archive, rows from whoever knows them, the rest from the receipt's terms.
///
/// # Errors
/// With [`Exit::NotVerified`] when a term contradicts the program or another term.
pub fn recompute(context: &Context, args: &BillArgs) -> anyhow::Result<()> {
    let document = read(&args.receipt)?;
    let bill = recomputed(&document, &args.program, args.rows)?;
    let report = json!({ "recomputed": true, "gross": bill.gross, "meter": bill.meter, "price": bill.price, "data": bill.data });
    let fields = [
        "recomputed",
        "gross",
        "meter.madds_per_row",
        "meter.rows",
        "meter.epochs",
        "meter.factor",
        "meter.replicas",
        "meter.audit_ppm",
        "price.rate_nano",
        "price.minimum_base",
        "data.terms.offer",
        "data.terms.number",
        "data.terms.price_base",
    ];
    context.output.object(&report, &fields);
    Ok(())
}

/// The bill of a receipt, once the charge that it explains was computed again from the program.
///
/// # Errors
/// With [`Exit::NotVerified`] when a term of the bill contradicts the program, another term, or the receipt.
pub fn recomputed(
    document: &ReceiptDocument,
    program: &Path,
    rows: Option<u64>,
) -> anyhow::Result<Bill> {
    let bill: Bill =
        serde_json::from_value(document.meter.clone()).context("the receipt's meter is no bill")?;
    let file = File::open(program).with_context(|| format!("open {}", program.display()))?;
    let archive = Archive::open(file).with_context(|| format!("read {}", program.display()))?;
    let per_row = meter::multiply_adds_per_row(archive.program())?;
    let rows = rows.unwrap_or(bill.meter.rows());
    let not_verified = |message: String| coded(Exit::NotVerified, message);
    let counted = bill.meter.recount(u128::from(per_row), rows);
    let counted =
        counted.ok_or_else(|| not_verified("the program is too large to be priced".to_owned()))?;
    bill.recompute(&counted, &bill.price)
        .map_err(|error| not_verified(error.to_string()))?;
    let credited = bill.credited().map(|it| (it.party.payee, it.credit.base()));
    if !credited.eq(document
        .receipt
        .splits
        .iter()
        .map(|it| (it.payee, it.amount)))
    {
        return Err(not_verified(
            "the receipt's shares are not those of its bill".to_owned(),
        ));
    }
    if bill.gross.base() != document.receipt.gross {
        let message = format!(
            "the receipt says {}, the bill {}",
            document.receipt.gross, bill.gross
        );
        return Err(not_verified(message));
    }
    Ok(bill)
}

/// Reads a receipt document.
///
/// # Errors
/// When the file is too long or no receipt.
pub fn read(path: &Path) -> anyhow::Result<ReceiptDocument> {
    let bytes = std::fs::metadata(path)
        .with_context(|| format!("read {}", path.display()))?
        .len();
    anyhow::ensure!(
        bytes <= RECEIPT_BYTES_MAX,
        "{} is too long for a receipt",
        path.display()
    );
    let text = std::fs::read(path)?;
    let value = serde_json::from_slice(&text)
        .map_err(|_| coded(Exit::NotVerified, "not a receipt: not JSON"))?;
    parse(&value)
}

/// A receipt document from JSON.
///
/// # Errors
/// With [`Exit::NotVerified`] when it is no receipt.
pub fn parse(value: &Value) -> anyhow::Result<ReceiptDocument> {
    serde_json::from_value(value.clone())
        .map_err(|error| coded(Exit::NotVerified, format!("not a receipt: {error}")))
}
