//! What happens, step by step, and what must be true after each.

use std::path::PathBuf;

use alloy::primitives::Address;
use anyhow::{Context as _, ensure};
use comptoir_domain::{id::ReceiptId, settlement::ReceiptDocument};
use uuid::Uuid;

use super::{
    books::{
        audit_every_batch, claim_exactly, claimable, command_line_agrees, conserved, due,
        found_right, own_leaf, published_leaf, verify_and_tamper,
    },
    calls,
    cast::Cast,
    market,
    people::Person,
    stage::Stage,
    work::{self, Done, complete, submit},
};
use crate::{client::receipts, output::whole_tokens, up::commit_gas};

/// What the client deposits: 1,000 tokens.
const DEPOSIT_BASE: u128 = 1_000 * 10_u128.pow(18);
/// Decimals of the local chain's token.
pub const DECIMALS: usize = 18;
/// The least share of test images that the trained net must get right.
pub const ACCURACY_MIN: f64 = 0.95;
/// Epochs of the first training job.
const EPOCHS: u32 = 5;
/// Epochs of the job whose worker is killed: long enough to be caught in the middle.
const LONG_EPOCHS: u32 = 30;
/// Optimizer steps between two checkpoints.
const SEGMENT_STEPS: u32 = 45;

/// Plays it to the end.
pub async fn play(stage: &mut Stage, cast: &mut Cast) -> anyhow::Result<()> {
    deposit(stage, cast).await?;
    let trained = train(stage, cast).await?;
    let inferred = infer(stage, cast, &trained).await?;
    let listed = market::publish(stage, cast).await?;
    let sale = market::sell(stage, cast, &listed).await?;
    let computed = market::compute(stage, cast, &listed, (EPOCHS, SEGMENT_STEPS)).await?;
    market::refuse(stage, cast, &listed).await?;
    let model = calls::publish(stage, cast, &trained).await?;
    let called = calls::call(stage, cast, &model).await?;
    check_books(stage, cast).await?;
    let mut receipts = vec![
        (&cast.client, trained.receipt()?),
        (&cast.client, inferred.receipt()?),
        (&cast.buyer, &sale.receipt),
        (&cast.researcher, computed.done.receipt()?),
    ];
    receipts.extend(called.receipts.iter().map(|it| (&cast.buyer, it.as_str())));
    let to_settle = ToSettle {
        receipts,
        to_seller: sale.to_seller + computed.to_seller,
        to_creator: called.to_creator,
    };
    settle(stage, cast, to_settle).await?;
    kill_a_worker(stage, cast).await?;
    audit(stage, cast).await
}

async fn deposit(stage: &mut Stage, cast: &Cast) -> anyhow::Result<()> {
    let client = &cast.client;
    stage
        .step(
            "the client deposits 1,000 tokens, credited after finality",
            async {
                let sent = cast.node.deposit_for(client, DEPOSIT_BASE).await?;
                Ok(((), format!("transaction {}, {} gas", sent.hash, sent.gas)))
            },
        )
        .await
}

async fn train(stage: &mut Stage, cast: &Cast) -> anyhow::Result<Done> {
    stage
        .step(
            "two workers train the net on 1,437 images (tier replicated)",
            async {
                let spec = cast.digits.training(EPOCHS, SEGMENT_STEPS);
                let job = submit(&cast.client, spec, "replicated").await?;
                let done = complete(&cast.client, &job).await?;
                let losses = work::losses(&done);
                ensure!(
                    losses.len() == EPOCHS as usize,
                    "metrics of {} epochs were streamed",
                    losses.len()
                );
                let losses = losses
                    .iter()
                    .map(|(epoch, loss)| format!("epoch {epoch} loss {loss:.4}"));
                let losses: Vec<_> = losses.collect();
                let charged = cost(&done);
                Ok((done, format!("{}\n{charged}", losses.join(", "))))
            },
        )
        .await
}

