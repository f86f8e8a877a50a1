//! Throughput of no-op jobs through REST, scheduler and stub workers, beside pgbench's TPC-B on the same server,
//! interleaved. A job counts from its submission to its receipt: quoted, held, leased, uploaded, sealed, revealed,
//! judged, charged, shared and receipted. Ratios are what to compare; times depend on the machine.

mod place;
mod reference;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use clap::Parser;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use reqwest::{Client, header};
use serde_json::json;
use sqlx::postgres::PgConnectOptions;
use tokio_util::sync::CancellationToken;

use place::Place;

/// How often the end of a round is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A round that takes longer has failed.
const ROUND_MAX: Duration = Duration::from_mins(10);

/// Measures no-op jobs beside pgbench.
#[derive(Debug, Parser)]
struct Options {
    /// A Postgres server where this login may create databases and roles. The databases are dropped at the end.
    #[arg(long, env = "DATABASE_URL")]
    database: PgConnectOptions,
    /// Jobs of one round.
    #[arg(long, default_value_t = 2_000)]
    jobs: usize,
    /// Rounds; before each, pgbench runs.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Requests at once, of clients and of pgbench.
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// Accounts that the jobs are of, in turn. One is the worst case: all its jobs wait for one balance.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u8).range(1..=200))]
    payers: u8,
    /// Verification tier: `none` runs each job once, `replicated` twice.
    #[arg(long, default_value = "none", value_parser = ["none", "replicated"])]
    tier: String,
    /// Seconds of each pgbench run.
    #[arg(long, default_value_t = 10)]
    pgbench_seconds: u32,
    /// The program and the rows that jobs name.
    #[arg(long, default_value = "examples/digits")]
    data: PathBuf,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let place = Place::make(&options.database, options.payers).await?;
    let measured = measure(&options, &place).await;
    place.clear().await?;
    measured
}

async fn measure(options: &Options, place: &Place) -> anyhow::Result<()> {
    let spec = place.upload(&options.data).await?;
    let stop = CancellationToken::new();
    let workers: Vec<_> = place
        .workers
        .iter()
        .map(|worker| {
            let (worker, stop) = (worker.clone(), stop.clone());
            tokio::spawn(async move { worker.run(128, &stop).await })
        })
        .collect();
    let reference = reference::Reference::make(&options.database).await?;
    let mut ratios = Vec::new();
    for round in 1..=options.rounds {
        let tps = reference
            .run(options.clients, options.pgbench_seconds)
            .await?;
        let (submitted, jobs) = run_round(options, place, &spec).await?;
        ratios.push(jobs / tps);
        println!(
            "round {round}: pgbench {tps:.0} TPC-B/s; submitted {submitted:.0} jobs/s; completed {jobs:.0} jobs/s; \
             completed / TPC-B {:.3}",
            jobs / tps
        );
    }
    reference.clear().await?;
    stop.cancel();
    for worker in workers {
        worker.await??;
    }
    ratios.sort_by(f64::total_cmp);
    println!(
        "median: {:.3} completed jobs of tier {} per TPC-B transaction",
        ratios[ratios.len() / 2],
        options.tier
    );
    Ok(())
}

/// One round; jobs submitted and jobs completed in a second.
async fn run_round(
    options: &Options,
    place: &Place,
    spec: &serde_json::Value,
) -> anyhow::Result<(f64, f64)> {
    let before = place.completed().await?;
    let began = Instant::now();
    let client = Client::new();
    stream::iter(0..options.jobs)
        .map(|number| submit(&client, place, number, spec, &options.tier))
        .buffer_unordered(options.clients)
        .try_collect::<Vec<()>>()
        .await?;
    let submitted = began.elapsed();
    let wanted = before + i64::try_from(options.jobs)?;
    while place.completed().await? < wanted {
        ensure!(
            began.elapsed() < ROUND_MAX,
            "the jobs of a round did not complete"
        );
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let per_second = |elapsed: Duration| {
        let jobs = u32::try_from(options.jobs).map(f64::from);
        jobs.map(|jobs| jobs / elapsed.as_secs_f64())
    };
    Ok((per_second(submitted)?, per_second(began.elapsed())?))
}

async fn submit(
    client: &Client,
    place: &Place,
    number: usize,
    spec: &serde_json::Value,
    tier: &str,
) -> anyhow::Result<()> {
    let body = json!({ "spec": spec, "tier": tier, "max_cost": "1000000000000" });
    let bearer = &place.bearers[number % place.bearers.len()];
    let reply = client
        .post(format!("{}/v1/jobs", place.api))
        .header(header::AUTHORIZATION, bearer)
        .header("idempotency-key", place::nonce())
        .json(&body)
        .send()
        .await?;
    let status = reply.status();
    ensure!(
        status.is_success(),
        "{status}: {}",
        reply.text().await.context("read the refusal")?
    );
    Ok(())
}
