//! Datasets over HTTP: cards, publishing, what is refused, and what is found to be damaged.

mod checking;
pub mod computing;
mod damage;
mod hostile;
mod publishing;
mod shredding;
mod sweeping;
mod uploading;

use std::path::PathBuf;

use axum::http::{Method, StatusCode, header};
use comptoir_api::checking as check;
use comptoir_domain::digest::Sha256;
use comptoir_store::dataset_checks::Takes;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::harness::{Reply, Session, TestApp};

/// Bytes of a part.
pub const PART: usize = 16 << 20;

/// For the walk over every route: a draft with a file of four bytes, and the number of its part.
pub async fn make(app: &TestApp, owner: &Session) -> Vec<String> {
    let dataset = dataset(app, owner).await;
    let version = draft(app, owner, &dataset).await;
    let file = announce(app, owner, &version, &[("a.bin", b"four")]).await;
    let mut ids = [&dataset, &version, &file[0]]
        .map(|path| path.rsplit('/').next().unwrap().to_owned())
        .to_vec();
    ids.push("0".to_owned());
    ids
}

/// A dataset's path.
pub async fn dataset(app: &TestApp, seller: &Session) -> String {
    let name = uuid::Uuid::now_v7().to_string();
    let card = json!({ "name": name, "title": "Digits", "licence": "CC-BY-4.0" });
    let made = app.post("/v1/datasets", &card).by(seller).send().await;
    made.expect(StatusCode::CREATED)
        .header(header::LOCATION)
        .to_owned()
}

/// A draft's path.
pub async fn draft(app: &TestApp, seller: &Session, dataset: &str) -> String {
    let made = app
        .post(&format!("{dataset}/versions"), &json!({}))
        .by(seller)
        .send()
        .await;
    made.expect(StatusCode::CREATED)
        .header(header::LOCATION)
        .to_owned()
}

/// What announces these files.
pub fn announcement(files: &[(&str, &[u8])]) -> Value {
    let files = files.iter().map(|(path, bytes)| {
        json!({ "path": path, "bytes": bytes.len(), "sha256": Sha256::of(bytes), "is_sample": path.starts_with("sample") })
    });
    json!({ "files": files.collect::<Vec<_>>() })
}

/// The paths of files that are announced now.
pub async fn announce(
    app: &TestApp,
    seller: &Session,
    version: &str,
    files: &[(&str, &[u8])],
) -> Vec<String> {
    let body = announcement(files);
    let made = app
        .post(&format!("{version}/files"), &body)
        .by(seller)
        .send()
        .await
        .expect(StatusCode::CREATED);
    let data = made.json["data"].as_array().unwrap();
    data.iter()
        .map(|it| format!("{version}/files/{}", it["id"].as_str().unwrap()))
        .collect()
}

/// Sends one part.
pub async fn put(app: &TestApp, seller: &Session, file: &str, part: usize, bytes: &[u8]) -> Reply {
    let call = app
        .request(Method::PUT, &format!("{file}/parts/{part}"))
        .by(seller);
    call.body(bytes.to_vec()).send().await
}

/// Announces files and sends all of their parts; their paths.
pub async fn fill(
    app: &TestApp,
    seller: &Session,
    version: &str,
    files: &[(&str, &[u8])],
) -> Vec<String> {
    let paths = announce(app, seller, version, files).await;
    for (path, (_, bytes)) in paths.iter().zip(files) {
        for (part, bytes) in bytes.chunks(PART).enumerate() {
            put(app, seller, path, part, bytes)
                .await
                .expect(StatusCode::NO_CONTENT);
        }
    }
    paths
}

/// A POST that makes nothing.
pub async fn act(app: &TestApp, seller: &Session, path: &str) -> Reply {
    app.request(Method::POST, path).by(seller).send().await
}

pub async fn get(app: &TestApp, caller: &Session, path: &str) -> Reply {
    app.get(path).by(caller).send().await
}

/// Publishes a draft, checks it, and says what became of it.
pub async fn submit(app: &TestApp, seller: &Session, version: &str) -> Reply {
    act(app, seller, &format!("{version}/publish"))
        .await
        .expect(StatusCode::OK);
    assert!(
        check::step(&app.state, Takes::All).await.unwrap(),
        "something was to be checked"
    );
    get(app, seller, version).await.expect(StatusCode::OK)
}

/// A dataset with a version that is ready: their paths, and those of the files.
pub async fn published(
    app: &TestApp,
    seller: &Session,
    files: &[(&str, &[u8])],
) -> (String, String, Vec<String>) {
    let dataset = dataset(app, seller).await;
    let version = draft(app, seller, &dataset).await;
    let files = fill(app, seller, &version, files).await;
    assert_eq!(submit(app, seller, &version).await.text("/state"), "ready");
    (dataset, version, files)
}