async fn infer(stage: &mut Stage, cast: &Cast, trained: &Done) -> anyhow::Result<Done> {
    stage
        .step(
            "two workers run the trained net on 360 test images",
            async {
                let spec = cast.digits.inference(trained.output);
                let job = submit(&cast.client, spec, "replicated").await?;
                let done = complete(&cast.client, &job).await?;
                let output = cast
                    .client
                    .api
                    .request(reqwest::Method::GET, &format!("/v1/blobs/{}", done.output));
                let output = cast.client.api.send(output).await?.bytes().await?;
                let accuracy = cast.digits.accuracy(&output)?;
                ensure!(
                    accuracy >= ACCURACY_MIN,
                    "accuracy {accuracy:.4} is below {ACCURACY_MIN}"
                );
                let charged = cost(&done);
                Ok((
                    done,
                    format!(
                        "accuracy {accuracy:.4}, computed from the returned outputs\n{charged}"
                    ),
                ))
            },
        )
        .await
}

async fn check_books(stage: &mut Stage, cast: &Cast) -> anyhow::Result<()> {
    stage
        .step("the ledger is conserved, and nothing is held", async {
            let books = conserved(&cast.database).await?;
            ensure!(
                books.held.is_zero(),
                "{} base units are still held",
                books.held
            );
            Ok((
                (),
                format!(
                    "everybody's balances sum to the {} tokens deposited",
                    whole_tokens(&books.deposits.to_string(), DECIMALS)
                ),
            ))
        })
        .await
}

/// What was charged.
struct ToSettle<'a> {
    /// The receipts, each with whom it was charged to.
    receipts: Vec<(&'a Person, &'a str)>,
    /// What the seller is due of all of them, in base units,
    to_seller: u128,
    /// and the client, whose model was called.
    to_creator: u128,
}

async fn settle(stage: &mut Stage, cast: &Cast, charged: ToSettle<'_>) -> anyhow::Result<()> {
    let receipts = stage
        .step("the batch is committed, and its window passes", async {
            let mut receipts = Vec::new();
            for (payer, id) in charged.receipts {
                receipts.push(claimable(&payer.api, id).await?);
            }
            let batches: Vec<_> = receipts.iter().map(|it| it.header.id.to_string()).collect();
            let gas = commit_gas(&cast.node, receipts[0].header.id).await?;
            Ok((
                receipts,
                format!("batch {}, commit {gas} gas", batches.join(" and ")),
            ))
        })
        .await?;
    stage
        .step(
            "both owners, the seller, the model's creator and the platform claim exactly what the receipts say",
            async {
                let due = due(&receipts);
                for (person, expected) in [(&cast.seller, charged.to_seller), (&cast.client, charged.to_creator)] {
                    let found = due.get(&person.wallet.address()).copied();
                    ensure!(
                        found == Some(expected),
                        "the {} is due {expected} of its prices, and the receipts say {found:?}",
                        person.name
                    );
                }
                let figures = claim_all(cast, &receipts).await?;
                Ok(((), figures))
            },
        )
        .await?;
    stage
        .step(
            "every receipt verifies against the chain, and no changed one does",
            async {
                let mut refused = 0;
                for receipt in &receipts {
                    refused += verify_and_tamper(receipt, &cast.rpc).await?;
                    command_line_agrees(receipt, &cast.rpc, evidence(cast, receipt), &cast.folder)
                        .await?;
                }
                ensure!(refused > 0, "no change was tried");
                Ok((
                    (),
                    format!(
                        "{} receipts hold; {refused} changes of one digit were refused",
                        receipts.len()
                    ),
                ))
            },
        )
        .await
}

/// What a charge is recomputed from, beside its receipt.
fn evidence(cast: &Cast, document: &ReceiptDocument) -> Option<(&'static str, PathBuf)> {
    let receipt = &document.receipt;
    match receipt.kind {
        receipts::JOB_KIND => Some(("--program", cast.program.clone())),
        receipts::CALLS_KIND => {
            let file = calls::usage_file(
                &cast.folder,
                ReceiptId(Uuid::from_bytes(receipt.receipt_id.0)),
            );
            Some(("--usage", file))
        }
        _ => None,
    }
}

