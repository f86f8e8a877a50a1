use axum::http::{Method, StatusCode, header};
use comptoir_domain::dataset::{FILES_MAX, ManifestFile, root};
use comptoir_store::dataset_checks::Takes;
use futures::future::join;
use serde_json::json;
use sqlx::PgPool;

use super::{
    PART, act, announce, announcement, check, dataset, draft, fill, get, objects, patterned,
    published, put, submit,
};
use crate::harness::{LIMITS, TestApp};

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_upload_that_broke_off_goes_on_and_comes_back_whole_and_in_ranges(db: PgPool) {
    let app = TestApp::new(db).await;
    let seller = app.session().await;
    let dataset = dataset(&app, &seller).await;
    let version = draft(&app, &seller, &dataset).await;
    let large = patterned(2 * PART + 100_001);
    let files = announce(
        &app,
        &seller,
        &version,
        &[
            ("data/large.bin", &large),
            ("a.csv", b"x,y\n1,2\n\"3\n\",=4\n"),
        ],
    )
    .await;
    for (part, bytes) in [(0, &large[..PART]), (2, &large[2 * PART..])] {
        put(&app, &seller, &files[0], part, bytes)
            .await
            .expect(StatusCode::NO_CONTENT);
    }
    let found = get(&app, &seller, &files[0]).await.expect(StatusCode::OK);
    assert_eq!(
        (&found.json["missing_parts"], &found.json["parts"]),
        (&json!([1]), &json!(3))
    );
    let early = act(&app, &seller, &format!("{version}/publish")).await;
    let early = early.expect_problem(StatusCode::CONFLICT, "version_incomplete");
    assert!(
        early
            .text("/detail")
            .contains("data/large.bin has 2 of 3 parts")
    );
    put(&app, &seller, &files[1], 0, b"x,y\n1,2\n\"3\n\",=4\n")
        .await
        .expect(StatusCode::NO_CONTENT);
    // The second try replaces the first one, and removes what it stored.
    let wrong = vec![0; PART];
    for bytes in [&wrong[..], &large[PART..2 * PART]] {
        put(&app, &seller, &files[0], 1, bytes)
            .await
            .expect(StatusCode::NO_CONTENT);
        assert_eq!(objects(&app).len(), 4);
    }
    let ready = submit(&app, &seller, &version).await;
    assert_eq!(
        (
            ready.text("/state"),
            &ready.json["number"],
            ready.text("/licence")
        ),
        ("ready", &json!(1), "CC-BY-4.0")
    );

    let manifest = get(&app, &seller, &format!("{version}/manifest"))
        .await
        .expect(StatusCode::OK);
    let entries: Vec<ManifestFile> =
        serde_json::from_value(manifest.json["files"].clone()).unwrap();
    assert_eq!(ready.text("/manifest_root"), root(&entries).to_string());
    assert_eq!(manifest.text("/files/0/path"), "a.csv");
    assert_eq!(
        manifest.json["files"][0]["facts"],
        json!({ "rows": 2, "columns": [{ "name": "x", "type": "text" }, { "name": "y", "type": "text" }] })
    );

    let content = format!("{}/content", files[0]);
    let whole = get(&app, &seller, &content).await.expect(StatusCode::OK);
    assert!(whole.bytes == large, "the bytes come back");
    let tag = whole.header(header::ETAG).to_owned();
    let chunk = 64 << 10;
    for (first, last) in [
        (0, 0),
        (chunk - 1, chunk),
        (PART - 5, PART + 5),
        (7, 2 * PART + 9),
        (large.len() - 1, large.len() + 9),
    ] {
        let part = app
            .get(&content)
            .by(&seller)
            .header(header::RANGE, &format!("bytes={first}-{last}"))
            .header(header::IF_RANGE, &tag);
        let part = part.send().await.expect(StatusCode::PARTIAL_CONTENT);
        assert!(
            part.bytes == large[first..(last + 1).min(large.len())],
            "{first}-{last}"
        );
    }
    let known = app
        .get(&content)
        .by(&seller)
        .header(header::IF_NONE_MATCH, &tag)
        .send()
        .await;
    assert_eq!(known.status, StatusCode::NOT_MODIFIED);
    let behind = app
        .get(&content)
        .by(&seller)
        .header(header::RANGE, "bytes=99999999999-")
        .send()
        .await;
    behind.expect_problem(StatusCode::RANGE_NOT_SATISFIABLE, "range_not_satisfiable");
    let stored: Vec<u8> = objects(&app)
        .iter()
        .flat_map(|it| std::fs::read(it).unwrap())
        .collect();
    assert!(
        !stored.windows(64).any(|it| it == &large[..64]),
        "nothing lies there readable"
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_is_published_never_changes(db: PgPool) {
    let app = TestApp::new(db).await;
    let seller = app.session().await;
    let (dataset, version, files) = published(&app, &seller, &[("a.csv", b"a\n1\n")]).await;
    let before = get(&app, &seller, &version).await.json;
    put(&app, &seller, &files[0], 0, b"a\n2\n")
        .await
        .expect_problem(StatusCode::CONFLICT, "version_not_draft");
    let more = app
        .post(&format!("{version}/files"), &announcement(&[("b", b"b")]))
        .by(&seller)
        .send()
        .await;
    more.expect_problem(StatusCode::CONFLICT, "version_not_draft");
    let less = app
        .request(Method::DELETE, &files[0])
        .by(&seller)
        .send()
        .await;
    less.expect_problem(StatusCode::CONFLICT, "version_not_draft");
    let again = act(&app, &seller, &format!("{version}/publish"))
        .await
        .expect(StatusCode::OK);
    assert_eq!(again.json, before, "publishing again changes nothing");
    for change in [
        "UPDATE dataset_versions SET manifest_root = decode(repeat('00', 32), 'hex')",
        "UPDATE dataset_versions SET state = 'draft', number = NULL, manifest_root = NULL, published_at = NULL",
        "UPDATE dataset_versions SET wrapped_key = decode(repeat('00', 60), 'hex')",
        "DELETE FROM dataset_versions",
        "UPDATE dataset_files SET is_sample = true",
        "UPDATE dataset_files SET facts = NULL",
        "DELETE FROM dataset_files",
        "UPDATE dataset_parts SET salt = decode(repeat('00', 16), 'hex')",
        "DELETE FROM dataset_parts",
        "TRUNCATE dataset_parts",
    ] {
        assert!(
            sqlx::query(change).execute(&app.owner).await.is_err(),
            "{change}"
        );
    }
    // Versions after it count on.
    let next = draft(&app, &seller, &dataset).await;
    fill(&app, &seller, &next, &[("a.csv", b"a\n2\n")]).await;
    assert_eq!(submit(&app, &seller, &next).await.json["number"], 2);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn two_that_publish_at_once_publish_once(db: PgPool) {
    let app = TestApp::new(db).await;
    let seller = app.session().await;
    let dataset = dataset(&app, &seller).await;
    let version = draft(&app, &seller, &dataset).await;
    fill(&app, &seller, &version, &[("a.csv", b"a\n1\n")]).await;
    let path = format!("{version}/publish");
    let (one, two) = join(act(&app, &seller, &path), act(&app, &seller, &path)).await;
    assert_eq!(
        (one.text("/state"), two.text("/state")),
        ("checking", "checking")
    );
    let (one, two) = Box::pin(join(
        check::step(&app.state, Takes::All),
        check::step(&app.state, Takes::All),
    ))
    .await;
    assert_eq!(
        [one.unwrap(), two.unwrap()]
            .iter()
            .filter(|it| **it)
            .count(),
        1,
        "one of two checkers has it"
    );
    assert_eq!(get(&app, &seller, &version).await.json["number"], 1);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn paths_that_no_folder_can_hold_are_refused(db: PgPool) {
    let app = TestApp::new(db).await;
    let seller = app.session().await;
    let dataset = dataset(&app, &seller).await;
    let version = draft(&app, &seller, &dataset).await;
    let files = format!("{version}/files");
    let announce = async |body| app.post(&files, &body).by(&seller).send().await;
    for path in [
        "",
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a//b",
        "a/",
        ".",
        "..\\x",
        "C:\\x",
        "a\u{1}b",
        "nul",
        "a/COM1.csv",
        "a.",
        &"a/".repeat(400),
    ] {
        let refused = announce(announcement(&[(path, b"x")])).await;
        let refused = refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
        assert_eq!(refused.text("/errors/0/pointer"), "/files/0/path", "{path}");
    }
    for same in [["a", "a"], ["a", "A"], ["straße", "STRAßE"]] {
        let twice = announce(announcement(&[(same[0], b"x"), (same[1], b"y")])).await;
        twice.expect_problem(StatusCode::CONFLICT, "path_taken");
    }
    let sizes = |bytes: u64| json!({ "files": [{ "path": "a", "bytes": bytes, "sha256": "00".repeat(32) }] });
    for bytes in [0, (64 << 30) + 1, u64::MAX] {
        announce(sizes(bytes))
            .await
            .expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    }
    announce(sizes(LIMITS.storage_bytes + 1))
        .await
        .expect_problem(StatusCode::FORBIDDEN, "limit_reached");
    let empty = act(&app, &seller, &format!("{version}/publish")).await;
    assert_eq!(
        empty
            .expect_problem(StatusCode::CONFLICT, "version_incomplete")
            .text("/detail"),
        "It has no files"
    );
    fill(&app, &seller, &version, &[("a", b"x"), ("A/b", b"y")]).await;
    let conflict = act(&app, &seller, &format!("{version}/publish")).await;
    let conflict = conflict.expect_problem(StatusCode::CONFLICT, "version_incomplete");
    assert!(conflict.text("/detail").starts_with("a is a file"));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_version_has_ten_thousand_files_and_no_more(db: PgPool) {
    let app = TestApp::new(db).await;
    let seller = app.session().await;
    let dataset = dataset(&app, &seller).await;
    let version = draft(&app, &seller, &dataset).await;
    let files = |from: u32, count: u32| {
        let files = (from..from + count)
            .map(|n| json!({ "path": n.to_string(), "bytes": 1, "sha256": "00".repeat(32) }));
        json!({ "files": files.collect::<Vec<_>>() })
    };
    let announce = async |body| {
        app.post(&format!("{version}/files"), &body)
            .by(&seller)
            .send()
            .await
    };
    announce(files(0, 501))
        .await
        .expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    announce(files(0, 100_000))
        .await
        .expect_problem(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large");
    for round in 0..FILES_MAX / 500 {
        announce(files(round * 500, 500))
            .await
            .expect(StatusCode::CREATED);
    }
    announce(files(FILES_MAX, 1))
        .await
        .expect_problem(StatusCode::CONFLICT, "too_many_files");
    assert_eq!(get(&app, &seller, &version).await.json["files"], FILES_MAX);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_part_has_its_length_and_leaves_nothing_when_it_has_not(db: PgPool) {
    let app = TestApp::new(db).await;
    let seller = app.session().await;
    let dataset = dataset(&app, &seller).await;
    let version = draft(&app, &seller, &dataset).await;
    let bytes = patterned(100_000);
    let file = announce(&app, &seller, &version, &[("a", &bytes)])
        .await
        .remove(0);
    for wrong in [
        &b""[..],
        &bytes[1..],
        &[&bytes[..], b"x"].concat(),
        &patterned(3 << 20),
    ] {
        put(&app, &seller, &file, 0, wrong)
            .await
            .expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "part_length");
    }
    put(&app, &seller, &file, 1, b"x")
        .await
        .expect_problem(StatusCode::NOT_FOUND, "not_found");
    put(&app, &seller, &file, 4_294_967_296, b"x")
        .await
        .expect_problem(StatusCode::NOT_FOUND, "not_found");
    let lie = app
        .request(Method::PUT, &format!("{file}/parts/0"))
        .by(&seller)
        .header(header::CONTENT_LENGTH, "7");
    lie.body(bytes.clone())
        .send()
        .await
        .expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "part_length");
    assert_eq!(objects(&app), Vec::<std::path::PathBuf>::new());
    put(&app, &seller, &file, 0, &bytes)
        .await
        .expect(StatusCode::NO_CONTENT);
    app.request(Method::DELETE, &file)
        .by(&seller)
        .send()
        .await
        .expect(StatusCode::NO_CONTENT);
    assert_eq!(
        objects(&app),
        Vec::<std::path::PathBuf>::new(),
        "a file that is taken back takes its parts with it"
    );
    assert_eq!(get(&app, &seller, &version).await.json["bytes"], 0);
}