/// Every object of datasets that is stored.
pub fn objects(app: &TestApp) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![app.blobs.path().join("datasets")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Bytes that differ everywhere.
pub fn patterned(count: usize) -> Vec<u8> {
    let digit = |at: usize| u8::try_from(at % 251).unwrap();
    (0..count).map(|at| digit(at) ^ digit(at >> 16)).collect()
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_card_is_made_read_changed_and_listed_by_name(db: PgPool) {
    let app = TestApp::new(db).await;
    let seller = app.session().await;
    let hostile = "# Hi\n<script>alert(1)</script> [x](javascript:alert(1))";
    let card = json!({ "name": "digits", "title": "Digits", "licence": "MIT OR Apache-2.0", "description": hostile, "tags": ["images"] });
    let made = app
        .post("/v1/datasets", &card)
        .by(&seller)
        .send()
        .await
        .expect(StatusCode::CREATED);
    assert_eq!(
        (made.text("/state"), made.text("/description")),
        ("draft", hostile),
        "text stays text"
    );
    let again = app.post("/v1/datasets", &card).by(&seller).send().await;
    again.expect_problem(StatusCode::CONFLICT, "dataset_name_taken");
    let path = made.header(header::LOCATION).to_owned();
    let read = get(&app, &seller, &path).await.expect(StatusCode::OK);
    let tag = read.header(header::ETAG).to_owned();
    let patch = |tag: &str, body: Value| {
        app.request(Method::PATCH, &path)
            .by(&seller)
            .header(header::IF_MATCH, tag)
            .json(&body)
            .send()
    };
    let changed = patch(&tag, json!({ "title": "More digits", "tags": [] }))
        .await
        .expect(StatusCode::OK);
    assert_eq!(
        (changed.text("/title"), changed.text("/licence")),
        ("More digits", "MIT OR Apache-2.0")
    );
    patch(&tag, json!({ "title": "Late" }))
        .await
        .expect_problem(StatusCode::PRECONDITION_FAILED, "precondition_failed");
    let new_tag = changed.header(header::ETAG).to_owned();
    for (body, pointer) in [
        (json!({ "licence": "free" }), "/licence"),
        (json!({ "title": null }), "/title"),
        (json!({ "name": "x" }), "/name"),
    ] {
        let refused = patch(&new_tag, body)
            .await
            .expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
        assert_eq!(refused.text("/errors/0/pointer"), pointer);
    }
    let message = json!({ "message": "use digits-2" });
    let deprecated = app
        .request(Method::POST, &format!("{path}/deprecate"))
        .by(&seller)
        .json(&message)
        .send()
        .await;
    assert_eq!(
        deprecated.expect(StatusCode::OK).text("/deprecation"),
        "use digits-2"
    );
    let back = act(&app, &seller, &format!("{path}/undeprecate"))
        .await
        .expect(StatusCode::OK);
    assert_eq!(back.json["deprecation"], Value::Null);
    for _ in 0..2 {
        dataset(&app, &seller).await;
    }
    let page = get(&app, &seller, "/v1/datasets?limit=2")
        .await
        .expect(StatusCode::OK);
    let next = format!("/v1/datasets?limit=2&cursor={}", page.text("/next_cursor"));
    let last = get(&app, &seller, &next).await.expect(StatusCode::OK);
    assert_eq!(
        (
            last.json["data"].as_array().unwrap().len(),
            last.text("/data/0/name")
        ),
        (1, "digits")
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_is_listed_is_seen_by_all_and_read_in_its_samples_alone(db: PgPool) {
    let app = TestApp::new(db).await;
    let (seller, stranger) = (app.session().await, app.session().await);
    let empty = dataset(&app, &seller).await;
    act(&app, &seller, &format!("{empty}/list"))
        .await
        .expect_problem(StatusCode::CONFLICT, "nothing_ready");
    let (dataset, version, files) = published(
        &app,
        &seller,
        &[("sample.csv", b"a\n1\n"), ("all.csv", b"a\n1\n2\n")],
    )
    .await;
    let hidden = draft(&app, &seller, &dataset).await;
    let seen = [
        dataset.clone(),
        format!("{dataset}/versions"),
        version.clone(),
        format!("{version}/manifest"),
        format!("{version}/files"),
        files[1].clone(),
    ];
    for path in &seen {
        get(&app, &stranger, path)
            .await
            .expect(StatusCode::NOT_FOUND);
    }
    act(&app, &seller, &format!("{dataset}/list"))
        .await
        .expect(StatusCode::OK);
    for path in &seen {
        get(&app, &stranger, path).await.expect(StatusCode::OK);
    }
    let versions = get(&app, &stranger, &format!("{dataset}/versions")).await;
    assert_eq!(
        versions.json["data"].as_array().unwrap().len(),
        1,
        "the draft stays hidden"
    );
    get(&app, &stranger, &hidden)
        .await
        .expect(StatusCode::NOT_FOUND);
    let sample = get(&app, &stranger, &format!("{}/content", files[0]))
        .await
        .expect(StatusCode::OK);
    assert_eq!(sample.bytes, b"a\n1\n");
    let refused = get(&app, &stranger, &format!("{}/content", files[1])).await;
    refused.expect_problem(StatusCode::FORBIDDEN, "not_entitled");
    for (method, path) in [
        (Method::DELETE, version.clone()),
        (Method::POST, format!("{version}/publish")),
        (Method::POST, format!("{dataset}/withdraw")),
        (Method::PUT, format!("{}/parts/0", files[0])),
        (Method::DELETE, files[0].clone()),
    ] {
        let theirs = app.request(method, &path).by(&stranger).send().await;
        theirs.expect(StatusCode::NOT_FOUND);
    }
    act(&app, &seller, &format!("{dataset}/withdraw"))
        .await
        .expect(StatusCode::OK);
    for path in seen.iter().chain([&format!("{}/content", files[0])]) {
        get(&app, &stranger, path)
            .await
            .expect(StatusCode::NOT_FOUND);
    }
}
