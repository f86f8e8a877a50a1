//! Subscriptions: periods that renew themselves, and what hinders that.

use ::time::Duration;
use axum::http::{StatusCode, header};
use comptoir_api::steps;
use serde_json::json;
use sqlx::PgPool;

use super::{Shop, shared};
use crate::datasets;

const DAY: u32 = 86_400;

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_period_that_was_read_is_charged_for_its_least_time_or_for_what_its_seller_says(
    db: PgPool,
) {
    let shop = Shop::open(db, 300_000).await;
    let content = shop.content().await;
    for (minimum, charged) in [
        (json!(null), "3333"),
        (json!(0), "0"),
        (json!(30 * DAY), "100000"),
    ] {
        let mut terms = json!({ "kind": "subscribe", "period_seconds": 30 * DAY });
        terms["minimum_seconds"] = minimum;
        let offer = shop.offer(terms, 100_000).await;
        let path = shop.taken(&shop.wish(&offer, 100_000)).await;
        shop.read(&content).await;
        shop.app.pass(Duration::seconds(20));
        let ended = shop.act(&format!("{path}/end")).await;
        assert_eq!(ended.text("/charged/amount"), charged);
        shop.adds_up(300_000).await;
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_subscription_renews_itself_without_a_gap_and_once_however_many_renew_it(db: PgPool) {
    let shop = Shop::open(db, 250).await;
    let offer = shop
        .offer(json!({ "kind": "subscribe", "period_seconds": DAY }), 100)
        .await;
    let path = shop.taken(&shop.wish(&offer, 100)).await;
    let subscription = shop.read(&path).await;
    let subscription = format!("/v1/subscriptions/{}", subscription.text("/subscription"));
    shop.take(&shop.wish(&offer, 100))
        .await
        .expect_problem(StatusCode::CONFLICT, "already_subscribed");
    // Four minutes before the end the next period is held already; the first one goes on.
    shop.app.pass(Duration::seconds(i64::from(DAY) - 240));
    let renewals = (0..4).map(|_| steps::step(&shop.app.state));
    for renewed in futures::future::join_all(renewals).await {
        renewed.unwrap();
    }
    assert_eq!(
        (shop.read(&path).await.text("/state"), shop.purse().await),
        ("granted", (50, 200))
    );
    let next = shop.read(&subscription).await.text("/period").to_owned();
    let next = shop.read(&format!("/v1/purchases/{next}")).await;
    assert_eq!(
        next.text("/starts_at"),
        shop.read(&path).await.text("/ends_at")
    );
    shop.pass(Duration::seconds(240)).await;
    assert_eq!(
        (
            shop.read(&path).await.text("/charged/amount"),
            shop.purse().await
        ),
        ("100", (50, 100))
    );
    // The money does not cover a third: the subscription ends with its second period, and says why.
    shop.pass(Duration::seconds(i64::from(DAY) - 1)).await;
    assert_eq!(shop.read(&subscription).await.text("/state"), "active");
    shop.pass(Duration::seconds(1)).await;
    let ended = shop.read(&subscription).await;
    assert_eq!(
        (ended.text("/state"), ended.text("/ended_because")),
        ("ended", "insufficient_funds")
    );
    assert_eq!(
        (shop.purse().await, shop.earned().await),
        ((50, 0), shared(200).0)
    );
    shop.adds_up(250).await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_period_that_is_ended_is_prorated_and_ends_its_subscription(db: PgPool) {
    let shop = Shop::open(db, 1_000).await;
    let offer = shop
        .offer(json!({ "kind": "subscribe", "period_seconds": DAY }), 100)
        .await;
    let path = shop.taken(&shop.wish(&offer, 100)).await;
    // In the time in which the next one is held already.
    shop.pass(Duration::seconds(i64::from(DAY) - 60)).await;
    assert_eq!(shop.purse().await, (800, 200));
    let ended = shop
        .act(&format!("{path}/end"))
        .await
        .expect(StatusCode::OK);
    assert_eq!(
        ended.text("/charged/amount"),
        "99",
        "86,340 of 86,400 seconds of 100, rounded down"
    );
    assert_eq!(
        shop.purse().await,
        (901, 0),
        "the period that had not begun costs nothing"
    );
    let subscription = format!("/v1/subscriptions/{}", ended.text("/subscription"));
    assert_eq!(
        shop.read(&subscription).await.text("/ended_because"),
        "cancelled"
    );
    shop.pass(Duration::days(3)).await;
    assert_eq!(shop.purse().await, (901, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_cancelled_subscription_lasts_until_the_end_of_what_is_paid(db: PgPool) {
    let shop = Shop::open(db, 1_000).await;
    let offer = shop
        .offer(json!({ "kind": "subscribe", "period_seconds": DAY }), 100)
        .await;
    let path = shop.taken(&shop.wish(&offer, 100)).await;
    let subscription = shop.read(&path).await.text("/subscription").to_owned();
    let cancel = format!("/v1/subscriptions/{subscription}/cancel");
    for _ in 0..2 {
        assert_eq!(
            shop.act(&cancel)
                .await
                .expect(StatusCode::OK)
                .text("/state"),
            "ending"
        );
    }
    shop.pass(Duration::seconds(i64::from(DAY) - 1)).await;
    assert_eq!(shop.read(&path).await.text("/state"), "granted");
    shop.pass(Duration::days(2)).await;
    let subscription = shop
        .read(&format!("/v1/subscriptions/{subscription}"))
        .await;
    assert_eq!(
        (
            subscription.text("/state"),
            subscription.text("/ended_because")
        ),
        ("ended", "cancelled")
    );
    assert_eq!(shop.purse().await, (900, 0));
    // Whoever comes back subscribes anew.
    shop.taken(&shop.wish(&offer, 100)).await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_period_that_was_begun_ahead_goes_back_with_its_subscription(db: PgPool) {
    let shop = Shop::open(db, 1_000).await;
    let offer = shop
        .offer(json!({ "kind": "subscribe", "period_seconds": DAY }), 100)
        .await;
    let path = shop.taken(&shop.wish(&offer, 100)).await;
    let subscription = shop.read(&path).await.text("/subscription").to_owned();
    let subscription = format!("/v1/subscriptions/{subscription}");
    shop.pass(Duration::seconds(i64::from(DAY) - 60)).await;
    assert_eq!(
        shop.purse().await,
        (800, 200),
        "the next one is held already"
    );
    let ending = shop.act(&format!("{subscription}/cancel")).await;
    let ending = ending.expect(StatusCode::OK);
    assert_eq!(ending.text("/state"), "ending");
    assert!(path.ends_with(ending.text("/period")));
    assert_eq!(shop.purse().await, (900, 100));
    shop.read(&shop.content().await).await;
    shop.pass(Duration::days(2)).await;
    let ended = shop.read(&subscription).await;
    assert_eq!(
        (ended.text("/state"), ended.text("/ended_because")),
        ("ended", "cancelled")
    );
    assert_eq!(
        (shop.purse().await, shop.earned().await),
        ((900, 0), shared(100).0)
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_period_that_cannot_be_served_goes_back_with_the_one_that_was_begun_ahead(db: PgPool) {
    let shop = Shop::open(db, 1_000).await;
    let offer = shop
        .offer(json!({ "kind": "subscribe", "period_seconds": DAY }), 100)
        .await;
    let path = shop.taken(&shop.wish(&offer, 100)).await;
    let content = shop.content().await;
    shop.pass(Duration::seconds(i64::from(DAY) - 60)).await;
    assert_eq!(shop.purse().await, (800, 200));
    for object in datasets::objects(&shop.app) {
        std::fs::remove_file(object).unwrap();
    }
    let buyer = shop.app.renewed(&shop.buyer);
    let lost = datasets::get(&shop.app, &buyer, &content).await;
    lost.expect_problem(StatusCode::SERVICE_UNAVAILABLE, "dataset_unavailable");
    assert_eq!(shop.read(&path).await.text("/state"), "refunded");
    assert_eq!(shop.purse().await, (1_000, 0));
    shop.pass(Duration::days(2)).await;
    assert_eq!(shop.purse().await, (1_000, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_closed_offer_ends_subscriptions_with_their_period(db: PgPool) {
    let shop = Shop::open(db, 1_000).await;
    let offer = shop
        .offer(json!({ "kind": "subscribe", "period_seconds": DAY }), 100)
        .await;
    let path = shop.taken(&shop.wish(&offer, 100)).await;
    shop.sell(&format!("/v1/offers/{offer}/close"), &json!({}))
        .await
        .expect(StatusCode::OK);
    shop.pass(Duration::days(1)).await;
    let subscription = shop.read(&path).await.text("/subscription").to_owned();
    let subscription = shop
        .read(&format!("/v1/subscriptions/{subscription}"))
        .await;
    assert_eq!(subscription.text("/ended_because"), "offer_closed");
    assert_eq!(shop.purse().await, (900, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_key_with_a_limit_renews_no_further_than_that(db: PgPool) {
    let shop = Shop::open(db, 1_000).await;
    let offer = shop
        .offer(json!({ "kind": "subscribe", "period_seconds": 3_600 }), 100)
        .await;
    let limit = json!({ "amount": shop.money(250), "period": "lifetime" });
    let key = json!({ "name": "k", "scopes": ["purchases:write", "purchases:read", "datasets:read"], "spend_limit": limit });
    let buyer = shop.app.renewed(&shop.buyer);
    let made = shop.app.post("/v1/keys", &key).by(&buyer).send().await;
    let secret = made.expect(StatusCode::CREATED).text("/key").to_owned();
    let taken = shop
        .app
        .post("/v1/purchases", &shop.wish(&offer, 100))
        .header(header::AUTHORIZATION, &format!("Bearer {secret}"))
        .send()
        .await;
    let subscription = taken.expect(StatusCode::CREATED);
    let subscription = format!("/v1/subscriptions/{}", subscription.text("/subscription"));
    for _ in 0..4 {
        shop.pass(Duration::hours(1)).await;
    }
    let ended = shop.read(&subscription).await;
    assert_eq!(
        (ended.text("/state"), ended.text("/ended_because")),
        ("ended", "spend_limit")
    );
    assert_eq!(shop.purse().await, (800, 0), "two periods of three");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn nothing_is_renewed_for_who_is_frozen_or_has_it_for_good(db: PgPool) {
    let shop = Shop::open(db, 10_000).await;
    for because in ["owned", "frozen"] {
        let offer = shop
            .offer(json!({ "kind": "subscribe", "period_seconds": DAY }), 100)
            .await;
        let path = shop.taken(&shop.wish(&offer, 100)).await;
        let subscription = shop.read(&path).await.text("/subscription").to_owned();
        let subscription = format!("/v1/subscriptions/{subscription}");
        if because == "owned" {
            let buy = json!({ "kind": "buy", "refund_seconds": DAY });
            let buy = shop.offer(buy, 10).await;
            let bought = shop.taken(&shop.wish(&buy, 10)).await;
            shop.pass(Duration::days(1)).await;
            let ended = shop.read(&subscription).await;
            assert_eq!(ended.text("/ended_because"), because);
            // Given back, so that the next one can be subscribed to.
            sqlx::query("UPDATE entitlements SET ended_at = now() WHERE ends_at IS NULL")
                .execute(&shop.app.owner)
                .await
                .unwrap();
            drop(bought);
        } else {
            super::freeze(&shop.app, shop.buyer.account).await;
            shop.pass(Duration::days(1)).await;
            let why: String = sqlx::query_scalar(
                "SELECT ended_because FROM subscriptions ORDER BY subscription_id DESC LIMIT 1",
            )
            .fetch_one(&shop.app.owner)
            .await
            .unwrap();
            assert_eq!(why, because);
        }
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn nobody_pays_for_time_that_a_late_step_left_without_a_right(db: PgPool) {
    let shop = Shop::open(db, 1_000).await;
    let offer = shop
        .offer(json!({ "kind": "subscribe", "period_seconds": DAY }), 100)
        .await;
    let path = shop.taken(&shop.wish(&offer, 100)).await;
    let subscription = shop.read(&path).await.text("/subscription").to_owned();
    shop.pass(Duration::hours(36)).await;
    let next = shop
        .read(&format!("/v1/subscriptions/{subscription}"))
        .await;
    let next = format!("/v1/purchases/{}", next.text("/period"));
    let ended = shop.act(&format!("{next}/end")).await;
    assert_eq!(ended.expect(StatusCode::OK).text("/charged/amount"), "0");
    assert_eq!(shop.purse().await, (900, 0));
}
