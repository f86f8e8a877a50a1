//! Datasets that are bought.

use std::{sync::Arc, time::Duration};

use comptoir_domain::{
    dataset,
    id::{DatasetId, DatasetVersionId, OfferId},
};
use serde_json::json;
use uuid::Uuid;

use crate::{
    Setting,
    figure::Rounds,
    load::{self, Request},
    place::{Place, nonce},
    reference::Reference,
};

/// Clients that buy, each for an account of its own.
const CLIENTS: usize = 64;
/// The accounts: the buyers, and the seller.
const ACCOUNTS: u8 = 65;
/// Datasets on sale. Each buyer has each once.
const DATASETS: usize = 2_000;
/// Clients of pgbench.
const PGBENCH_CLIENTS: usize = 8;
/// Seconds before the first round, for plans, caches and connections.
const WARM_UP: Duration = Duration::from_secs(2);
/// What each costs, in base units.
const PRICE: u32 = 1_000_003;

/// Puts datasets on sale: listed, with a version without files, and an offer that is final at once.
async fn put_on_sale(place: &Place, seller: Uuid) -> anyhow::Result<Vec<OfferId>> {
    let offers: Vec<_> = (0..DATASETS).map(|_| OfferId::generate()).collect();
    let ids: Vec<_> = offers.iter().map(|it| it.0).collect();
    let datasets: Vec<_> = offers.iter().map(|_| DatasetId::generate().0).collect();
    let versions: Vec<_> = offers
        .iter()
        .map(|_| DatasetVersionId::generate().0)
        .collect();
    let (root, key) = (dataset::root(&[]), [0_u8; 60]);
    let mut tx = place.owner.begin().await?;
    for sql in [
        "INSERT INTO datasets (dataset_id, account_id, name, title, description, licence, provenance, tags, state, created_at, updated_at)
         SELECT dataset, $4, dataset::text, 'Bench', '', 'MIT', '', '{}', 'listed', now(), now()
         FROM UNNEST($1::uuid[], $2::uuid[], $3::uuid[]) AS it (dataset, version, offer) WHERE $5 <> $6",
        "INSERT INTO dataset_versions (version_id, dataset_id, account_id, number, state, notes, licence, wrapped_key, manifest_root, created_at,
             submitted_at, published_at)
         SELECT version, dataset, $4, 1, 'ready', '', 'MIT', $6, $5, now(), now(), now()
         FROM UNNEST($1::uuid[], $2::uuid[], $3::uuid[]) AS it (dataset, version, offer)",
        "INSERT INTO offers (offer_id, dataset_id, account_id, asset_id, kind, is_gated, refund_seconds, created_at)
         SELECT offer, dataset, $4, (SELECT asset_id FROM assets), 'buy', false, 0, now()
         FROM UNNEST($1::uuid[], $2::uuid[], $3::uuid[]) AS it (dataset, version, offer) WHERE $5 <> $6",
    ] {
        let query = sqlx::query(sql).bind(&datasets).bind(&versions).bind(&ids);
        let query = query.bind(seller).bind(root.to_vec()).bind(&key[..]);
        query.execute(&mut *tx).await?;
    }
    let price = "INSERT INTO offer_prices (offer_id, number, price_base, platform_ppm, effective_at, created_at)
        SELECT it, 1, $2, 50000, now(), now() FROM UNNEST($1::uuid[]) it";
    let query = sqlx::query(price).bind(&ids).bind(i64::from(PRICE));
    query.execute(&mut *tx).await?;
    tx.commit().await?;
    Ok(offers)
}

/// Requests that buy: each buyer takes the next dataset in turn.
async fn buying(place: &Place, offers: Vec<OfferId>) -> anyhow::Result<Arc<Request>> {
    let asset: String = sqlx::query_scalar(
        "SELECT 'eip155:' || chain_id || '/erc20:0x' || encode(token, 'hex') FROM assets",
    )
    .fetch_one(&place.owner)
    .await?;
    // As the service writes it, with the checksum in the letters' case.
    let (chain, token) = asset.split_once("0x").unwrap_or_default();
    let token: alloy_primitives::Address = token.parse()?;
    let price =
        json!({ "amount": PRICE.to_string(), "asset": format!("{chain}{token}"), "decimals": 18 });
    let bearers = place.bearers.clone();
    Ok(Arc::new(move |number| {
        let number = usize::try_from(number).unwrap_or_default();
        let offer = offers[number / CLIENTS % offers.len()];
        let body = json!({ "offer": offer, "expected_price": price }).to_string();
        let headers = format!(
            "authorization: {}\r\nidempotency-key: {}\r\n",
            bearers[number % CLIENTS],
            nonce()
        );
        load::post("/v1/purchases", &headers, &body)
    }))
}

/// Beside TPC-B: each purchase holds its price, gives the right, charges, shares, receipts and keeps its reply.
pub async fn purchases(setting: &Setting) -> anyhow::Result<Rounds> {
    let place = Place::make(setting.database()?, ACCOUNTS, 0).await?;
    let seller =
        sqlx::query_scalar("SELECT account_id FROM accounts ORDER BY account_id DESC LIMIT 1");
    let seller = seller.fetch_one(&place.owner).await?;
    let offers = put_on_sale(&place, seller).await?;
    let request = buying(&place, offers).await?;
    let begun = std::sync::atomic::AtomicU64::new(0);
    let begun = Arc::new(begun);
    // The load counts its requests from zero each time; what was bought is not bought again.
    let request: Arc<Request> =
        Arc::new(move |_| request(begun.fetch_add(1, std::sync::atomic::Ordering::Relaxed)));
    load::closed(place.api_address, CLIENTS, WARM_UP, &request).await?;
    let reference = Reference::make(setting.database()?).await?;
    let lasting = Duration::from_secs(u64::from(setting.seconds));
    let mut rounds = Rounds::default();
    for _ in 0..setting.rounds {
        let plain = reference.tpcb(PGBENCH_CLIENTS, setting.seconds).await?;
        let ours = load::closed(place.api_address, CLIENTS, lasting, &request).await?;
        rounds.note(ours.per_second, plain);
    }
    reference.clear().await?;
    place.clear().await?;
    Ok(rounds)
}
