//! What a freeze stops.

use axum::http::StatusCode;
use comptoir_domain::{id::AccountId, takedown::Act};
use comptoir_store::{
    datasets as store_datasets,
    takedowns::{self, ActError},
};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use sqlx::PgPool;
use time::Duration;
use tower::ServiceExt as _;

use super::{HOUR, claim, is_blocked};
use crate::{
    admin,
    datasets::{self, get},
    harness::TestApp,
    purchases::Shop,
};

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_freeze_blocks_sales_bytes_and_the_catalogue_for_everybody(db: PgPool) {
    let shop = Shop::open(db, 100).await;
    let terms = json!({ "kind": "buy", "refund_seconds": HOUR });
    let offer = shop.offer(terms, 10).await;
    let content = shop.content().await;
    shop.taken(&shop.wish(&offer, 10)).await;
    shop.read(&content).await;
    let link = content.replace("/content", "/links");
    let link = shop.act(&link).await.expect(StatusCode::CREATED);
    let link = link.text("/url").split_once("/v1/").unwrap().1.to_owned();
    let search = shop.asks(&shop.buyer, "/v1/catalog").await;
    assert_eq!(search.json["data"].as_array().unwrap().len(), 1);

    let (claimant, takedown) = shop.frozen().await;
    let late = shop.app.session().await;
    for reader in [&shop.buyer, &shop.seller, &late] {
        is_blocked(shop.asks(reader, &content).await, &takedown);
    }
    let links = content.replace("/content", "/links");
    is_blocked(shop.act(&links).await, &takedown);
    let followed = shop.app.get(&format!("/v1/{link}")).send().await;
    is_blocked(followed, &takedown);
    let wish = shop.wish(&offer, 10);
    let taken = shop.app.post("/v1/purchases", &wish).by(&claimant);
    let taken = taken.send().await;
    is_blocked(taken, &takedown);
    let quote = shop
        .app
        .post(&format!("/v1/offers/{offer}/quote"), &json!({}));
    is_blocked(quote.by(&late).send().await, &takedown);
    let search = shop.asks(&shop.buyer, "/v1/catalog").await;
    assert_eq!(search.json["data"], json!([]));
    let dataset = shop.read(&shop.dataset).await;
    assert!(takedown.ends_with(dataset.text("/blocked_by")));

    let rejected = shop.decide(&takedown, "reject").await;
    assert_eq!(rejected.text("/state"), "rejected");
    assert_eq!(
        shop.read(&shop.dataset).await.json["blocked_by"],
        Value::Null
    );
    shop.read(&content).await;
    let search = shop.asks(&shop.buyer, "/v1/catalog").await;
    assert_eq!(search.json["data"].as_array().unwrap().len(), 1);
    let (available, held) = shop.purse().await;
    assert_eq!((available, held), (90, 0), "what was read is paid");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_dataset_that_its_seller_took_off_the_list_is_taken_down_all_the_same(db: PgPool) {
    let shop = Shop::open(db, 100).await;
    let offer = shop.offer(json!({ "kind": "buy" }), 10).await;
    let content = shop.content().await;
    shop.taken(&shop.wish(&offer, 10)).await;
    let withdraw = format!("{}/withdraw", shop.dataset);
    let withdrawn = datasets::act(&shop.app, &shop.seller, &withdraw).await;
    withdrawn.expect(StatusCode::OK);
    shop.read(&content).await;
    let (_, takedown) = shop.frozen().await;
    is_blocked(shop.asks(&shop.buyer, &content).await, &takedown);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_freeze_counts_before_its_steps_have_come(db: PgPool) {
    let shop = Shop::open(db, 10_000).await;
    let gated = json!({ "kind": "buy", "answer_seconds": HOUR });
    let gated = shop.offer(gated, 10).await;
    let asked = shop.taken(&shop.wish(&gated, 10)).await;
    let bought = json!({ "kind": "buy", "refund_seconds": HOUR });
    let bought = shop.offer(bought, 100).await;
    let bought = shop.taken(&shop.wish(&bought, 100)).await;
    let (_, takedown) = shop.filed().await;
    shop.app.pass(Duration::minutes(30));
    shop.decide(&takedown, "freeze")
        .await
        .expect(StatusCode::OK);

    let approve = asked.replace("/v1/purchases/", "/v1/sales/") + "/approve";
    is_blocked(shop.sell(&approve, &json!({})).await, &takedown);
    // What nobody could read for the last half hour of its window is not charged at its end.
    shop.pass(Duration::HOUR).await;
    for path in [&asked, &bought] {
        assert_eq!(shop.read(path).await.text("/state"), "refunded", "{path}");
    }
    assert_eq!(shop.purse().await, (10_000, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_freeze_waits_for_who_is_charging_what_is_not_blocked(db: PgPool) {
    let shop = Shop::open(db, 0).await;
    let (_, takedown) = shop.filed().await;
    let [dataset, takedown] = [&shop.dataset, &takedown].map(|it| it.rsplit('/').next().unwrap());
    let (dataset, takedown) = (dataset.parse().unwrap(), takedown.parse().unwrap());
    let freeze = async || {
        let mut tx = shop.app.owner.begin().await.unwrap();
        sqlx::query("SET LOCAL lock_timeout = '100ms'")
            .execute(&mut *tx)
            .await
            .unwrap();
        let by = (AccountId::generate(), takedown);
        let decided = takedowns::decide(&mut tx, by, (Act::Freeze, "x"), shop.app.now()).await;
        tx.commit().await.unwrap();
        decided.map(drop)
    };
    let mut charging = shop.app.state.db.begin().await.unwrap();
    let block = store_datasets::block(&mut charging, dataset).await.unwrap();
    assert_eq!(block, None);
    let waits = freeze().await.unwrap_err();
    assert!(matches!(waits, ActError::Database(_)), "{waits:?}");
    charging.commit().await.unwrap();
    freeze().await.unwrap();
    let mut charging = shop.app.state.db.begin().await.unwrap();
    let block = store_datasets::block(&mut charging, dataset).await.unwrap();
    assert_eq!(block.map(|it| it.by), Some(takedown));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_dataset_is_blocked_until_the_last_takedown_of_it_is_decided(db: PgPool) {
    let shop = Shop::open(db, 10_000).await;
    let first = shop.rented_and_frozen().await;
    let (claimant, second) = shop.frozen().await;
    shop.decide(&first, "reject").await.expect(StatusCode::OK);
    assert_eq!(
        shop.move_proceeds().await,
        0,
        "the other one is not decided"
    );
    let content = shop.content().await;
    is_blocked(shop.asks(&shop.buyer, &content).await, &second);
    // Who filed it does not take back what an operator did.
    let withdraw = format!("{second}/withdraw");
    let claimant = shop.app.renewed(&claimant);
    let late = datasets::act(&shop.app, &claimant, &withdraw).await;
    late.expect_problem(StatusCode::CONFLICT, "takedown_state");
    shop.decide(&second, "reject").await.expect(StatusCode::OK);
    assert_eq!(shop.move_proceeds().await, 2);
    assert_eq!(shop.earned().await, 665);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_download_that_is_under_way_ends_soon_after_its_dataset_is_frozen(db: PgPool) {
    let app = TestApp::new(db).await;
    let (seller, claimant) = (app.session().await, app.session().await);
    let bytes = datasets::patterned(5 * datasets::PART);
    let (dataset, _, files) = datasets::published(&app, &seller, &[("a.bin", &bytes)]).await;
    let listed = datasets::act(&app, &seller, &format!("{dataset}/list")).await;
    listed.expect(StatusCode::OK);
    let content = format!("{}/content", files[0]);
    let call = app.get(&content).by(&seller).build();
    let router = comptoir_api::app(app.state.clone()).0;
    let response = router.oneshot(call).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let mut body = response.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    let mut read = first.to_vec();

    let filed = app.post(&format!("{dataset}/takedowns"), &claim());
    let filed = filed.by(&claimant).send().await.expect(StatusCode::CREATED);
    let freeze = format!("/v1/admin/takedowns/{}/freeze", filed.text("/id"));
    let frozen = admin::act(&app, &admin::admin(&app).await, &freeze).await;
    frozen.expect(StatusCode::OK);
    let cut = loop {
        match body.frame().await {
            Some(Ok(frame)) => read.extend_from_slice(&frame.into_data().unwrap()),
            Some(Err(cut)) => break cut,
            None => panic!("all {} bytes came", read.len()),
        }
    };
    // The length that was announced did not come: no client takes what it has for the whole.
    assert_eq!(cut.to_string(), "the right is over");
    assert!(read.len() < bytes.len() && read == bytes[..read.len()]);
    get(&app, &seller, &content)
        .await
        .expect_problem(StatusCode::UNAVAILABLE_FOR_LEGAL_REASONS, "dataset_blocked");
}
