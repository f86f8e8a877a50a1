use ::time::Duration;
use axum::http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;

use super::{Shop, shared};

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
