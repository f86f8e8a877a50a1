//! The figures, by name.

mod cost;
mod download;
mod entitlement;
mod jobs;
mod ledger;
mod market;
mod merkle;
mod queue;
mod submit;
mod trouble;

use anyhow::bail;

use crate::{
    Setting,
    figure::{Figure, Goal},
};

use Goal::{AtLeast, AtMost, EitherAtLeast};

/// Every figure: its name, the goal of its ratio, what is compared.
pub const FIGURES: &[(&str, Goal, &str)] = &[
    (
        "submit-insert",
        AtLeast(3.0),
        "durable submissions, 64 clients / one INSERT per request through axum",
    ),
    (
        "submit-pgbench",
        AtLeast(1.2),
        "durable submissions, 64 clients / pgbench, one row per transaction, 8 clients",
    ),
    (
        "submit-p99",
        AtMost(5.0),
        "p99 / p50 of submissions at 70 % of the peak, open loop",
    ),
    (
        "job",
        AtLeast(0.6),
        "jobs from submission to receipt, stub workers, 256 clients / pgbench, one row per transaction",
    ),
    (
        "job-p99",
        AtMost(20.0),
        "p99 of submissions while jobs complete, 64 clients, in ms / 1",
    ),
    (
        "drain-graphile",
        AtLeast(1.5),
        "queued jobs leased, completed, charged and receipted, 250 in an exchange / graphile-worker's claims and completions, local queue of 500",
    ),
    (
        "drain-bullmq",
        AtLeast(2.5),
        "the same, 100 in an exchange / BullMQ's, concurrency 100",
    ),
    (
        "lease-latency",
        AtMost(1.0),
        "submission to lease at a waiting worker / BullMQ's add to start, p50",
    ),
    (
        "resets",
        AtLeast(0.8),
        "durable submissions, one connection in twenty reset and repeated / none",
    ),
    (
        "claim-snapshot",
        AtMost(3.0),
        "p99 of claims after a transaction was open for 120 s of load / before",
    ),
    (
        "hot-payer",
        AtLeast(0.7),
        "holds in groups for one payer / for 1,000 payers",
    ),
    (
        "hot-payer-lock",
        AtLeast(10.0),
        "holds in groups for one payer / charges that each lock the balance",
    ),
    (
        "transfer",
        AtLeast(0.8),
        "ledger entries, one per transaction / TPC-B",
    ),
    (
        "transfer-batch",
        AtLeast(5.0),
        "ledger entries in groups / TPC-B",
    ),
    (
        "merkle",
        AtMost(1.5),
        "a tree of 1,000,000 leaves / its keccak calls alone",
    ),
    (
        "merkle-peer",
        AtLeast(2.5),
        "rs_merkle's tree of 1,000,000 leaves / ours, in time",
    ),
    (
        "purchase",
        AtLeast(0.5),
        "purchases of datasets through REST, final at once, 64 clients / TPC-B, 8 clients",
    ),
    (
        "entitlement",
        EitherAtLeast(0.8, 10_000.0),
        "checks of a right among 100,000, one statement each / bare SELECTs by primary key over the same connections",
    ),
    (
        "download",
        AtLeast(0.5),
        "megabytes a second of an encrypted file of 4 GiB through the api, in ranges of 8 MiB, 4 clients / nginx and the plain file",
    ),
    (
        "wal",
        AtMost(1000.0),
        "bytes of WAL per job from submission to receipt / 1",
    ),
    (
        "cpu",
        AtMost(35.0),
        "microseconds of Postgres' CPU per job from submission to receipt / 1",
    ),
    (
        "hot",
        AtLeast(0.7),
        "share of HOT updates on the tables that change often / 1",
    ),
];

/// Measures a figure.
///
/// # Errors
/// When there is none of that name, or a side of it fails.
pub async fn measure(name: &str, setting: &Setting) -> anyhow::Result<Figure> {
    let Some((name, goal, _)) = FIGURES.iter().find(|(known, ..)| *known == name) else {
        bail!("no figure `{name}`; `make bench` lists them");
    };
    let rounds = match *name {
        "submit-insert" => submit::beside_insert(setting).await?,
        "submit-pgbench" => submit::beside_pgbench(setting).await?,
        "submit-p99" => submit::p99(setting).await?,
        "job" => jobs::beside_pgbench(setting).await?,
        "job-p99" => jobs::p99(setting).await?,
        "drain-graphile" => queue::drain_beside_graphile(setting, 250).await?,
        "drain-bullmq" => queue::drain_beside_bullmq(setting, 100).await?,
        "lease-latency" => queue::latency(setting).await?,
        "resets" => trouble::resets(setting).await?,
        "claim-snapshot" => trouble::snapshot(setting).await?,
        "hot-payer" => ledger::hot_payer(setting).await?,
        "hot-payer-lock" => ledger::hot_payer_beside_locks(setting).await?,
        "transfer" => ledger::transfers(setting).await?,
        "transfer-batch" => ledger::transfers_in_groups(setting).await?,
        "merkle" => merkle::beside_keccak(setting),
        "merkle-peer" => merkle::beside_peer(setting)?,
        "purchase" => market::purchases(setting).await?,
        "entitlement" => entitlement::checks(setting).await?,
        "download" => download::ranges(setting).await?,
        "wal" => cost::wal(setting).await?,
        "cpu" => cost::cpu(setting).await?,
        _ => cost::hot(setting).await?,
    };
    Ok(rounds.figure(name, *goal))
}
