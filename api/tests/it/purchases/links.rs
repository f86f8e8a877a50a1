use ::time::Duration;
use axum::http::{Method, StatusCode, header};
use futures::future::join_all;
use serde_json::json;
use sqlx::PgPool;

use super::Shop;
use crate::{
    datasets::{self, patterned},
    harness::Reply,
};

impl Shop {
    /// Makes a link to the dataset's only file for whoever bought it.
    async fn try_link(&self) -> Reply {
        let path = self.content().await.replace("/content", "/links");
        self.act(&path).await
    }

    /// The path of a link.
    async fn link(&self) -> String {
        let made = self.try_link().await.expect(StatusCode::CREATED);
        assert_eq!(made.header(header::CACHE_CONTROL), "no-store");
        let url = made.text("/url");
        url[url.find("/v1/links/").unwrap()..].to_owned()
    }

    async fn follow(&self, link: &str) -> Reply {
        self.app.get(link).send().await
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_link_is_read_once_without_a_credential_by_the_right_of_who_made_it(db: PgPool) {
    let shop = Shop::open(db, 100).await;
    let offer = shop
        .offer(json!({ "kind": "buy", "refund_seconds": 86_400 }), 60)
        .await;
    let unpaid = shop.try_link().await;
    unpaid.expect_problem(StatusCode::PAYMENT_REQUIRED, "payment_required");
    let purchase = shop.taken(&shop.wish(&offer, 60)).await;
    let link = shop.link().await;
    assert_eq!(
        shop.read(&purchase).await.text("/state"),
        "granted",
        "a link alone hands nothing out"
    );
    let head = shop.app.request(Method::HEAD, &link).send().await;
    assert_eq!(
        head.status,
        StatusCode::METHOD_NOT_ALLOWED,
        "looking does not use it up"
    );
    let read = shop.follow(&link).await.expect(StatusCode::OK);
    assert_eq!(read.bytes, b"a,b\n1,2\n");
    for (name, value) in [
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_DISPOSITION, "attachment"),
    ] {
        assert_eq!(read.header(name), value);
    }
    assert_eq!(shop.read(&purchase).await.text("/final_because"), "served");
    shop.follow(&link)
        .await
        .expect_problem(StatusCode::GONE, "link_used");
    let logged: (i64, i64) =
        sqlx::query_as("SELECT count(*), count(dataset_link_id) FROM dataset_servings")
            .fetch_one(&shop.app.owner)
            .await
            .unwrap();
    assert_eq!(logged, (1, 1));
    let stored: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM dataset_links WHERE position($1 in dataset_links::text) > 0",
    )
    .bind(link.rsplit('/').next().unwrap())
    .fetch_one(&shop.app.owner)
    .await
    .unwrap();
    assert_eq!(stored, 0, "the secret is in the link alone");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn of_64_that_follow_a_link_at_once_one_reads(db: PgPool) {
    let shop = Shop::open(db, 100).await;
    let offer = shop.offer(json!({ "kind": "buy" }), 60).await;
    shop.taken(&shop.wish(&offer, 60)).await;
    let link = shop.link().await;
    let replies = join_all((0..64).map(|_| shop.follow(&link))).await;
    let with = |status| replies.iter().filter(|it| it.status == status).count();
    assert_eq!((with(StatusCode::OK), with(StatusCode::GONE)), (1, 63));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_link_ends_with_its_two_minutes_and_with_the_right(db: PgPool) {
    let shop = Shop::open(db, 1_000).await;
    let offer = shop
        .offer(
            json!({ "kind": "rent", "period_seconds": 3600, "minimum_seconds": 0 }),
            1,
        )
        .await;
    let mut wish = shop.wish(&offer, 300);
    wish["seconds"] = json!(300);
    let rental = shop.taken(&wish).await;
    let old = shop.link().await;
    shop.app.pass(Duration::seconds(119));
    let young = shop.link().await;
    shop.app.pass(Duration::seconds(1));
    shop.follow(&old)
        .await
        .expect_problem(StatusCode::GONE, "link_expired");
    shop.act(&format!("{rental}/end"))
        .await
        .expect(StatusCode::OK);
    // The right is over; the link would hold for longer.
    let refused = shop.follow(&young).await;
    refused.expect_problem(StatusCode::GONE, "entitlement_expired");
    let unknown = shop.follow("/v1/links/cdl_x").await;
    unknown.expect(StatusCode::NOT_FOUND);
    // A day later the service has forgotten it.
    shop.pass(Duration::days(2)).await;
    shop.follow(&old).await.expect(StatusCode::NOT_FOUND);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_large_file_is_resumed_until_its_link_is_over(db: PgPool) {
    let shop = Shop::open(db, 0).await;
    let bytes = patterned((16 << 20) + 1);
    let (_, _, files) =
        datasets::published(&shop.app, &shop.seller, &[("large.bin", &bytes)]).await;
    let made = datasets::act(&shop.app, &shop.seller, &format!("{}/links", files[0])).await;
    let made = made.expect(StatusCode::CREATED);
    assert_eq!(made.json["is_single_use"], false);
    let url = made.text("/url");
    let link = &url[url.find("/v1/links/").unwrap()..];
    for (range, part) in [
        ("bytes=0-9", &bytes[..10]),
        ("bytes=16777210-", &bytes[16_777_210..]),
    ] {
        let read = shop.app.get(link).header(header::RANGE, range).send().await;
        assert_eq!(read.expect(StatusCode::PARTIAL_CONTENT).bytes, part);
    }
}
