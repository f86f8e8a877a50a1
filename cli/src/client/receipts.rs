//! Receipts: list, fetch, recompute, verify.

use std::{fs::File, path::Path};

use anyhow::Context as _;
use comptoir_domain::{
    amount::Amount,
    bill::{Bill, BilledParty},
    calls::{self, CallsBill},
    contribution::RewardBill,
    program::{archive::Archive, meter},
    sale::SaleBill,
    settlement::ReceiptDocument,
};
use serde_json::{Value, json};
use url::Url;

use comptoir_settler::verify::{self, OnChain, VerifyError};

use super::{Context, jobs::list_path, usage};
use crate::{
    args::{BillArgs, Receipt, VerifyArgs},
    exit::{Exit, coded},
    output,
};

/// A receipt is a few kilobytes; more is not one.
const RECEIPT_BYTES_MAX: u64 = 1 << 20;
/// The kind of a job's leaf.
pub const JOB_KIND: u8 = 1;
/// The kind of a contribution's leaf; the kinds between are of sales.
const CONTRIBUTION_KIND: u8 = 5;
/// The kind of the leaf of calls.
pub const CALLS_KIND: u8 = calls::LEAF_KIND;

const JOB_BILL: &[&str] = &[
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
const REWARD_BILL: &[&str] = &[
    "recomputed",
    "contribution",
    "terms_number",
    "rows",
    "reward_per_row_base",
    "gross_base",
];
const CALLS_BILL: &[&str] = &[
    "recomputed",
    "usage_checked",
    "model",
    "version",
    "price_number",
    "counted.calls",
    "counted.rows",
    "counted.input_tokens",
    "counted.output_tokens",
    "counted.madds",
    "amount_atto",
    "used_before_atto",
    "gross_base",
];
const SALE_BILL: &[&str] = &[
    "recomputed",
    "kind",
    "offer",
    "price_number",
    "price_base",
    "time.agreed_seconds",
    "time.used_seconds",
    "time.minimum_seconds",
    "gross_base",
];

/// The receipt verbs.
pub async fn run(context: &Context, verb: &Receipt) -> anyhow::Result<()> {
    let api = context.api().await?;
    match verb {
        Receipt::List(page) => {
            let fields = [
                "id",
                "kind",
                "job_id",
                "purchase_id",
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
        "kind": kind(document.receipt.kind),
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
        "kind",
        "payer",
        "gross",
        "in_ring",
        "headers_followed",
        "active",
    ];
    context.output.object(&report, &fields);
    Ok(())
}

/// What a receipt of that leaf is of, as the API calls it.
const fn kind(leaf: u8) -> &'static str {
    match leaf {
        JOB_KIND => "job",
        2 => "purchase",
        3 => "rental",
        4 => "subscription",
        CONTRIBUTION_KIND => "contribution",
        CALLS_KIND => "calls",
        _ => "unknown",
    }
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

/// Recomputes a charge: of a job from multiply-adds of the archive, rows from whoever knows them, and the receipt's terms; of a sale from its
/// price and the time that was sold, of a contribution from its rows, of calls from their price and what was counted.
///
/// # Errors
/// With [`Exit::NotVerified`] when a term contradicts the program or another term.
pub fn recompute(context: &Context, args: &BillArgs) -> anyhow::Result<()> {
    let document = read(&args.receipt)?;
    let is_job = document.receipt.kind == JOB_KIND;
    if args.usage.is_some() && document.receipt.kind != CALLS_KIND {
        let message = "the receipt is not of calls: leave --usage out";
        return Err(coded(Exit::Refused, message));
    }
    let (report, fields) = match (&args.program, is_job) {
        (Some(program), true) => {
            let bill = recomputed(&document, program, args.rows)?;
            let report = json!({ "recomputed": true, "gross": bill.gross, "meter": bill.meter, "price": bill.price, "data": bill.data });
            (report, JOB_BILL)
        }
        (None, false) => {
            let (mut report, fields) = match document.receipt.kind {
                CONTRIBUTION_KIND => {
                    let bill = recomputed_reward(&document)?;
                    (serde_json::to_value(&bill)?, REWARD_BILL)
                }
                CALLS_KIND => {
                    let bill = recomputed_calls(&document, args.usage.as_deref())?;
                    let mut report = serde_json::to_value(&bill)?;
                    report["usage_checked"] = args.usage.is_some().into();
                    (report, CALLS_BILL)
                }
                _ => {
                    let bill = recomputed_sale(&document)?;
                    (serde_json::to_value(&bill)?, SALE_BILL)
                }
            };
            report["recomputed"] = true.into();
            (report, fields)
        }
        (None, true) => {
            let message = "the receipt is a job's: name the program that ran with --program";
            return Err(coded(Exit::Refused, message));
        }
        (Some(_), false) => {
            let message = "the receipt is no job's, and no program ran: leave --program out";
            return Err(coded(Exit::Refused, message));
        }
    };
    context.output.object(&report, fields);
    Ok(())
}

/// The bill of a job's receipt, once the charge that it explains was computed again from the program.
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
    let counted = bill.meter.recount(u128::from(per_row), rows);
    let counted =
        counted.ok_or_else(|| not_verified("the program is too large to be priced".to_owned()))?;
    bill.recompute(&counted, &bill.price)
        .map_err(|error| not_verified(error.to_string()))?;
    is_charged(document, bill.gross, bill.credited())?;
    Ok(bill)
}

/// The bill of a sale's receipt, once its charge was computed again from the price and the time that was sold.
///
/// # Errors
/// With [`Exit::NotVerified`] when a term of the bill contradicts another term, or the receipt.
pub fn recomputed_sale(document: &ReceiptDocument) -> anyhow::Result<SaleBill> {
    let bill: SaleBill =
        serde_json::from_value(document.meter.clone()).context("the receipt's meter is no bill")?;
    if bill.kind.leaf_kind() != document.receipt.kind {
        let message = format!("the receipt is not of the kind {}", bill.kind);
        return Err(not_verified(message));
    }
    bill.recompute()
        .map_err(|error| not_verified(error.to_string()))?;
    is_charged(document, bill.gross_base, bill.parties.iter())?;
    Ok(bill)
}

/// The bill of a contribution's receipt, once its reward was computed again from the rows that were accepted.
///
/// # Errors
/// With [`Exit::NotVerified`] when a term of the bill contradicts another term, or the receipt.
fn recomputed_reward(document: &ReceiptDocument) -> anyhow::Result<RewardBill> {
    let bill: RewardBill =
        serde_json::from_value(document.meter.clone()).context("the receipt's meter is no bill")?;
    bill.recompute()
        .map_err(|error| not_verified(error.to_string()))?;
    is_charged(document, bill.gross_base, bill.parties.iter())?;
    Ok(bill)
}

/// The bill of a usage window's receipt, once its charge was computed again from the price and what was counted; and the window's usage file, where
/// there is one, was added up to that.
///
/// # Errors
/// With [`Exit::NotVerified`] when a term of the bill contradicts another term, the file, or the receipt.
fn recomputed_calls(document: &ReceiptDocument, file: Option<&Path>) -> anyhow::Result<CallsBill> {
    let bill: CallsBill =
        serde_json::from_value(document.meter.clone()).context("the receipt's meter is no bill")?;
    bill.recompute()
        .map_err(|error| not_verified(error.to_string()))?;
    is_charged(document, bill.gross_base, bill.parties.iter())?;
    if let Some(file) = file {
        usage::check(file, &bill, document.result.map(|it| it.sha256))?;
    }
    Ok(bill)
}

/// Does the receipt charge what its bill says, and credit the same parties?
fn is_charged<'b>(
    document: &ReceiptDocument,
    gross: Amount,
    parties: impl Iterator<Item = &'b BilledParty>,
) -> anyhow::Result<()> {
    let receipt = &document.receipt;
    let credited = parties.map(|it| (it.party.payee, it.credit.base()));
    if !credited.eq(receipt.splits.iter().map(|it| (it.payee, it.amount))) {
        return Err(not_verified(
            "the receipt's shares are not those of its bill".to_owned(),
        ));
    }
    if gross.base() != receipt.gross {
        let message = format!("the receipt says {}, the bill {gross}", receipt.gross);
        return Err(not_verified(message));
    }
    Ok(())
}

fn not_verified(message: String) -> anyhow::Error {
    coded(Exit::NotVerified, message)
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
