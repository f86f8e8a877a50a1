//! The catalogue over HTTP: what is found, in which order, and what no question does to it.

use axum::http::{Method, StatusCode, header};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::{
    datasets::{act, get},
    harness::Reply,
    models,
    purchases::Shop,
};

impl Shop {
    async fn search(&self, query: &str) -> Reply {
        let buyer = self.app.renewed(&self.buyer);
        get(&self.app, &buyer, &format!("/v1/catalog?{query}")).await
    }

    /// The names of what is found, page after page of so many.
    async fn found(&self, query: &str, limit: usize) -> Vec<String> {
        let mut names = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = self.search(&format!("{query}&limit={limit}{cursor}")).await;
            let page = page.expect(StatusCode::OK);
            let rows = page.json["data"].as_array().unwrap();
            assert!(rows.len() <= limit);
            names.extend(
                rows.iter()
                    .map(|it| it["name"].as_str().unwrap().to_owned()),
            );
            match page.json["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return names,
            }
        }
    }
}

/// Lists a dataset of the shop's seller, with one file; its path.
async fn list(shop: &mut Shop, card: Value, file: &str, bytes: &[u8]) -> String {
    let (app, seller) = (&shop.app, &shop.seller);
    let made = app.post("/v1/datasets", &card).by(seller).send().await;
    let made = made.expect(StatusCode::CREATED);
    let dataset = made.header(header::LOCATION).to_owned();
    let version = crate::datasets::draft(app, seller, &dataset).await;
    crate::datasets::fill(app, seller, &version, &[(file, bytes)]).await;
    let ready = crate::datasets::submit(app, seller, &version).await;
    assert_eq!(ready.text("/state"), "ready");
    act(app, seller, &format!("{dataset}/list"))
        .await
        .expect(StatusCode::OK);
    shop.dataset.clone_from(&dataset);
    dataset
}

fn card(name: &str, title: &str, licence: &str, tags: &[&str], description: &str) -> Value {
    json!({ "name": name, "title": title, "licence": licence, "tags": tags, "description": description })
}

