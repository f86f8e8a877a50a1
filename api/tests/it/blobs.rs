use axum::{
    body::{Body, Bytes},
    http::{Method, StatusCode, header},
};
use comptoir_domain::digest::Sha256;
use futures::stream;
use sqlx::PgPool;

use crate::{
    harness::{Session, TestApp},
    market::{example, upload},
};

/// For the walk over every route.
pub async fn make(app: &TestApp, owner: &Session) -> Vec<String> {
    let bytes = b"walk";
    upload(app, owner, bytes).await;
    vec![Sha256::of(bytes).to_string()]
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_blob_comes_back_whole_and_in_parts(db: PgPool) {
    let app = TestApp::new(db).await;
    let session = app.session().await;
    let bytes = example("test.safetensors");
    let put = upload(&app, &session, &bytes)
        .await
        .expect(StatusCode::CREATED);
    let path = put.header(header::LOCATION).to_owned();
    assert_eq!(path, format!("/v1/blobs/{}", Sha256::of(&bytes)));
    assert_eq!(
        (put.text("/kind"), put.json["bytes"].as_u64()),
        ("tensors", Some(bytes.len() as u64))
    );

    let whole = app
        .get(&path)
        .by(&session)
        .send()
        .await
        .expect(StatusCode::OK);
    assert_eq!(whole.bytes, bytes);
    let tag = whole.header(header::ETAG).to_owned();
    let head = app
        .request(Method::HEAD, &path)
        .by(&session)
        .send()
        .await
        .expect(StatusCode::OK);
    assert_eq!(head.header(header::CONTENT_LENGTH), bytes.len().to_string());
    assert!(head.bytes.is_empty());
    let known = app
        .get(&path)
        .by(&session)
        .header(header::IF_NONE_MATCH, &tag)
        .send()
        .await;
    assert_eq!(
        (known.status, known.bytes.len()),
        (StatusCode::NOT_MODIFIED, 0)
    );

    let (size, end) = (bytes.len(), bytes.len() - 1);
    let parts = [
        ("bytes=0-7", 0..8),
        ("bytes=100-", 100..size),
        ("bytes=-5", size - 5..size),
        ("bytes=8-99999999", 8..size),
    ];
    for (range, expected) in parts {
        let part = app
            .get(&path)
            .by(&session)
            .header(header::RANGE, range)
            .send()
            .await;
        let part = part.expect(StatusCode::PARTIAL_CONTENT);
        let last = expected.end - 1;
        assert_eq!(
            part.header(header::CONTENT_RANGE),
            format!("bytes {}-{last}/{size}", expected.start)
        );
        assert_eq!(part.bytes, bytes[expected], "{range}");
    }
    let behind = app
        .get(&path)
        .by(&session)
        .header(header::RANGE, &format!("bytes={size}-"))
        .send()
        .await;
    let behind = behind.expect_problem(StatusCode::RANGE_NOT_SATISFIABLE, "range_not_satisfiable");
    assert_eq!(
        behind.header(header::CONTENT_RANGE),
        format!("bytes */{size}")
    );
    let stale = app
        .get(&path)
        .by(&session)
        .header(header::RANGE, &format!("bytes={end}-"))
        .header(header::IF_RANGE, "\"x\"");
    assert_eq!(stale.send().await.expect(StatusCode::OK).bytes, bytes);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn only_who_has_the_bytes_gets_the_blob(db: PgPool) {
    let app = TestApp::new(db).await;
    let (owner, other) = (app.session().await, app.session().await);
    let bytes = b"weights of a model";
    let path = format!("/v1/blobs/{}", Sha256::of(bytes));
    upload(&app, &owner, bytes)
        .await
        .expect(StatusCode::CREATED);
    app.get(&path)
        .by(&other)
        .send()
        .await
        .expect_problem(StatusCode::NOT_FOUND, "not_found");
    upload(&app, &other, bytes)
        .await
        .expect(StatusCode::CREATED);
    upload(&app, &other, bytes).await.expect(StatusCode::OK);
    assert_eq!(
        app.get(&path)
            .by(&other)
            .send()
            .await
            .expect(StatusCode::OK)
            .bytes,
        bytes
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_upload_that_is_not_what_it_says_leaves_nothing(db: PgPool) {
    let app = TestApp::new(db).await;
    let session = app.session().await;
    let path = format!("/v1/blobs/{}", Sha256::of(b"these bytes"));
    let put = || app.request(Method::PUT, &path).by(&session);
    let other = put().body(b"other bytes".as_slice()).send().await;
    other.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "digest_mismatch");
    let parts = [
        Ok(Bytes::from_static(b"these ")),
        Err(std::io::Error::other("the client is gone")),
    ];
    let cut = put()
        .body(Body::from_stream(stream::iter(parts)))
        .send()
        .await;
    cut.expect_problem(StatusCode::BAD_REQUEST, "malformed_request");
    let huge = put()
        .header(header::CONTENT_LENGTH, &((1_u64 << 30) + 1).to_string())
        .body("x")
        .send()
        .await;
    huge.expect_problem(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large");
    app.get(&path)
        .by(&session)
        .send()
        .await
        .expect(StatusCode::NOT_FOUND);
    put()
        .body(b"these bytes".as_slice())
        .send()
        .await
        .expect(StatusCode::CREATED);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_empty_blob_is_a_blob(db: PgPool) {
    let app = TestApp::new(db).await;
    let session = app.session().await;
    let put = upload(&app, &session, b"")
        .await
        .expect(StatusCode::CREATED);
    assert_eq!(put.text("/kind"), "other");
    let got = app
        .get(put.header(header::LOCATION))
        .by(&session)
        .send()
        .await
        .expect(StatusCode::OK);
    assert_eq!(
        (got.bytes.len(), got.header(header::CONTENT_LENGTH)),
        (0, "0")
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_file_is_known_by_its_content(db: PgPool) {
    let app = TestApp::new(db).await;
    let session = app.session().await;
    let program = upload(&app, &session, &example("convnet.pt2")).await;
    assert_eq!(
        (
            program.text("/kind"),
            program.json["program"]["trainable"].as_bool()
        ),
        ("program", Some(true))
    );
    assert_eq!(
        program.json["program"]["inputs"][0]["row"],
        serde_json::json!([1, 8, 8])
    );
    assert_eq!(
        program.json["program"]["outputs"][0]["row"],
        serde_json::json!([10])
    );

    let mut broken = example("convnet.pt2");
    broken.truncate(broken.len() / 2);
    for (bytes, reason) in [
        (b"\x80\x02}q\x00.".to_vec(), "pickle"),
        (broken, "directory"),
        (b"PK".to_vec(), ".pt2"),
    ] {
        let put = upload(&app, &session, &bytes)
            .await
            .expect(StatusCode::CREATED);
        assert_eq!(put.text("/kind"), "other");
        assert!(
            put.text("/detail").contains(reason),
            "{}",
            put.text("/detail")
        );
    }
}
