use std::fs;

use ::time::Duration;
use axum::http::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::PgPool;

use super::{Shop, shared};
use crate::datasets;

const GATED: u32 = 86_400;

fn id(path: &str) -> &str {
    path.rsplit('/').next().unwrap()
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_request_holds_the_price_and_its_time_begins_with_the_answer(db: PgPool) {
    let shop = Shop::open(db, 1_000).await;
    let terms = json!({ "kind": "rent", "period_seconds": 3600, "minimum_seconds": 0, "answer_seconds": GATED });
    let offer = shop.offer(terms, 1).await;
    let mut wish = shop.wish(&offer, 600);
    (wish["seconds"], wish["note"]) = (json!(600), json!("for my thesis"));
    let path = shop.taken(&wish).await;
    let asked = shop.read(&path).await;
    assert_eq!(
        (asked.text("/state"), &asked.json["starts_at"]),
        ("requested", &Value::Null)
    );
    assert_eq!(shop.purse().await, (400, 600));
    shop.take(&wish)
        .await
        .expect_problem(StatusCode::CONFLICT, "already_requested");
    shop.app.pass(Duration::hours(20));
    let approve = format!("/v1/sales/{}/approve", id(&path));
    let granted = shop.sell(&approve, &json!({})).await.expect(StatusCode::OK);
    assert_eq!(
        (granted.text("/state"), granted.text("/note")),
        ("granted", "for my thesis")
    );
    shop.sell(&approve, &json!({})).await.expect(StatusCode::OK);
    shop.pass(Duration::seconds(599)).await;
    assert_eq!(shop.read(&path).await.text("/state"), "granted");
    shop.pass(Duration::seconds(1)).await;
    assert_eq!(shop.read(&path).await.text("/charged/amount"), "600");
    let deny = format!("/v1/sales/{}/deny", id(&path));
    let late = shop.sell(&deny, &json!({ "reason": "no" })).await;
    late.expect_problem(StatusCode::CONFLICT, "request_answered");
    assert_eq!(shop.earned().await, shared(600).0);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_is_denied_or_not_answered_costs_nothing(db: PgPool) {
    let shop = Shop::open(db, 1_000).await;
    let terms = json!({ "kind": "buy", "answer_seconds": GATED, "refund_seconds": 60 });
    let offer = shop.offer(terms, 333).await;
    let path = shop.taken(&shop.wish(&offer, 333)).await;
    let deny = format!("/v1/sales/{}/deny", id(&path));
    for reason in [String::new(), "x".repeat(1_001)] {
        let refused = shop.sell(&deny, &json!({ "reason": reason })).await;
        refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    }
    let denied = shop.sell(&deny, &json!({ "reason": "not for this" })).await;
    assert_eq!(
        denied.expect(StatusCode::OK).text("/reason"),
        "not for this"
    );
    assert_eq!(shop.purse().await, (1_000, 0));
    let approve = |path: &str| format!("/v1/sales/{}/approve", id(path));
    let late = shop.sell(&approve(&path), &json!({})).await;
    late.expect_problem(StatusCode::CONFLICT, "request_answered");
    // Somebody asks again, and nobody answers.
    let again = shop.taken(&shop.wish(&offer, 333)).await;
    shop.app.pass(Duration::days(1));
    let late = shop.sell(&approve(&again), &json!({})).await;
    late.expect_problem(StatusCode::CONFLICT, "request_answered");
    shop.settle().await;
    assert_eq!(shop.read(&again).await.text("/state"), "lapsed");
    assert_eq!((shop.purse().await, shop.earned().await), ((1_000, 0), 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn who_asked_to_compute_is_let_compute_and_no_more(db: PgPool) {
    let shop = Shop::open(db, 0).await;
    let terms =
        json!({ "kind": "compute_only", "output_bytes_max": 1_000, "answer_seconds": GATED });
    let offer = shop.offer(terms, 5).await;
    let path = shop.taken(&shop.wish(&offer, 0)).await;
    let approve = format!("/v1/sales/{}/approve", id(&path));
    let granted = shop.sell(&approve, &json!({})).await.expect(StatusCode::OK);
    assert_eq!(
        (granted.text("/state"), granted.text("/allows")),
        ("settled", "compute")
    );
    shop.take(&shop.wish(&offer, 0))
        .await
        .expect_problem(StatusCode::CONFLICT, "already_owned");
}

fn answer(path: &str, what: &str) -> String {
    format!("/v1/sales/{}/{what}", id(path))
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn whoever_asked_takes_it_back_before_the_answer(db: PgPool) {
    let shop = Shop::open(db, 1_000).await;
    let buy = json!({ "kind": "buy", "answer_seconds": GATED });
    let buy = shop.offer(buy, 333).await;
    let monthly = json!({ "kind": "subscribe", "period_seconds": GATED, "answer_seconds": GATED });
    let monthly = shop.offer(monthly, 100).await;
    let asked = shop.taken(&shop.wish(&buy, 333)).await;
    for _ in 0..2 {
        let back = shop.act(&format!("{asked}/refund")).await;
        assert_eq!(back.expect(StatusCode::OK).text("/state"), "refunded");
    }
    let late = shop.sell(&answer(&asked, "approve"), &json!({})).await;
    late.expect_problem(StatusCode::CONFLICT, "request_answered");
    // A subscription ends with the request for it, whichever of the three ends it.
    for ends in ["refund", "end", "cancel"] {
        let asked = shop.taken(&shop.wish(&monthly, 100)).await;
        let subscription = shop.read(&asked).await.text("/subscription").to_owned();
        let subscription = format!("/v1/subscriptions/{subscription}");
        let path = if ends == "cancel" {
            &subscription
        } else {
            &asked
        };
        for _ in 0..2 {
            shop.act(&format!("{path}/{ends}"))
                .await
                .expect(StatusCode::OK);
        }
        let ended = shop.read(&subscription).await;
        assert_eq!(
            (ended.text("/state"), ended.text("/ended_because")),
            ("ended", "cancelled"),
            "{ends}"
        );
        assert_eq!(shop.read(&asked).await.text("/state"), "refunded", "{ends}");
        assert_eq!(shop.purse().await, (1_000, 0), "{ends}");
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn who_bought_it_elsewhere_meanwhile_gets_the_price_of_the_request_back(db: PgPool) {
    let shop = Shop::open(db, 1_000).await;
    let gated = json!({ "kind": "buy", "answer_seconds": GATED });
    let gated = shop.offer(gated, 333).await;
    let open = shop.offer(json!({ "kind": "buy" }), 400).await;
    let asked = shop.taken(&shop.wish(&gated, 333)).await;
    let bought = shop.taken(&shop.wish(&open, 400)).await;
    let answered = shop.sell(&answer(&asked, "approve"), &json!({})).await;
    let answered = answered.expect(StatusCode::OK);
    assert_eq!(answered.text("/state"), "refunded");
    assert!(answered.text("/reason").ends_with(id(&bought)));
    assert_eq!(shop.purse().await, (600, 400), "it is paid for once");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn rentals_that_are_asked_for_follow_one_another(db: PgPool) {
    let shop = Shop::open(db, 2_000).await;
    let terms = json!({ "kind": "rent", "period_seconds": 3600, "minimum_seconds": 0, "answer_seconds": GATED });
    let offer = shop.offer(terms, 1).await;
    let mut wish = shop.wish(&offer, 1_000);
    wish["seconds"] = json!(1_000);
    let first = shop.taken(&wish).await;
    let granted = shop.sell(&answer(&first, "approve"), &json!({})).await;
    let granted = granted.expect(StatusCode::OK);
    shop.app.pass(Duration::seconds(400));
    let second = shop.taken(&wish).await;
    let next = shop.sell(&answer(&second, "approve"), &json!({})).await;
    let next = next.expect(StatusCode::OK);
    assert_eq!(
        next.text("/starts_at"),
        granted.text("/ends_at"),
        "no second is paid twice"
    );
    shop.pass(Duration::seconds(1_600)).await;
    assert_eq!(shop.purse().await, (0, 0));
    assert_eq!(shop.earned().await, shared(2_000).0);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_somebody_asked_for_is_not_shredded_before_the_answer(db: PgPool) {
    let shop = Shop::open(db, 1_000).await;
    let gated = json!({ "kind": "buy", "answer_seconds": GATED });
    let gated = shop.offer(gated, 333).await;
    let asked = shop.taken(&shop.wish(&gated, 333)).await;
    shop.sell(&format!("{}/withdraw", shop.dataset), &json!({}))
        .await
        .expect(StatusCode::OK);
    let shred = || async {
        let seller = shop.app.renewed(&shop.seller);
        let version = shop.app.request(Method::DELETE, &shop.version);
        version.by(&seller).send().await
    };
    let refused = shred().await;
    refused.expect_problem(StatusCode::CONFLICT, "version_sold");
    shop.sell(&answer(&asked, "deny"), &json!({ "reason": "gone" }))
        .await
        .expect(StatusCode::OK);
    assert_eq!(shred().await.text("/state"), "shredded");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn nobody_is_let_in_on_what_cannot_be_served(db: PgPool) {
    let shop = Shop::open(db, 1_000).await;
    let gated = json!({ "kind": "buy", "answer_seconds": GATED });
    let gated = shop.offer(gated, 333).await;
    let asked = shop.taken(&shop.wish(&gated, 333)).await;
    // The version was looked at when it was asked for, and is believed for a minute.
    shop.app.pass(Duration::minutes(2));
    for object in datasets::objects(&shop.app) {
        fs::remove_file(object).unwrap();
    }
    let approved = shop.sell(&answer(&asked, "approve"), &json!({})).await;
    approved.expect_problem(StatusCode::SERVICE_UNAVAILABLE, "dataset_unavailable");
    assert_eq!(shop.read(&asked).await.text("/state"), "requested");
    let denied = shop
        .sell(&answer(&asked, "deny"), &json!({ "reason": "it is lost" }))
        .await;
    denied.expect(StatusCode::OK);
    assert_eq!(shop.purse().await, (1_000, 0));
}
