//! Getting what was bought: who may read, when the sale is final, and what is logged.

use std::fs;

use ::time::Duration;
use axum::http::{Method, StatusCode, header};
use serde_json::json;
use sqlx::PgPool;

use super::{Shop, shared};
use crate::datasets;

const ROWS: &[u8] = b"a,b\n1,2\n";

impl Shop {
    /// The path of the bytes of the dataset's only file.
    pub async fn content(&self) -> String {
        let seller = self.app.renewed(&self.seller);
        let files = format!("{}/files", self.version);
        let files = datasets::get(&self.app, &seller, &files).await;
        format!(
            "{}/files/{}/content",
            self.version,
            files.text("/data/0/id")
        )
    }

    async fn try_read(&self, path: &str) -> crate::harness::Reply {
        let buyer = self.app.renewed(&self.buyer);
        datasets::get(&self.app, &buyer, path).await
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn the_first_byte_makes_a_sale_final_and_every_request_is_logged(db: PgPool) {
    let shop = Shop::open(db, 100).await;
    let terms = json!({ "kind": "buy", "refund_seconds": 86_400 });
    let offer = shop.offer(terms, 60).await;
    let content = shop.content().await;
    shop.try_read(&content)
        .await
        .expect_problem(StatusCode::PAYMENT_REQUIRED, "payment_required");
    let purchase = shop.taken(&shop.wish(&offer, 60)).await;
    assert_eq!(shop.purse().await, (40, 60));

    assert_eq!(shop.read(&content).await.bytes, ROWS);
    let settled = shop.read(&purchase).await;
    assert_eq!(settled.text("/state"), "settled");
    assert_eq!(settled.text("/final_because"), "served");
    assert_eq!(shop.purse().await, (40, 0));
    assert_eq!(shop.earned().await, shared(60).0);

    let buyer = shop.app.renewed(&shop.buyer);
    let part = shop
        .app
        .get(&content)
        .by(&buyer)
        .header(header::RANGE, "bytes=4-6");
    let part = part.send().await.expect(StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.bytes, b"1,2");
    assert_eq!(shop.purse().await, (40, 0), "a sale is final once");
    shop.adds_up(100).await;

    let servings = format!("{}/servings", shop.dataset);
    let seller = shop.app.renewed(&shop.seller);
    let log = datasets::get(&shop.app, &seller, &servings).await;
    let rows = log.json["data"].as_array().unwrap();
    let served: Vec<_> = rows
        .iter()
        .map(|it| (&it["first_byte"], &it["bytes"]))
        .collect();
    assert_eq!(served, [(&json!(4), &json!(3)), (&json!(0), &json!(8))]);
    assert!(purchase.ends_with(rows[0]["purchase"].as_str().unwrap()));
    shop.try_read(&servings)
        .await
        .expect_problem(StatusCode::NOT_FOUND, "not_found");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_cannot_be_served_is_given_back(db: PgPool) {
    let shop = Shop::open(db, 100).await;
    let terms = json!({ "kind": "buy", "refund_seconds": 86_400 });
    let offer = shop.offer(terms, 60).await;
    let content = shop.content().await;
    let purchase = shop.taken(&shop.wish(&offer, 60)).await;
    for object in datasets::objects(&shop.app) {
        fs::remove_file(object).unwrap();
    }
    shop.try_read(&content)
        .await
        .expect_problem(StatusCode::SERVICE_UNAVAILABLE, "dataset_unavailable");
    assert_eq!(shop.read(&purchase).await.text("/state"), "refunded");
    assert_eq!(shop.purse().await, (100, 0));
    let served: i64 = sqlx::query_scalar(
        "SELECT (SELECT count(*) FROM dataset_servings) + (SELECT count(*) FROM purchase_servings)",
    )
    .fetch_one(&shop.app.owner)
    .await
    .unwrap();
    assert_eq!(served, 0, "nothing is marked served before it was read");
    let library = shop.read("/v1/library").await;
    assert_eq!(library.text("/data/0/state"), "taken_back");
    shop.try_read(&content)
        .await
        .expect_problem(StatusCode::PAYMENT_REQUIRED, "payment_required");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_is_lost_is_given_back_though_its_offer_gives_nothing_back(db: PgPool) {
    let shop = Shop::open(db, 100).await;
    let offer = shop.offer(json!({ "kind": "buy" }), 60).await;
    let content = shop.content().await;
    for lost in ["key", "objects"] {
        let purchase = shop.taken(&shop.wish(&offer, 60)).await;
        let refused = shop.act(&format!("{purchase}/refund")).await;
        refused.expect_problem(StatusCode::CONFLICT, "purchase_final");
        if lost == "objects" {
            for object in datasets::objects(&shop.app) {
                fs::remove_file(object).unwrap();
            }
        } else {
            flip_key(&shop).await;
        }
        shop.try_read(&content)
            .await
            .expect_problem(StatusCode::SERVICE_UNAVAILABLE, "dataset_unavailable");
        assert_eq!(shop.read(&purchase).await.text("/state"), "refunded");
        assert_eq!(shop.purse().await, (100, 0), "{lost}");
        if lost == "key" {
            flip_key(&shop).await;
        }
    }
}

/// Changes a byte of the version's key, or changes it back: what no service may.
async fn flip_key(shop: &Shop) {
    let flip = "ALTER TABLE dataset_versions DISABLE TRIGGER USER;
        UPDATE dataset_versions SET wrapped_key = set_byte(wrapped_key, 20, 255 - get_byte(wrapped_key, 20));
        ALTER TABLE dataset_versions ENABLE TRIGGER USER";
    sqlx::raw_sql(flip).execute(&shop.app.owner).await.unwrap();
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_rental_is_read_until_its_time_is_over(db: PgPool) {
    let shop = Shop::open(db, 1_000).await;
    let terms = json!({ "kind": "rent", "period_seconds": 3_600, "minimum_seconds": 0 });
    let offer = shop.offer(terms, 1).await;
    let content = shop.content().await;
    let mut wish = shop.wish(&offer, 600);
    wish["seconds"] = json!(600);
    shop.taken(&wish).await;
    assert_eq!(shop.read(&content).await.bytes, ROWS);
    assert_eq!(shop.purse().await, (400, 600), "charged at its end");
    let active = shop.read("/v1/library?state=active").await;
    assert_eq!(active.text("/data/0/allows"), "download");

    shop.pass(Duration::seconds(600)).await;
    shop.try_read(&content)
        .await
        .expect_problem(StatusCode::GONE, "entitlement_expired");
    let active = shop.read("/v1/library?state=active").await;
    assert_eq!(active.json["data"], json!([]));
    let over = shop.read("/v1/library?state=expired").await;
    assert_eq!(over.json["data"].as_array().unwrap().len(), 1);
    shop.adds_up(1_000).await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_was_sold_stays_readable_and_is_not_shredded(db: PgPool) {
    let shop = Shop::open(db, 100).await;
    let offer = shop.offer(json!({ "kind": "buy" }), 60).await;
    let content = shop.content().await;
    shop.taken(&shop.wish(&offer, 60)).await;
    let seller = shop.app.renewed(&shop.seller);
    datasets::act(&shop.app, &seller, &format!("{}/withdraw", shop.dataset))
        .await
        .expect(StatusCode::OK);
    assert_eq!(shop.read(&content).await.bytes, ROWS);
    let library = shop.read("/v1/library").await;
    assert_eq!(library.text("/data/0/state"), "active");
    let version = shop.app.request(Method::DELETE, &shop.version);
    version
        .by(&seller)
        .send()
        .await
        .expect_problem(StatusCode::CONFLICT, "version_sold");
    assert_eq!(shop.read(&content).await.bytes, ROWS);
    // Somebody else does not even learn that it is there, and has nothing in the library.
    let other = shop.app.session().await;
    datasets::get(&shop.app, &other, &content)
        .await
        .expect_problem(StatusCode::NOT_FOUND, "not_found");
    let library = datasets::get(&shop.app, &other, "/v1/library").await;
    assert_eq!(library.expect(StatusCode::OK).json["data"], json!([]));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_right_to_compute_is_none_to_read(db: PgPool) {
    let shop = Shop::open(db, 100).await;
    let offer = shop.offer(json!({ "kind": "buy" }), 60).await;
    let content = shop.content().await;
    shop.taken(&shop.wish(&offer, 60)).await;
    sqlx::query("UPDATE entitlements SET allows = 'compute'")
        .execute(&shop.app.owner)
        .await
        .unwrap();
    shop.try_read(&content)
        .await
        .expect_problem(StatusCode::FORBIDDEN, "compute_only");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn who_asks_how_long_a_file_is_has_read_nothing(db: PgPool) {
    let shop = Shop::open(db, 100).await;
    let terms = json!({ "kind": "buy", "refund_seconds": 86_400 });
    let offer = shop.offer(terms, 60).await;
    let content = shop.content().await;
    let head = async || {
        let buyer = shop.app.renewed(&shop.buyer);
        shop.app
            .request(Method::HEAD, &content)
            .by(&buyer)
            .send()
            .await
    };
    assert_eq!(head().await.status, StatusCode::PAYMENT_REQUIRED);
    let purchase = shop.taken(&shop.wish(&offer, 60)).await;
    let told = head().await.expect(StatusCode::OK);
    assert_eq!(told.header(header::CONTENT_LENGTH), "8");
    assert!(told.header(header::ETAG).len() > 60);
    assert_eq!(shop.read(&purchase).await.text("/state"), "granted");
    let back = shop.act(&format!("{purchase}/refund")).await;
    assert_eq!(back.expect(StatusCode::OK).text("/state"), "refunded");
    let logged: i64 = sqlx::query_scalar("SELECT count(*) FROM dataset_servings")
        .fetch_one(&shop.app.owner)
        .await
        .unwrap();
    assert_eq!(logged, 0);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_store_that_fails_is_no_damage_and_gives_nothing_back(db: PgPool) {
    let shop = Shop::open(db, 100).await;
    let offer = shop.offer(json!({ "kind": "buy" }), 60).await;
    let content = shop.content().await;
    let purchase = shop.taken(&shop.wish(&offer, 60)).await;
    // A link to itself is there, and can be neither opened nor measured.
    for object in datasets::objects(&shop.app) {
        fs::remove_file(&object).unwrap();
        std::os::unix::fs::symlink(&object, &object).unwrap();
    }
    let failed = shop.try_read(&content).await;
    assert!(failed.status.is_server_error() && failed.code() != "dataset_unavailable");
    assert_eq!(shop.read(&purchase).await.text("/state"), "granted");
    assert_eq!(shop.purse().await, (40, 60));
}
