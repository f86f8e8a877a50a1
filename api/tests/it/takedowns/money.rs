//! What a freeze and either end of it do to the money.

use axum::http::StatusCode;
use comptoir_domain::ledger::EntryKind;
use serde_json::{Value, json};
use sqlx::PgPool;
use time::Duration;

use super::{HOUR, is_blocked};
use crate::{admin::told, harness::TestApp, purchases::Shop};

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_freeze_gives_back_what_nobody_read_and_ends_what_renews_itself(db: PgPool) {
    let shop = Shop::open(db, 1_000).await;
    let kinds = [
        json!({ "kind": "buy", "answer_seconds": HOUR }),
        json!({ "kind": "subscribe", "period_seconds": HOUR }),
        json!({ "kind": "buy", "refund_seconds": HOUR }),
    ];
    let mut taken = Vec::new();
    for terms in kinds {
        let offer = shop.offer(terms, 100).await;
        taken.push(shop.taken(&shop.wish(&offer, 100)).await);
    }
    let subscription = shop.read(&taken[1]).await.text("/subscription").to_owned();
    assert_eq!(shop.purse().await, (700, 300));
    shop.frozen().await;
    for path in [&taken[0], &taken[2]] {
        let refunded = shop.read(path).await;
        assert_eq!(refunded.text("/state"), "refunded", "{path}");
        assert_eq!(refunded.text("/reason"), "the dataset is blocked");
    }
    let ended = shop
        .read(&format!("/v1/subscriptions/{subscription}"))
        .await;
    assert_eq!(ended.text("/ended_because"), "taken_down");
    assert_eq!(shop.purse().await, (1_000, 0));
    shop.adds_up(1_000).await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_was_used_until_a_freeze_is_held_back_and_goes_back_when_nobody_contests_it(
    db: PgPool,
) {
    let shop = Shop::open(db, 10_000).await;
    let takedown = shop.rented_and_frozen().await;
    assert_eq!(shop.purse().await, (9_300, 0));
    assert_eq!(shop.held_back().await, (665, 35));
    assert_eq!((shop.earned().await, shop.house().await), (0, 0));
    shop.pass(Duration::days(14) - Duration::seconds(1)).await;
    assert_eq!(shop.state_of(&takedown).await, "frozen");
    assert_eq!(shop.move_proceeds().await, 0);

    shop.app.pass(Duration::seconds(1));
    // Its step is late, and the seller too.
    let late = shop.contest(&takedown).await;
    late.expect_problem(StatusCode::CONFLICT, "takedown_state");
    shop.settle().await;
    assert_eq!(shop.state_of(&takedown).await, "upheld");
    assert_eq!(told(&shop.app, "takedown.upheld").await.len(), 1);
    assert_eq!(shop.move_proceeds().await, 2);
    assert_eq!(shop.purse().await, (10_000, 0));
    assert_eq!(shop.held_back().await, (0, 0));
    assert_eq!(forfeits(&shop.app).await, 2);
    let content = shop.content().await;
    is_blocked(shop.asks(&shop.buyer, &content).await, &takedown);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_is_contested_is_back_when_nobody_decides_and_the_seller_gets_what_was_held_back(
    db: PgPool,
) {
    let shop = Shop::open(db, 10_000).await;
    let takedown = shop.rented_and_frozen().await;
    shop.app.pass(Duration::days(13));
    let contested = shop.contest(&takedown).await.expect(StatusCode::OK);
    assert_eq!(contested.text("/state"), "contested");
    shop.contest(&takedown)
        .await
        .expect_problem(StatusCode::CONFLICT, "takedown_state");
    shop.pass(Duration::days(14) - Duration::seconds(1)).await;
    assert_eq!(shop.state_of(&takedown).await, "contested");
    shop.pass(Duration::seconds(1)).await;
    assert_eq!(shop.state_of(&takedown).await, "rejected");
    let read = shop.asks(&shop.seller, &takedown).await;
    assert_eq!(read.json["reason"], Value::Null, "the clock gives none");
    assert_eq!(told(&shop.app, "takedown.rejected").await.len(), 1);
    assert_eq!(shop.move_proceeds().await, 2);
    assert_eq!(shop.held_back().await, (0, 0));
    assert_eq!((shop.purse().await, shop.earned().await), ((9_300, 0), 665));
    assert_eq!(forfeits(&shop.app).await, 0);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn time_after_a_freeze_is_not_charged_whoever_ends_it(db: PgPool) {
    let shop = Shop::open(db, 10_000).await;
    let terms = json!({ "kind": "rent", "period_seconds": HOUR, "minimum_seconds": 0 });
    let offer = shop.offer(terms, 7).await;
    let mut wish = shop.wish(&offer, 7_000);
    wish["seconds"] = json!(1_000);
    let rental = shop.taken(&wish).await;
    shop.app.pass(Duration::seconds(100));
    let (_, takedown) = shop.filed().await;
    shop.decide(&takedown, "freeze")
        .await
        .expect(StatusCode::OK);
    shop.app.pass(Duration::seconds(400));
    let ended = shop.act(&format!("{rental}/end")).await;
    assert_eq!(ended.text("/charged/amount"), "700");
    assert_eq!(shop.held_back().await, (665, 35));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn who_leaves_by_the_contract_does_not_wait_for_an_operator(db: PgPool) {
    let shop = Shop::open(db, 10_000).await;
    shop.rented_and_frozen().await;
    let exit = "INSERT INTO exits (asset_id, event_seq, owner, block_number, due_at, seen_at) VALUES ($1, 1, $2, 1, $3, $4)";
    sqlx::query(exit)
        .bind(shop.asset.id)
        .bind(shop.paid.to_vec())
        .bind(shop.app.now() + Duration::weeks(3))
        .bind(shop.app.now())
        .execute(&shop.app.owner)
        .await
        .unwrap();
    shop.app.pass(Duration::weeks(2) - Duration::seconds(1));
    assert_eq!(shop.move_proceeds().await, 0);
    shop.app.pass(Duration::seconds(1));
    assert_eq!(
        shop.move_proceeds().await,
        1,
        "the seller's, and nobody else's"
    );
    assert_eq!(
        (shop.held_back().await, shop.earned().await),
        ((0, 35), 665)
    );
}

/// How much was forfeited, in entries.
async fn forfeits(app: &TestApp) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM journal_entries WHERE kind = $1")
        .bind(EntryKind::Forfeit.as_str())
        .fetch_one(&app.owner)
        .await
        .unwrap()
}
