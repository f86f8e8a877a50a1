//! How much worse it gets in trouble: connections that are reset, a transaction that somebody forgot.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use comptoir_wire::work::WorkRequest;
use tokio::time::Instant;

use super::{jobs::Busy, submit};
use crate::{Setting, figure::Rounds, load, place::Place};

/// Clients that submit.
const CLIENTS: usize = 64;
/// One request in twenty is reset.
const RESET_EVERY: u64 = 20;
/// Claims that are timed.
const CLAIMS: usize = 500;
/// How long the transaction is open before it is measured.
const OPEN_FOR: Duration = Duration::from_mins(2);
/// Submissions answered in a second while one connection in twenty is reset, beside none.
pub async fn resets(setting: &Setting) -> anyhow::Result<Rounds> {
    let (place, request) = submit::ready(setting).await?;
    let lasting = Duration::from_secs(u64::from(setting.seconds));
    let mut rounds = Rounds::default();
    for _ in 0..setting.rounds {
        let calm = load::closed(place.api_address, CLIENTS, lasting, &request).await?;
        let reset = load::resetting(place.api_address, CLIENTS, lasting, &request, RESET_EVERY);
        rounds.note(reset.await?.per_second, calm.per_second);
    }
    place.clear().await?;
    Ok(rounds)
}

/// p99 of claims, in milliseconds, after a transaction was open for two minutes of load, beside the same before.
pub async fn snapshot(setting: &Setting) -> anyhow::Result<Rounds> {
    let busy = Busy::start(setting).await?;
    let before = claims(&busy.place, &busy.request, setting.seconds).await?;
    let mut forgotten = busy.place.owner.begin().await?;
    sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        .execute(&mut *forgotten)
        .await?;
    sqlx::query("SELECT count(*) FROM queue")
        .execute(&mut *forgotten)
        .await?;
    let began = Instant::now();
    while began.elapsed() < OPEN_FOR {
        busy.run(CLIENTS, setting.seconds).await?;
    }
    let after = claims(&busy.place, &busy.request, setting.seconds).await?;
    forgotten.rollback().await?;
    let mut rounds = Rounds::default();
    rounds.note(after, before);
    busy.stop().await?;
    Ok(rounds)
}

/// Claims single jobs while others submit and work; the p99, in milliseconds.
async fn claims(place: &Place, request: &Arc<load::Request>, seconds: u32) -> anyhow::Result<f64> {
    let worker = place.workers.last().context("a worker")?;
    let lasting = Duration::from_secs(u64::from(seconds));
    let (address, request) = (place.api_address, Arc::clone(request));
    let submitting =
        tokio::spawn(async move { load::closed(address, CLIENTS, lasting, &request).await });
    let one = WorkRequest {
        wanted: 1,
        ..WorkRequest::default()
    };
    let mut waits = Vec::with_capacity(CLAIMS);
    for _ in 0..CLAIMS {
        let asked = Instant::now();
        worker.work(&one).await?;
        waits.push(asked.elapsed());
    }
    submitting.await??;
    waits.sort_unstable();
    let p99 = waits.get(CLAIMS * 99 / 100).context("waits")?;
    Ok(p99.as_secs_f64() * 1e3)
}
