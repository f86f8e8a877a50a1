use std::{pin::pin, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{Method, StatusCode, header},
};
use comptoir_api::Uploads;
use comptoir_domain::digest::Sha256;
use futures::{FutureExt as _, future::join_all, stream};
use sqlx::PgPool;

use super::{announce, dataset, draft, put};
use crate::harness::{Reply, Session, TestApp};

/// A file of this seller that is announced.
async fn announced(app: &TestApp, seller: &Session) -> String {
    let dataset = dataset(app, seller).await;
    let version = draft(app, seller, &dataset).await;
    let files = announce(app, seller, &version, &[("a.bin", b"four")]).await;
    files[0].clone()
}

/// Begins to send and never goes on.
async fn hang(app: &TestApp, seller: &Session, path: &str) -> Reply {
    let body = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
    let call = app.request(Method::PUT, path).by(seller).body(body);
    call.header(header::CONTENT_LENGTH, "4").send().await
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn who_sends_slowly_takes_no_place_from_another(db: PgPool) {
    let app = TestApp::new(db).await;
    let (slow, other) = (app.session().await, app.session().await);
    let (theirs, own) = (announced(&app, &slow).await, announced(&app, &other).await);
    let part = format!("{theirs}/parts/0");
    let blob = format!("/v1/blobs/{}", Sha256::of(b"four"));
    let hanging = (0..64).flat_map(|_| [hang(&app, &slow, &part), hang(&app, &slow, &blob)]);
    let mut hanging = pin!(join_all(hanging).fuse());
    let sent = async {
        // Once those have all begun.
        tokio::task::yield_now().await;
        put(&app, &other, &own, 0, b"four").await
    };
    futures::select! {
        sent = pin!(sent.fuse()) => drop(sent.expect(StatusCode::NO_CONTENT)),
        // Those that wait for a place of the account itself give up in the end.
        _ = hanging => panic!("a part waited for somebody else's"),
    };
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_upload_that_takes_too_long_is_ended_and_leaves_nothing(db: PgPool) {
    let mut app = TestApp::new(db).await;
    app.replace_uploads(Uploads::within(Duration::from_millis(50)));
    let seller = app.session().await;
    let file = announced(&app, &seller).await;
    for path in [
        format!("{file}/parts/0"),
        format!("/v1/blobs/{}", Sha256::of(b"four")),
    ] {
        hang(&app, &seller, &path)
            .await
            .expect_problem(StatusCode::REQUEST_TIMEOUT, "request_timeout");
    }
    assert!(super::objects(&app).is_empty());
}
