use ::time::Duration;
use axum::http::StatusCode;
use comptoir_domain::{bill::BilledParty, sale::SaleBill};
use futures::future::join_all;
use serde_json::{Value, json};
use sqlx::PgPool;

use super::{KEPT, PLATFORM, Shop, shared};
use crate::{datasets, market};

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_price_is_held_with_the_right_and_charged_when_it_was_kept_unread_for_long_enough(
    db: PgPool,
) {
    let shop = Shop::open(db, 1_000).await;
    let offer = shop
        .offer(json!({ "kind": "buy", "refund_seconds": 3600 }), 333)
        .await;
    let quoted = shop
        .app
        .post(&format!("/v1/offers/{offer}/quote"), &json!({}))
        .by(&shop.buyer)
        .send()
        .await
        .expect(StatusCode::OK);
    assert_eq!(quoted.text("/price/amount"), "333");
    let taken = shop
        .take(&shop.wish(&offer, 333))
        .await
        .expect(StatusCode::CREATED);
    assert_eq!(
        (taken.text("/state"), &taken.json["charged"]),
        ("granted", &Value::Null)
    );
    assert_eq!(shop.purse().await, (667, 333));
    let path = format!("/v1/purchases/{}", taken.text("/id"));
    shop.pass(KEPT - Duration::SECOND).await;
    assert_eq!(shop.read(&path).await.text("/state"), "granted");
    shop.pass(Duration::seconds(1)).await;
    let settled = shop.read(&path).await;
    assert_eq!(
        (
            settled.text("/state"),
            settled.text("/charged/amount"),
            settled.text("/final_because")
        ),
        ("settled", "333", "window_over")
    );
    assert_eq!(
        settled.json["ends_at"],
        Value::Null,
        "it is the buyer's for good"
    );
    let (seller, house) = shared(333);
    assert_eq!(
        (shop.purse().await, shop.earned().await, shop.house().await),
        ((667, 0), seller, house)
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn the_receipt_of_a_sale_says_what_was_shared_and_can_be_computed_again(db: PgPool) {
    let shop = Shop::open(db, 1_000).await;
    let offer = shop.offer(json!({ "kind": "buy" }), 333).await;
    let taken = shop
        .take(&shop.wish(&offer, 333))
        .await
        .expect(StatusCode::CREATED);
    shop.open_it().await;
    let path = format!("/v1/purchases/{}", taken.text("/id"));
    let taken = shop.read(&path).await;
    assert_eq!(taken.text("/final_because"), "served");
    let receipt = shop
        .read(&format!("/v1/receipts/{}", taken.text("/receipt")))
        .await;
    assert_eq!(
        (
            receipt.text("/kind"),
            receipt.text("/purchase_id"),
            &receipt.json["job_id"]
        ),
        ("purchase", taken.text("/id"), &Value::Null)
    );
    let (seller, fee) = shared(333);
    let splits = [(PLATFORM, fee - 1), (shop.paid, seller)];
    for (place, (payee, amount)) in splits.iter().enumerate() {
        assert_eq!(
            receipt.text(&format!("/splits/{place}/payee")),
            shop.asset.caip10(*payee)
        );
        assert_eq!(
            receipt.text(&format!("/splits/{place}/amount/amount")),
            amount.to_string(),
            "one unit is dust"
        );
    }
    let bill: SaleBill = serde_json::from_value(receipt.json["bill"].clone()).unwrap();
    assert_eq!(bill.recompute(), Ok(()));
    let credited: u128 = bill
        .parties
        .iter()
        .map(|BilledParty { credit, .. }| credit.base())
        .sum();
    assert_eq!((bill.gross_base.base(), credited), (333, 332));
    // Its seller may read it as well, and nobody else.
    let path = format!("/v1/receipts/{}", taken.text("/receipt"));
    datasets::get(&shop.app, &shop.seller, &path)
        .await
        .expect(StatusCode::OK);
    let stranger = shop.app.session().await;
    datasets::get(&shop.app, &stranger, &path)
        .await
        .expect(StatusCode::NOT_FOUND);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_the_carries_of_many_sales_leave_adds_up_to_the_unit(db: PgPool) {
    let shop = Shop::open(db, 100_000).await;
    let mut charged = 0;
    for price in [1, 7, 19, 333, 1_001] {
        let offer = shop.offer(json!({ "kind": "buy" }), price).await;
        let (buyer, payer) = market::client(&shop.app, &shop.asset, price).await;
        let wish = shop.wish(&offer, price);
        let taken = shop
            .app
            .post("/v1/purchases", &wish)
            .by(&buyer)
            .send()
            .await;
        taken.expect(StatusCode::CREATED);
        shop.pass(KEPT).await;
        charged += price;
        assert_eq!(shop.balances(payer).await.available.base(), 0);
        assert_eq!(
            shop.earned().await,
            charged * 95 / 100,
            "rounded once over all sales, not in each"
        );
        assert_eq!(shop.earned().await + shop.house().await, charged);
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_a_job_read_is_not_given_back(db: PgPool) {
    let shop = Shop::open(db, 1_000).await;
    let terms = json!({ "kind": "buy", "refund_seconds": 3600 });
    let offer = shop.offer(terms, 333).await;
    let path = shop.taken(&shop.wish(&offer, 333)).await;
    // What the scheduler notes before a worker has the first byte; the step that charges is yet to come.
    let noted = sqlx::query(
        "INSERT INTO purchase_servings (purchase_id, served_at) SELECT purchase_id, created_at FROM purchases",
    );
    noted.execute(&shop.app.owner).await.unwrap();
    let back = shop.act(&format!("{path}/refund")).await;
    back.expect_problem(StatusCode::CONFLICT, "purchase_final");
    shop.pass(Duration::ZERO).await;
    let settled = shop.read(&path).await;
    assert_eq!(
        (settled.text("/state"), settled.text("/final_because")),
        ("settled", "served")
    );
    assert_eq!(shop.purse().await, (667, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn something_unread_is_given_back_whole_while_its_window_is_open(db: PgPool) {
    let shop = Shop::open(db, 1_000).await;
    let offer = shop
        .offer(json!({ "kind": "buy", "refund_seconds": 3600 }), 333)
        .await;
    let path = shop.taken(&shop.wish(&offer, 333)).await;
    for _ in 0..2 {
        let back = shop
            .act(&format!("{path}/refund"))
            .await
            .expect(StatusCode::OK);
        assert_eq!(back.text("/state"), "refunded");
    }
    assert_eq!((shop.purse().await, shop.earned().await), ((1_000, 0), 0));
    let ended: i64 =
        sqlx::query_scalar("SELECT count(*) FROM entitlements WHERE ended_at IS NOT NULL")
            .fetch_one(&shop.app.owner)
            .await
            .unwrap();
    assert_eq!(ended, 1, "the right went back too");
    // It can be bought again; once its window is over, nothing is given back.
    let again = shop.taken(&shop.wish(&offer, 333)).await;
    shop.app.pass(Duration::hours(1));
    shop.act(&format!("{again}/refund"))
        .await
        .expect_problem(StatusCode::CONFLICT, "purchase_final");
    shop.settle().await;
    shop.act(&format!("{again}/refund"))
        .await
        .expect_problem(StatusCode::CONFLICT, "purchase_final");
    shop.adds_up(1_000).await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn of_64_that_buy_at_once_with_money_for_one_one_buys(db: PgPool) {
    let shop = Shop::open(db, 100).await;
    let offer = shop
        .offer(json!({ "kind": "buy", "refund_seconds": 3600 }), 100)
        .await;
    let wish = shop.wish(&offer, 100);
    let replies = join_all((0..64).map(|_| shop.take(&wish))).await;
    let with = |status| replies.iter().filter(|it| it.status == status).count();
    assert_eq!(
        (with(StatusCode::CREATED), with(StatusCode::CONFLICT)),
        (1, 63)
    );
    assert!(
        replies
            .iter()
            .all(|it| it.status == StatusCode::CREATED || it.code() == "already_owned")
    );
    assert_eq!(shop.purse().await, (0, 100));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn of_many_offers_taken_at_once_the_money_covers_what_it_covers(db: PgPool) {
    let shop = Shop::open(db, 250).await;
    let terms = json!({ "kind": "rent", "period_seconds": 3600, "minimum_seconds": 0 });
    let mut wishes = Vec::new();
    for _ in 0..8 {
        let offer = shop.offer(terms.clone(), 1).await;
        let mut wish = shop.wish(&offer, 100);
        wish["seconds"] = json!(100);
        wishes.push(wish);
    }
    let replies = join_all(wishes.iter().map(|wish| shop.take(wish))).await;
    let with = |status| replies.iter().filter(|it| it.status == status).count();
    assert_eq!(
        (
            with(StatusCode::CREATED),
            with(StatusCode::PAYMENT_REQUIRED)
        ),
        (2, 6)
    );
    assert_eq!(shop.purse().await, (50, 200));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_repeated_request_buys_once(db: PgPool) {
    let shop = Shop::open(db, 1_000).await;
    let offer = shop.offer(json!({ "kind": "buy" }), 333).await;
    let wish = shop.wish(&offer, 333);
    let buy = || {
        let call = shop
            .app
            .request(axum::http::Method::POST, "/v1/purchases")
            .by(&shop.buyer);
        call.idempotency_key("once").json(&wish).send()
    };
    let first = buy().await.expect(StatusCode::CREATED);
    let second = buy().await.expect(StatusCode::CREATED);
    assert_eq!(
        (
            first.text("/id"),
            second.header(comptoir_api::idempotency::REPLAYED)
        ),
        (second.text("/id"), "true")
    );
    assert_eq!(shop.purse().await, (667, 333));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_is_free_moves_no_money_and_has_no_receipt(db: PgPool) {
    let shop = Shop::open(db, 10).await;
    let offer = shop.offer(json!({ "kind": "free" }), 0).await;
    let taken = shop
        .take(&shop.wish(&offer, 0))
        .await
        .expect(StatusCode::CREATED);
    assert_eq!(
        (taken.text("/state"), &taken.json["receipt"]),
        ("settled", &Value::Null)
    );
    assert_eq!((shop.purse().await, shop.house().await), ((10, 0), 0));
    shop.take(&shop.wish(&offer, 0))
        .await
        .expect_problem(StatusCode::CONFLICT, "already_owned");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn sales_and_purchases_of_one_dataset_are_listed_alone(db: PgPool) {
    let shop = Shop::open(db, 100).await;
    let offer = shop.offer(json!({ "kind": "buy" }), 10).await;
    let bought = shop.taken(&shop.wish(&offer, 10)).await;
    let dataset = shop.dataset.rsplit('/').next().unwrap();
    let other = "ds_01h455vb4pex5vsknk084sn02q";
    for (side, path) in [(&shop.buyer, "/v1/purchases"), (&shop.seller, "/v1/sales")] {
        let listed = async |query: &str| {
            let path = format!("{path}?{query}");
            let by = shop.app.renewed(side);
            let list = datasets::get(&shop.app, &by, &path).await;
            let list = list.expect(StatusCode::OK);
            let rows = list.json["data"].as_array().unwrap().clone();
            rows.iter()
                .map(|it| it["id"].as_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        let id = bought.rsplit('/').next().unwrap();
        assert_eq!(listed(&format!("dataset={dataset}")).await, [id]);
        let both = format!("dataset={dataset}&state=granted");
        assert_eq!(listed(&both).await, [id]);
        assert!(listed(&format!("dataset={other}")).await.is_empty());
    }
}
