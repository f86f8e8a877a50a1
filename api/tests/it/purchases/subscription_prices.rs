//! What a subscription costs from its next period on: prices that were announced, the cap that its buyer set, and what is told of both.

use ::time::Duration;
use axum::http::{Method, StatusCode, header};
use serde_json::{Value, json};
use sqlx::PgPool;

use super::{Shop, shared};

const DAY: u32 = 86_400;

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_higher_price_counts_after_its_notice_and_never_above_the_cap(db: PgPool) {
    let shop = Shop::open(db, 10_000).await;
    let offer = shop
        .offer(
            json!({ "kind": "subscribe", "period_seconds": 5 * DAY }),
            100,
        )
        .await;
    let mut wish = shop.wish(&offer, 100);
    wish["cap"] = shop.money(99);
    let refused = shop.take(&wish).await;
    refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    wish["cap"] = shop.money(150);
    let path = shop.taken(&wish).await;
    let subscription = shop.read(&path).await.text("/subscription").to_owned();
    let subscription = format!("/v1/subscriptions/{subscription}");
    let price = |base| json!({ "price": shop.money(base) });
    let prices = format!("/v1/offers/{offer}/prices");
    let post = |body: Value| {
        let seller = shop.app.renewed(&shop.seller);
        let (app, prices) = (&shop.app, prices.clone());
        async move {
            app.post(&prices, &body)
                .by(&seller)
                .send()
                .await
                .expect(StatusCode::CREATED)
        }
    };
    let announced = post(price(150)).await;
    assert_eq!(
        (
            announced.text("/price/price/amount"),
            announced.text("/next_price/price/amount")
        ),
        ("100", "150")
    );
    // The first renewal is within the notice of seven days, the second is not.
    shop.pass(Duration::days(5)).await;
    assert_eq!(shop.purse().await, (9_800, 100));
    shop.pass(Duration::days(5)).await;
    assert_eq!(shop.purse().await, (9_650, 150));
    post(price(151)).await;
    shop.pass(Duration::days(5)).await;
    assert_eq!(shop.purse().await, (9_500, 150), "within the notice");
    // Its subscriber allows more, with the tag of what it read; and then less.
    let read = shop.read(&subscription).await;
    let patch = |tag: &str, base| {
        let buyer = shop.app.renewed(&shop.buyer);
        let call = shop.app.request(Method::PATCH, &subscription).by(&buyer);
        call.header(header::IF_MATCH, tag)
            .json(&json!({ "cap": shop.money(base) }))
            .send()
    };
    let tag = read.header(header::ETAG).to_owned();
    let changed = patch(&tag, 1_000).await.expect(StatusCode::OK);
    patch(&tag, 1).await.expect(StatusCode::PRECONDITION_FAILED);
    patch(changed.header(header::ETAG), 150)
        .await
        .expect(StatusCode::OK);
    shop.pass(Duration::days(5)).await;
    let ended = shop.read(&subscription).await;
    assert_eq!(
        (ended.text("/state"), ended.text("/ended_because")),
        ("ended", "price_above_cap")
    );
    assert_eq!(
        (shop.purse().await, shop.earned().await),
        ((9_500, 0), shared(500).0)
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn of_two_announced_prices_the_next_one_is_told(db: PgPool) {
    let shop = Shop::open(db, 10).await;
    let offer = shop
        .offer(json!({ "kind": "subscribe", "period_seconds": DAY }), 10)
        .await;
    let prices = format!("/v1/offers/{offer}/prices");
    let announce = async |base| {
        let body = json!({ "price": shop.money(base) });
        let seller = shop.app.renewed(&shop.seller);
        let made = shop.app.post(&prices, &body).by(&seller).send().await;
        made.expect(StatusCode::CREATED)
    };
    announce(100).await;
    shop.app.pass(Duration::hours(12));
    let told = announce(11).await;
    assert_eq!(told.text("/next_price/price/amount"), "100");
    shop.app.pass(Duration::days(7) - Duration::hours(12));
    let read = shop.read(&format!("/v1/offers/{offer}")).await;
    assert_eq!(
        (
            read.text("/price/price/amount"),
            read.text("/next_price/price/amount")
        ),
        ("100", "11")
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_subscriber_hears_of_a_dearer_price_a_renewal_what_hinders_one_and_the_end(db: PgPool) {
    let shop = Shop::open(db, 250).await;
    crate::webhooks::make(&shop.app, &shop.buyer).await;
    let offer = shop
        .offer(json!({ "kind": "subscribe", "period_seconds": DAY }), 100)
        .await;
    let path = shop.taken(&shop.wish(&offer, 100)).await;
    let subscription = shop.read(&path).await.text("/subscription").to_owned();
    let price = json!({ "price": shop.money(150) });
    let prices = format!("/v1/offers/{offer}/prices");
    let call = shop.app.post(&prices, &price).by(&shop.seller);
    call.send().await.expect(StatusCode::CREATED);
    let almost = Duration::seconds(i64::from(DAY) - 240);
    shop.pass(almost).await;
    shop.pass(Duration::seconds(240)).await;
    // The money covers no third period, which is tried more than once.
    shop.pass(almost).await;
    for _ in 0..2 {
        shop.pass(Duration::seconds(120)).await;
    }
    let events = shop.read("/v1/events").await;
    let events = events.json["data"].as_array().unwrap();
    let mut told: Vec<_> = events
        .iter()
        .filter(|it| it["data"]["subscription_id"] == *subscription)
        .collect();
    told.sort_by_key(|it| it["id"].as_str());
    let kinds: Vec<_> = told.iter().map(|it| it["type"].as_str().unwrap()).collect();
    assert_eq!(
        kinds,
        [
            "subscription.price_rising",
            "subscription.renewed",
            "subscription.renewal_failed",
            "subscription.ended"
        ]
    );
    let data = |n: usize| &told[n]["data"];
    assert_eq!(data(0)["price"]["amount"], "150");
    assert!(data(0)["effective_at"].is_string());
    assert_eq!(data(1)["price"]["amount"], "100");
    assert!(data(1)["purchase_id"].is_string());
    for n in [2, 3] {
        assert_eq!(data(n)["because"], "insufficient_funds");
        assert_eq!(data(n)["offer_id"], *offer);
    }
}
