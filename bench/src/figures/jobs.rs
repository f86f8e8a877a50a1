//! Whole jobs: submitted, held, leased, uploaded, sealed, revealed, judged, charged, shared and receipted.

use std::{sync::Arc, time::Duration};

use anyhow::ensure;
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use super::submit::request;
use crate::{
    Setting,
    figure::Rounds,
    load::{self, Request},
    place::Place,
    reference::Reference,
};

/// Clients that submit.
const CLIENTS: usize = 256;
/// Clients that submit while latencies are measured.
const FEWER_CLIENTS: usize = 64;
/// Accounts that they submit for.
const PAYERS: u8 = 64;
/// Stub workers, of different owners.
const WORKERS: u8 = 4;
/// Clients of pgbench.
const PGBENCH_CLIENTS: usize = 8;
/// How often the end of a round is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A round that takes longer has failed.
const ROUND_MAX: Duration = Duration::from_mins(10);

/// A place whose workers run.
pub struct Busy {
    /// The place.
    pub place: Place,
    /// Requests that submit.
    pub request: Arc<Request>,
    stop: CancellationToken,
    workers: Vec<JoinHandle<anyhow::Result<()>>>,
}

impl Busy {
    /// Starts everything, and runs a second's jobs through it.
    pub async fn start(setting: &Setting) -> anyhow::Result<Self> {
        let place = Place::make(setting.database()?, PAYERS, WORKERS).await?;
        let spec = place.upload(&setting.data).await?;
        let request = request(&place, &spec);
        let stop = CancellationToken::new();
        let workers = place.workers.iter().map(|worker| {
            let (worker, stop) = (worker.clone(), stop.clone());
            tokio::spawn(async move {
                worker.run(128, &stop).await?;
                Ok(())
            })
        });
        let busy = Self {
            workers: workers.collect(),
            place,
            request,
            stop,
        };
        busy.run(FEWER_CLIENTS, 1).await?;
        Ok(busy)
    }

    /// Submits for so long, then waits for the last job's receipt: jobs, seconds in all, and the load's latencies.
    pub async fn run(
        &self,
        clients: usize,
        seconds: u32,
    ) -> anyhow::Result<(f64, f64, load::Load)> {
        let (before, began) = (self.place.completed().await?, Instant::now());
        let lasting = Duration::from_secs(u64::from(seconds));
        let load = load::closed(self.place.api_address, clients, lasting, &self.request).await?;
        while self.place.submitted().await? > self.place.completed().await? {
            ensure!(
                began.elapsed() < ROUND_MAX,
                "the jobs of a round did not complete"
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let jobs = i32::try_from(self.place.completed().await? - before)?;
        Ok((f64::from(jobs), began.elapsed().as_secs_f64(), load))
    }

    /// Ends everything.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        for worker in self.workers {
            worker.await??;
        }
        self.place.clear().await
    }
}

/// Beside pgbench.
pub async fn beside_pgbench(setting: &Setting) -> anyhow::Result<Rounds> {
    let busy = Busy::start(setting).await?;
    let reference = Reference::make(setting.database()?).await?;
    let mut rounds = Rounds::default();
    for _ in 0..setting.rounds {
        let plain = reference.inserts(PGBENCH_CLIENTS, setting.seconds).await?;
        let (jobs, seconds, _) = busy.run(CLIENTS, setting.seconds).await?;
        rounds.note(jobs / seconds, plain);
    }
    reference.clear().await?;
    busy.stop().await?;
    Ok(rounds)
}

/// p99 of submissions, in milliseconds.
pub async fn p99(setting: &Setting) -> anyhow::Result<Rounds> {
    let busy = Busy::start(setting).await?;
    let mut rounds = Rounds::default();
    for _ in 0..setting.rounds {
        let (_, _, load) = busy.run(FEWER_CLIENTS, setting.seconds).await?;
        rounds.note(load.percentile(0.99) / 1_000.0, 1.0);
    }
    busy.stop().await?;
    Ok(rounds)
}