/// Three datasets, beside the one of the shop, which is withdrawn.
async fn stocked(db: PgPool) -> (Shop, [String; 3]) {
    let mut shop = Shop::open(db, 0).await;
    let first = format!("{}/withdraw", shop.dataset);
    act(&shop.app, &shop.seller, &first)
        .await
        .expect(StatusCode::OK);
    let birds = card("birds", "Singing birds", "MIT", &["audio", "nature"], "");
    let birds = list(&mut shop, birds, "a.csv", b"a\n1\n2\n").await;
    shop.offer(json!({ "kind": "buy" }), 9).await;
    shop.offer(json!({ "kind": "buy" }), 7).await;
    let trees = card(
        "trees",
        "Trees",
        "CC-BY-4.0",
        &["nature"],
        "Where birds live",
    );
    let trees = list(&mut shop, trees, "a.bin", b"0123456789").await;
    shop.offer(json!({ "kind": "buy" }), 7).await;
    let who = card("the-who", "The Who", "MIT", &["audio"], "Running songs");
    let who = list(&mut shop, who, "a.jsonl", b"{}\n").await;
    shop.offer(json!({ "kind": "free" }), 0).await;
    (shop, [birds, trees, who])
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn every_filter_finds_what_fits_and_nothing_else(db: PgPool) {
    let (shop, _) = stocked(db).await;
    let seller = shop.search("").await.text("/data/0/seller").to_owned();
    let seller = format!("seller={seller}");
    let cases: &[(&str, &[&str])] = &[
        ("", &["the-who", "trees", "birds"]),
        ("kind=dataset", &["the-who", "trees", "birds"]),
        (&seller, &["the-who", "trees", "birds"]),
        ("q=bird", &["birds", "trees"]),
        ("q=bird&sort=newest", &["trees", "birds"]),
        ("q=birds%20-trees", &["birds"]),
        ("q=%22birds%20live%22", &["trees"]),
        ("q=%22live%20birds%22", &[]),
        ("q=run", &["the-who"]),
        ("q=-runs&sort=newest", &["trees", "birds"]),
        ("q=the", &["the-who"]),
        ("tags=nature", &["trees", "birds"]),
        ("tags=nature,audio", &["birds"]),
        ("licence=MIT", &["the-who", "birds"]),
        ("licence=mit", &[]),
        ("format=json_lines", &["the-who"]),
        ("min_bytes=6&max_bytes=9", &["birds"]),
        ("offer=free", &["the-who"]),
        ("offer=buy&sort=price", &["birds", "trees"]),
        ("offer=buy&max_price=6", &[]),
        ("offer=buy&max_price=7&tags=audio", &["birds"]),
    ];
    for (query, names) in cases {
        assert_eq!(shop.found(query, 20).await, *names, "{query}");
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn pages_over_equal_sort_keys_neither_repeat_nor_miss(db: PgPool) {
    let (shop, _) = stocked(db).await;
    for query in [
        "sort=newest",
        "q=nature&sort=relevance",
        "q=audio%20or%20nature",
        "offer=buy&sort=price",
    ] {
        let whole = shop.found(query, 100).await;
        assert!(whole.len() >= 2, "{query}");
        assert_eq!(shop.found(query, 1).await, whole, "{query}");
    }
    let page = shop.search("sort=newest&limit=1").await;
    let cursor = page.text("/next_cursor");
    let other = shop.search(&format!("tags=audio&cursor={cursor}")).await;
    other.expect_problem(StatusCode::BAD_REQUEST, "malformed_request");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_row_says_what_is_in_it_and_follows_every_change(db: PgPool) {
    let (shop, [birds, trees, _]) = stocked(db).await;
    let row = shop.search("q=singing").await.expect(StatusCode::OK);
    let row = &row.json["data"][0];
    assert_eq!(
        (&row["object"], &row["kind"]),
        (&json!("catalog_item"), &json!("dataset"))
    );
    let version = &row["version"];
    assert_eq!(
        [
            &version["number"],
            &version["files"],
            &version["bytes"],
            &version["rows"],
            &version["formats"]
        ],
        [&json!(1), &json!(1), &json!(6), &json!(2), &json!(["csv"])]
    );
    assert_eq!(
        row["prices"],
        json!([{ "kind": "buy", "price": shop.money(7) }])
    );
    let offers = get(&shop.app, &shop.seller, &format!("{birds}/offers")).await;
    let cheap = offers.text("/data/0/id");
    let body = json!({ "price": shop.money(8) });
    let path = format!("/v1/offers/{cheap}/prices");
    let priced = shop.app.post(&path, &body).by(&shop.seller).send().await;
    priced.expect(StatusCode::CREATED);
    let cheapest = async || {
        shop.search("q=singing")
            .await
            .text("/data/0/prices/0/price/amount")
            .to_owned()
    };
    assert_eq!(cheapest().await, "8");
    act(
        &shop.app,
        &shop.seller,
        &format!("/v1/offers/{cheap}/close"),
    )
    .await
    .expect(StatusCode::OK);
    assert_eq!(cheapest().await, "9");
    shop.sell(&format!("{birds}/deprecate"), &json!({ "message": "Old" }))
        .await
        .expect(StatusCode::OK);
    assert_eq!(
        shop.search("q=singing").await.text("/data/0/deprecation"),
        "Old"
    );
    let read = get(&shop.app, &shop.seller, &trees).await;
    let patched = shop.app.request(Method::PATCH, &trees).by(&shop.seller);
    patched
        .header(header::IF_MATCH, read.header(header::ETAG))
        .json(&json!({ "title": "Oaks" }))
        .send()
        .await
        .expect(StatusCode::OK);
    assert_eq!(shop.found("q=oak", 20).await, ["trees"]);
    act(&shop.app, &shop.seller, &format!("{trees}/withdraw"))
        .await
        .expect(StatusCode::OK);
    assert_eq!(shop.found("", 20).await, ["the-who", "birds"]);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn no_question_breaks_the_catalogue(db: PgPool) {
    let (shop, _) = stocked(db).await;
    for words in [
        "%22",
        "%22%22%20or%20or%20-",
        "%26%7C%21%28%29%3A%2A",
        "%27%3B--",
        "the%20and%20of",
        "%E2%80%AE%E2%80%8F",
        "%5C",
        "%3C-%3E",
        "%F0%9F%90%A6",
        "-",
    ] {
        shop.search(&format!("q={words}"))
            .await
            .expect(StatusCode::OK);
    }
    let long = "a".repeat(10_000);
    let crowd = vec!["a"; 21].join(",");
    for query in [
        "q=",
        "q=%00",
        "q=a%0Ab",
        &format!("q={long}"),
        "tags=",
        "tags=A",
        "tags=a,,b",
        &format!("tags={crowd}"),
        "licence=",
        "licence=%00",
        &format!("licence={long}"),
        "format=exe",
        "kind=person",
        "min_bytes=-1",
        "min_bytes=18446744073709551615",
        "min_bytes=2&max_bytes=1",
        "offer=steal",
        "max_price=1",
        "offer=buy&max_price=1.5",
        "seller=x",
        "sort=price",
        "sort=relevance",
        "sort=random",
        "cursor=x",
        "q=a&q=b",
        "unknown=1",
        "limit=0",
    ] {
        let reply = shop.search(query).await;
        reply.expect_problem(StatusCode::BAD_REQUEST, "malformed_request");
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn public_models_are_found_beside_datasets_and_follow_every_change(db: PgPool) {
    let (shop, _) = stocked(db).await;
    let (app, creator) = (&shop.app, &shop.seller);
    let model = models::shown(app, creator).await;
    let id = model.rsplit('/').next().unwrap();
    let named = async |query: &str| shop.found(query, 20).await;
    let all = ["birds", "the-who", "trees"].map(str::to_owned);
    let sorted = async |query: &str| {
        let mut found = named(query).await;
        found.sort();
        found
    };
    for visibility in ["unlisted", "private"] {
        models::show(app, creator, &model, visibility)
            .await
            .expect(StatusCode::OK);
        assert_eq!(sorted("").await, all, "{visibility}");
    }
    models::show(app, creator, &model, "public")
        .await
        .expect(StatusCode::OK);
    let row = shop.search("kind=model").await.expect(StatusCode::OK);
    let row = &row.json["data"][0];
    assert_eq!(
        (&row["id"], &row["kind"], &row["prices"]),
        (&json!(id), &json!("model"), &json!([]))
    );
    let version = &row["version"];
    assert_eq!(
        [&version["number"], &version["files"], &version["formats"]],
        [&json!(1), &Value::Null, &Value::Null]
    );
    let listed = get(app, creator, &format!("{model}/prices")).await;
    assert_eq!(row["call_price"], listed.json["data"][0]);
    let name = row["name"].as_str().unwrap();
    assert_eq!(named("").await.len(), 4);
    assert_eq!(named(&format!("q={name}&kind=model")).await, [name]);
    assert_eq!(sorted("kind=dataset").await, all);
    // What is asked of files and offers is asked of datasets.
    for query in ["min_bytes=0", "offer=buy", "format=csv"] {
        let found = named(query).await;
        assert!(!found.contains(&name.to_owned()), "{query}: {found:?}");
    }

    let read = get(app, creator, &model).await;
    let patched = app.request(Method::PATCH, &model).by(creator);
    patched
        .header(header::IF_MATCH, read.header(header::ETAG))
        .json(&json!({ "title": "Sparrows told apart" }))
        .send()
        .await
        .expect(StatusCode::OK);
    assert_eq!(named("q=sparrow").await, [name]);
    let version = format!("{model}/versions/{}", version["id"].as_str().unwrap());
    shop.sell(
        &format!("{version}/deprecate"),
        &json!({ "message": "Old" }),
    )
    .await
    .expect(StatusCode::OK);
    let row = shop.search("q=sparrow").await;
    assert_eq!(row.text("/data/0/deprecation"), "Old");
    models::show(app, creator, &model, "private")
        .await
        .expect(StatusCode::OK);
    assert_eq!(sorted("").await, all);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn nothing_of_a_frozen_seller_is_offered_until_the_freeze_is_over(db: PgPool) {
    let (shop, _) = stocked(db).await;
    let offered = async || {
        let rows = shop.search("").await.expect(StatusCode::OK);
        let rows = rows.json["data"].as_array().unwrap().clone();
        let prices = rows.iter().map(|it| it["prices"].as_array().unwrap().len());
        prices.sum::<usize>()
    };
    assert_eq!(offered().await, 3);
    crate::purchases::freeze(&shop.app, shop.seller.account).await;
    assert_eq!(offered().await, 0);
    sqlx::query(
        "UPDATE account_controls SET frozen_at = NULL, frozen_reason = NULL WHERE account_id = $1",
    )
    .bind(shop.seller.account.0)
    .execute(&shop.app.owner)
    .await
    .unwrap();
    assert_eq!(offered().await, 3);
}
