use axum::http::StatusCode;
use comptoir_devchain::wait_for_a_lock;
use serde_json::json;
use sqlx::PgPool;

use super::Shop;
use crate::{datasets, market};

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn each_purchase_that_cannot_be_has_its_answer_and_holds_nothing(db: PgPool) {
    let shop = Shop::open(db, 1_000).await;
    let offer = shop.offer(json!({ "kind": "buy" }), 333).await;
    let wish = shop.wish(&offer, 333);
    let own = shop
        .app
        .post("/v1/purchases", &wish)
        .by(&shop.seller)
        .send()
        .await;
    own.expect_problem(StatusCode::CONFLICT, "own_dataset");
    let cheaper = shop.take(&shop.wish(&offer, 332)).await;
    let cheaper = cheaper.expect_problem(StatusCode::CONFLICT, "price_changed");
    assert!(
        cheaper.text("/detail").contains("333"),
        "it says what it costs: {}",
        cheaper.json
    );
    let poor = market::client(&shop.app, &shop.asset, 332).await.0;
    let unpaid = shop.app.post("/v1/purchases", &wish).by(&poor).send().await;
    unpaid.expect_problem(StatusCode::PAYMENT_REQUIRED, "insufficient_funds");
    let nobody = shop.app.session().await;
    let unbound = shop
        .app
        .post("/v1/purchases", &wish)
        .by(&nobody)
        .send()
        .await;
    unbound.expect_problem(StatusCode::CONFLICT, "address_not_bound");
    let unknown = format!("off_{}", "0".repeat(26));
    let unknown = shop.take(&shop.wish(&unknown, 333)).await;
    unknown.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    let mut other_token = wish.clone();
    other_token["expected_price"]["asset"] =
        json!("eip155:1/erc20:0x0000000000000000000000000000000000000001");
    shop.take(&other_token)
        .await
        .expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    for (field, value) in [
        ("seconds", json!(60)),
        ("cap", shop.money(1)),
        ("note", json!("please")),
    ] {
        let mut wish = wish.clone();
        wish[field] = value;
        let refused = shop.take(&wish).await;
        let refused = refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
        assert_eq!(refused.text("/errors/0/pointer"), format!("/{field}"));
    }
    assert_eq!(shop.purse().await, (1_000, 0));
    shop.taken(&wish).await;
    shop.take(&wish)
        .await
        .expect_problem(StatusCode::CONFLICT, "already_owned");
    // What one has for good need not be rented either.
    let rent = shop
        .offer(
            json!({ "kind": "rent", "period_seconds": 60, "minimum_seconds": 0 }),
            1,
        )
        .await;
    let mut wish = shop.wish(&rent, 60);
    wish["seconds"] = json!(60);
    shop.take(&wish)
        .await
        .expect_problem(StatusCode::CONFLICT, "already_owned");
    assert_eq!(shop.purse().await, (667, 333));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_is_closed_or_withdrawn_is_not_sold(db: PgPool) {
    let shop = Shop::open(db, 1_000).await;
    let offer = shop.offer(json!({ "kind": "buy" }), 333).await;
    let wish = shop.wish(&offer, 333);
    shop.sell(&format!("{}/withdraw", shop.dataset), &json!({}))
        .await
        .expect(StatusCode::OK);
    let quote = format!("/v1/offers/{offer}/quote");
    let quoted = async || {
        let call = shop.app.post(&quote, &json!({})).by(&shop.buyer);
        call.send().await
    };
    for gone in [shop.take(&wish).await, quoted().await] {
        gone.expect_problem(StatusCode::CONFLICT, "not_on_sale");
    }
    shop.sell(&format!("{}/list", shop.dataset), &json!({}))
        .await
        .expect(StatusCode::OK);
    for _ in 0..2 {
        let closed = shop
            .sell(&format!("/v1/offers/{offer}/close"), &json!({}))
            .await;
        assert!(closed.expect(StatusCode::OK).json["closed_at"].is_string());
    }
    shop.take(&wish)
        .await
        .expect_problem(StatusCode::CONFLICT, "not_on_sale");
    quoted()
        .await
        .expect_problem(StatusCode::CONFLICT, "not_on_sale");
    assert_eq!(shop.purse().await, (1_000, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn offers_of_what_was_never_listed_are_offers_that_there_are_not(db: PgPool) {
    let shop = Shop::open(db, 1_000).await;
    let draft = datasets::dataset(&shop.app, &shop.seller).await;
    let terms = json!({ "kind": "buy", "price": shop.money(333) });
    let offers = format!("{draft}/offers");
    let made = shop.app.post(&offers, &terms).by(&shop.seller).send().await;
    let hidden = made.expect(StatusCode::CREATED).text("/id").to_owned();
    let none = format!("off_{}", "0".repeat(26));
    for offer in [&hidden, &none] {
        let refused = shop.take(&shop.wish(offer, 333)).await;
        let refused = refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
        assert_eq!(refused.text("/errors/0/pointer"), "/offer");
        let quote = format!("/v1/offers/{offer}/quote");
        let call = shop.app.post(&quote, &json!({})).by(&shop.buyer);
        let refused = call.send().await;
        refused.expect_problem(StatusCode::NOT_FOUND, "not_found");
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_cannot_be_served_is_not_sold(db: PgPool) {
    let shop = Shop::open(db, 1_000).await;
    let offer = shop.offer(json!({ "kind": "buy" }), 333).await;
    let object = datasets::objects(&shop.app).remove(0);
    let good = std::fs::read(&object).unwrap();
    let mut bad = good.clone();
    bad[0] ^= 1;
    for damaged in [Some(bad), Some(vec![]), None] {
        match damaged {
            Some(bytes) => std::fs::write(&object, bytes).unwrap(),
            None => std::fs::remove_file(&object).unwrap(),
        }
        let refused = shop.take(&shop.wish(&offer, 333)).await;
        let refused =
            refused.expect_problem(StatusCode::SERVICE_UNAVAILABLE, "dataset_unavailable");
        assert_eq!(refused.header(axum::http::header::RETRY_AFTER), "60");
        assert_eq!(shop.purse().await, (1_000, 0));
    }
    std::fs::write(&object, good).unwrap();
    shop.taken(&shop.wish(&offer, 333)).await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn terms_that_do_not_fit_are_refused_by_field(db: PgPool) {
    let shop = Shop::open(db, 0).await;
    let month = 2_592_000;
    for (terms, price, pointer) in [
        (json!({ "kind": "buy" }), 0, "/price/amount"),
        (json!({ "kind": "free" }), 1, "/price/amount"),
        (
            json!({ "kind": "buy", "period_seconds": 60 }),
            1,
            "/period_seconds",
        ),
        (json!({ "kind": "rent" }), 1, "/period_seconds"),
        (
            json!({ "kind": "rent", "period_seconds": 59 }),
            1,
            "/period_seconds",
        ),
        (
            json!({ "kind": "rent", "period_seconds": 60, "minimum_seconds": 61 }),
            1,
            "/minimum_seconds",
        ),
        (
            json!({ "kind": "buy", "minimum_seconds": 1 }),
            1,
            "/minimum_seconds",
        ),
        (
            json!({ "kind": "buy", "refund_seconds": month + 1 }),
            1,
            "/refund_seconds",
        ),
        (
            json!({ "kind": "buy", "answer_seconds": 3599 }),
            1,
            "/answer_seconds",
        ),
        (json!({ "kind": "compute_only" }), 1, "/output_bytes_max"),
        (
            json!({ "kind": "compute_only", "output_bytes_max": 1, "programs": [] }),
            1,
            "/programs",
        ),
        (
            json!({ "kind": "buy", "version": format!("dsv_{}", "0".repeat(26)) }),
            1,
            "/version",
        ),
        (json!({ "kind": "sell" }), 1, "/kind"),
    ] {
        let refused = shop.try_offer(terms.clone(), price).await;
        let refused = refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
        assert_eq!(refused.text("/errors/0/pointer"), pointer, "{terms}");
    }
    let compute = json!({ "kind": "compute_only", "output_bytes_max": 1_000 });
    shop.offer(compute.clone(), 1).await;
    let second = shop.try_offer(compute, 2).await;
    second.expect_problem(StatusCode::CONFLICT, "compute_offer_stands");
    let stranger = shop.app.bound_session().await.0;
    let body = json!({ "kind": "buy", "price": shop.money(1) });
    let other = shop
        .app
        .post(&format!("{}/offers", shop.dataset), &body)
        .by(&stranger)
        .send()
        .await;
    other.expect(StatusCode::NOT_FOUND);
    let unbound = shop.app.session().await;
    let own = datasets::dataset(&shop.app, &unbound).await;
    let unpaid = shop
        .app
        .post(&format!("{own}/offers"), &body)
        .by(&unbound)
        .send()
        .await;
    unpaid.expect_problem(StatusCode::CONFLICT, "address_not_bound");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_nobody_has_to_ask_for_to_compute_on_is_not_taken(db: PgPool) {
    let shop = Shop::open(db, 10).await;
    let offer = shop
        .offer(
            json!({ "kind": "compute_only", "output_bytes_max": 1_000 }),
            5,
        )
        .await;
    let refused = shop.take(&shop.wish(&offer, 0)).await;
    refused.expect_problem(StatusCode::CONFLICT, "nothing_to_take");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_purchase_is_its_buyers_and_its_sellers_and_nobody_elses(db: PgPool) {
    let shop = Shop::open(db, 1_000).await;
    let offer = shop
        .offer(json!({ "kind": "buy", "refund_seconds": 3600 }), 333)
        .await;
    let path = shop.taken(&shop.wish(&offer, 333)).await;
    datasets::get(&shop.app, &shop.seller, &path)
        .await
        .expect(StatusCode::OK);
    let stranger = shop.app.session().await;
    datasets::get(&shop.app, &stranger, &path)
        .await
        .expect(StatusCode::NOT_FOUND);
    for by in [&stranger, &shop.seller] {
        for verb in ["refund", "end"] {
            datasets::act(&shop.app, by, &format!("{path}/{verb}"))
                .await
                .expect(StatusCode::NOT_FOUND);
        }
    }
    let id = path.rsplit('/').next().unwrap();
    for by in [&stranger, &shop.buyer] {
        let approved = datasets::act(&shop.app, by, &format!("/v1/sales/{id}/approve")).await;
        approved.expect(StatusCode::NOT_FOUND);
    }
    let listed = |by, path| datasets::get(&shop.app, by, path);
    for (by, path, count) in [
        (&shop.buyer, "/v1/purchases", 1),
        (&shop.buyer, "/v1/sales", 0),
        (&shop.seller, "/v1/sales?state=granted", 1),
        (&shop.seller, "/v1/sales?state=settled", 0),
        (&shop.seller, "/v1/purchases", 0),
        (&stranger, "/v1/purchases", 0),
    ] {
        let page = listed(by, path).await.expect(StatusCode::OK);
        assert_eq!(page.json["data"].as_array().unwrap().len(), count, "{path}");
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_is_shredded_in_the_moment_of_a_sale_is_not_sold(db: PgPool) {
    let shop = Shop::open(db, 1_000).await;
    let version = shop.version.rsplit('/').next().unwrap();
    let terms = json!({ "kind": "buy", "version": version });
    let offer = shop.offer(terms, 333).await;
    // Its seller was quicker, and is not done yet.
    let mut tx = shop.app.owner.begin().await.unwrap();
    let shred = "UPDATE dataset_versions SET state = 'shredded', wrapped_key = NULL, shredded_at = now() WHERE dataset_id = (SELECT dataset_id FROM offers)";
    let shredded = sqlx::query(shred).execute(&mut *tx).await.unwrap();
    assert_eq!(shredded.rows_affected(), 1);
    let wish = shop.wish(&offer, 333);
    let (taken, ()) = futures::join!(shop.take(&wish), async {
        wait_for_a_lock(&shop.app.owner).await;
        tx.commit().await.unwrap();
    });
    taken.expect_problem(StatusCode::CONFLICT, "nothing_ready");
    assert_eq!(shop.purse().await, (1_000, 0));
}
