//! Queued jobs taken and completed, and how long one waits for a worker that waits for it, beside queues that many use.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use comptoir_scheduler::stub::StubWorker;
use comptoir_wire::work::WorkRequest;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::submit::request;
use crate::{
    Setting, database_url,
    figure::Rounds,
    load::{self, Connection},
    peers::Peer,
    place::{Place, create_database, drop_database},
};

/// Accounts that submit.
const PAYERS: u8 = 64;
/// Stub workers, of different owners.
const WORKERS: u8 = 4;
/// Clients that fill the queue.
const CLIENTS: usize = 64;
/// Jobs that a peer drains: enough for a rate.
const PEER_JOBS: u32 = 10_000;
/// Single jobs whose wait is timed, in a round.
const TIMED: u32 = 100;
/// How long a worker waits for one, in milliseconds.
const WAIT_MS: u32 = 10_000;
/// How often the end of a drain is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// A drain that takes longer has failed.
const DRAIN_MAX: Duration = Duration::from_mins(10);

/// Ours, whole jobs from lease to receipt, `batch` in an exchange, beside graphile-worker's claims and completions.
pub async fn drain_beside_graphile(setting: &Setting, batch: u16) -> anyhow::Result<Rounds> {
    let admin = setting.database()?;
    let database = create_database(admin, "peer").await?;
    let mut url = database_url()?;
    url.set_path(&database);
    let rounds = drain(setting, batch, Peer::DrainGraphile, url.as_str()).await;
    drop_database(admin, &database).await?;
    rounds
}

/// The same beside `BullMQ`.
pub async fn drain_beside_bullmq(setting: &Setting, batch: u16) -> anyhow::Result<Rounds> {
    drain(setting, batch, Peer::DrainBullmq, setting.redis()?).await
}

async fn drain(setting: &Setting, batch: u16, peer: Peer, url: &str) -> anyhow::Result<Rounds> {
    let place = Place::make(setting.database()?, PAYERS, WORKERS).await?;
    let spec = place.upload(&setting.data).await?;
    let request = request(&place, &spec);
    let lasting = Duration::from_secs(u64::from(setting.seconds));
    let mut rounds = Rounds::default();
    for _ in 0..setting.rounds {
        let theirs = peer.measure(url, PEER_JOBS).await?;
        load::closed(place.api_address, CLIENTS, lasting, &request).await?;
        rounds.note(drain_once(&place, batch).await?, theirs);
    }
    place.clear().await?;
    Ok(rounds)
}

/// Jobs in a second, from the first lease to the last receipt.
async fn drain_once(place: &Place, batch: u16) -> anyhow::Result<f64> {
    let (before, wanted) = (place.completed().await?, place.submitted().await?);
    let (stop, began) = (CancellationToken::new(), Instant::now());
    let mut running = Vec::new();
    for worker in &place.workers {
        let (worker, stop) = (worker.clone(), stop.clone());
        running.push(tokio::spawn(async move { worker.run(batch, &stop).await }));
    }
    while place.completed().await? < wanted {
        ensure!(began.elapsed() < DRAIN_MAX, "the queue was not drained");
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let seconds = began.elapsed().as_secs_f64();
    stop.cancel();
    for worker in running {
        worker.await??;
    }
    Ok(f64::from(i32::try_from(wanted - before)?) / seconds)
}

/// From a submission to its lease at a worker that waits, at the median, beside `BullMQ`'s from add to start; milliseconds.
pub async fn latency(setting: &Setting) -> anyhow::Result<Rounds> {
    let place = Place::make(setting.database()?, 1, 1).await?;
    let spec = place.upload(&setting.data).await?;
    let request = request(&place, &spec);
    let worker = place.workers.first().context("a worker")?;
    let mut connection = Connection::open(place.api_address).await?;
    let mut rounds = Rounds::default();
    for round in 0..setting.rounds {
        let theirs = Peer::LatencyBullmq.measure(setting.redis()?, TIMED).await?;
        let mut waits = Vec::new();
        for number in 0..TIMED {
            let number = u64::try_from(round)? * u64::from(TIMED) + u64::from(number);
            waits.push(wait_of_one(worker, &mut connection, &request(number)).await?);
        }
        waits.sort_unstable();
        let median = waits.get(waits.len() / 2).context("waits")?;
        rounds.note(median.as_secs_f64() * 1e3, theirs);
    }
    place.clear().await?;
    Ok(rounds)
}

/// Submits one job to a worker that waits for it; the worker keeps the lease.
async fn wait_of_one(
    worker: &StubWorker,
    connection: &mut Connection,
    request: &[u8],
) -> anyhow::Result<Duration> {
    let waiting = WorkRequest {
        wanted: 1,
        wait_ms: WAIT_MS,
        ..WorkRequest::default()
    };
    let worker = worker.clone();
    let waiting = tokio::spawn(async move { (worker.work(&waiting).await, Instant::now()) });
    // Time to arrive, and to begin to wait.
    tokio::time::sleep(LOOK_EVERY).await;
    let sent = Instant::now();
    connection.exchange(request).await?;
    let (reply, leased) = waiting.await?;
    ensure!(reply?.leases.len() == 1, "the worker gets the job");
    Ok(leased - sent)
}
