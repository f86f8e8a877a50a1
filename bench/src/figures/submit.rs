//! Durable submissions over REST, each with its quote, hold, job, queue row, event and kept reply.

use std::{sync::Arc, time::Duration};

use serde_json::json;

use crate::{
    Setting,
    figure::Rounds,
    load::{self, Load, Request},
    naive::Naive,
    place::{Place, nonce},
    reference::Reference,
};

/// Clients that submit.
const CLIENTS: usize = 64;
/// Accounts that they submit for.
const PAYERS: u8 = 64;
/// Clients of pgbench.
const PGBENCH_CLIENTS: usize = 8;
/// Part of the peak at which latencies are measured.
const BELOW_PEAK: f64 = 0.7;
/// Seconds before the first round, for plans, caches and connections.
const WARM_UP: Duration = Duration::from_secs(2);

/// Requests that submit the example, for each account in turn.
pub fn request(place: &Place, spec: &serde_json::Value) -> Arc<Request> {
    let body = json!({ "spec": spec, "tier": "none", "max_cost": "1000000000000" }).to_string();
    let bearers = place.bearers.clone();
    Arc::new(move |number| {
        let payer = usize::try_from(number).unwrap_or_default() % bearers.len();
        let headers = format!(
            "authorization: {}\r\nidempotency-key: {}\r\n",
            bearers[payer],
            nonce()
        );
        load::post("/v1/jobs", &headers, &body)
    })
}

async fn submit(place: &Place, request: &Arc<Request>, seconds: u32) -> anyhow::Result<Load> {
    let lasting = Duration::from_secs(u64::from(seconds));
    load::closed(place.api_address, CLIENTS, lasting, request).await
}

/// A place without workers, warm, and requests that submit there.
pub async fn ready(setting: &Setting) -> anyhow::Result<(Place, Arc<Request>)> {
    let place = Place::make(setting.database()?, PAYERS, 0).await?;
    let spec = place.upload(&setting.data).await?;
    let request = request(&place, &spec);
    load::closed(place.api_address, CLIENTS, WARM_UP, &request).await?;
    Ok((place, request))
}

/// Beside one INSERT per request through axum.
pub async fn beside_insert(setting: &Setting) -> anyhow::Result<Rounds> {
    let (place, request) = ready(setting).await?;
    let reference = Reference::make(setting.database()?).await?;
    let naive = Naive::start(&reference.db).await?;
    let body = json!({ "program": "00000000000000000000000000000000" }).to_string();
    let insert: Arc<Request> = Arc::new(move |_| load::post("/jobs", "", &body));
    let lasting = Duration::from_secs(u64::from(setting.seconds));
    let mut rounds = Rounds::default();
    for _ in 0..setting.rounds {
        let plain = load::closed(naive.address, CLIENTS, lasting, &insert).await?;
        let ours = submit(&place, &request, setting.seconds).await?;
        rounds.note(ours.per_second, plain.per_second);
    }
    naive.stop();
    reference.clear().await?;
    place.clear().await?;
    Ok(rounds)
}

/// Beside pgbench.
pub async fn beside_pgbench(setting: &Setting) -> anyhow::Result<Rounds> {
    let (place, request) = ready(setting).await?;
    let reference = Reference::make(setting.database()?).await?;
    let mut rounds = Rounds::default();
    for _ in 0..setting.rounds {
        let plain = reference.inserts(PGBENCH_CLIENTS, setting.seconds).await?;
        let ours = submit(&place, &request, setting.seconds).await?;
        rounds.note(ours.per_second, plain);
    }
    reference.clear().await?;
    place.clear().await?;
    Ok(rounds)
}

/// p99 beside p50 at a rate below the peak, whether the server keeps up or not.
pub async fn p99(setting: &Setting) -> anyhow::Result<Rounds> {
    let (place, request) = ready(setting).await?;
    let mut rounds = Rounds::default();
    let lasting = Duration::from_secs(u64::from(setting.seconds));
    for _ in 0..setting.rounds {
        let peak = submit(&place, &request, setting.seconds).await?.per_second;
        let load = load::open(
            place.api_address,
            CLIENTS,
            peak * BELOW_PEAK,
            lasting,
            &request,
        );
        let load = load.await?;
        rounds.note(load.percentile(0.99), load.percentile(0.5));
    }
    place.clear().await?;
    Ok(rounds)
}
