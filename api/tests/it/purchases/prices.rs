//! An offer's prices: each has a number of its own, whichever counts now.

use ::time::Duration;
use axum::http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;

use super::Shop;

/// The price of an offer that counts, its number, and the one that is told to come.
fn told(offer: &Value) -> (&str, i64, Option<&str>) {
    (
        offer["price"]["price"]["amount"].as_str().unwrap(),
        offer["price"]["number"].as_i64().unwrap(),
        offer["next_price"]["price"]["amount"].as_str(),
    )
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn prices_are_announced_and_taken_back_as_often_as_the_seller_likes(db: PgPool) {
    let shop = Shop::open(db, 10).await;
    let terms = json!({ "kind": "subscribe", "period_seconds": 86_400 });
    let offer = shop.offer(terms, 1_000).await;
    let path = format!("/v1/offers/{offer}");
    let announce = async |base| {
        let body = json!({ "price": shop.money(base) });
        let seller = shop.app.renewed(&shop.seller);
        let prices = format!("{path}/prices");
        let made = shop.app.post(&prices, &body).by(&seller).send().await;
        shop.app.pass(Duration::hours(1));
        made.expect(StatusCode::CREATED).json
    };
    for base in [1_001, 1_002, 1_003] {
        let next = announce(base).await;
        assert_eq!(told(&next), ("1000", 1, Some("1001")), "{base} comes later");
    }
    // A lower one counts at once, and nothing that was announced before it does any more.
    assert_eq!(told(&announce(900).await), ("900", 5, None));
    assert_eq!(told(&announce(901).await), ("900", 5, Some("901")));
    shop.app.pass(Duration::days(7));
    let read = shop.read(&path).await.json;
    assert_eq!(told(&read), ("901", 6, None));
}