async fn claim_all(cast: &Cast, receipts: &[ReceiptDocument]) -> anyhow::Result<String> {
    let due = due(receipts);
    let of = |payee: Address| {
        due.get(&payee)
            .copied()
            .with_context(|| format!("{payee} earned nothing"))
    };
    let chain = (cast.node.asset.token, &cast.rpc);
    let mut lines = Vec::new();
    for owner in cast.owners.iter().chain([&cast.seller, &cast.client]) {
        let due = of(owner.wallet.address())?;
        let leaf = own_leaf(&owner.api, due).await?;
        let gas = claim_exactly(&owner.wallet, &leaf, due, chain).await?;
        lines.push(format!(
            "{} received {} tokens, {gas} gas",
            owner.name,
            whole_tokens(&due.to_string(), DECIMALS)
        ));
    }
    let platform = cast.node.platform();
    let batch = receipts
        .iter()
        .map(|it| it.header.id)
        .max()
        .context("no receipts")?;
    let leaf = published_leaf(&cast.client.api, batch, platform.address()).await?;
    let due_to_platform = of(platform.address())?;
    let gas = claim_exactly(platform, &leaf, due_to_platform, chain).await?;
    let tokens = whole_tokens(&due_to_platform.to_string(), DECIMALS);
    lines.push(format!(
        "the platform received {tokens} tokens by the published leaf file, {gas} gas"
    ));
    ensure!(
        lines.len() == due.len(),
        "{} payees, {} claimed",
        due.len(),
        lines.len()
    );
    Ok(lines.join("\n"))
}

async fn kill_a_worker(stage: &mut Stage, cast: &mut Cast) -> anyhow::Result<()> {
    let (done, before) = stage
        .step(
            "a worker is killed in mid-training; the other resumes at its checkpoint",
            async {
                let Cast {
                    client,
                    owners,
                    workers,
                    digits,
                    ..
                } = cast;
                let before = available(client).await?;
                let job =
                    submit(client, digits.training(LONG_EPOCHS, SEGMENT_STEPS), "none").await?;
                let victim = work::after_first_checkpoint(client, &job, owners).await?;
                workers[victim].kill().await?;
                let done = complete(client, &job).await?;
                let resumed = done.events.iter().find(|event| {
                    event.kind == "leased" && event.data["resumed_at_step"].as_u64() > Some(0)
                });
                let resumed = resumed.context("no lease resumed at a checkpoint")?;
                let figures = format!(
                    "{} died; resumed at step {}\n{}",
                    owners[victim].name,
                    resumed.data["resumed_at_step"],
                    cost(&done)
                );
                Ok(((done, before), figures))
            },
        )
        .await?;
    stage
        .step("the job was paid once", async {
            let books = conserved(&cast.database).await?;
            ensure!(
                books.held.is_zero(),
                "{} base units are still held",
                books.held
            );
            let charged = done.job["charged"]["amount"]
                .as_str()
                .context("a job without a charge")?
                .parse::<u128>()?;
            let after = available(&cast.client).await?;
            ensure!(
                before.checked_sub(after) == Some(charged),
                "charged {charged} base units, and the balance went from {before} to {after}"
            );
            Ok((
                (),
                "the client's balance fell by the charge once, nothing is held".to_owned(),
            ))
        })
        .await
}

/// What a person can spend, in base units.
pub async fn available(person: &Person) -> anyhow::Result<u128> {
    let balance = person.api.get("/v1/balance").await?;
    let amount = balance["available"]["amount"].as_str();
    Ok(amount.context("a balance without an amount")?.parse()?)
}

/// What a job cost, in words.
pub fn cost(done: &Done) -> String {
    let charged = done.job["charged"]["amount"].as_str().unwrap_or_default();
    format!("charged {} tokens", whole_tokens(charged, DECIMALS))
}

async fn audit(stage: &mut Stage, cast: &Cast) -> anyhow::Result<()> {
    stage
        .step(
            "a second implementation recomputes every batch from its leaf file and the chain",
            async {
                let node = &cast.node;
                let last = audit_every_batch(node.asset.contract, &node.api_url, &cast.rpc).await?;
                let guardian = node.guardian.context("the node has no guardian")?;
                let found = found_right(guardian, last).await?;
                Ok((
                    (),
                    format!(
                        "{last} batches: every leaf, root, sum and change is right; the guardian, a process with a key of \
                         its own, found {found} right while they could be vetoed"
                    ),
                ))
            },
        )
        .await
}
