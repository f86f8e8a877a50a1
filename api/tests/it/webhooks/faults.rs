//! Receivers that misbehave, and names that mean something else by the time that they are called.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use comptoir_api::webhooks::{Webhooks, guard::Guard};
use serde_json::{Value, json};
use sqlx::PgPool;

use super::{
    create, endpoint, happen, last_delivery, lookup,
    receiver::{Answer, Receiver},
    send_due,
};
use crate::harness::{Session, TestApp};

/// What comes of one event that is sent to this endpoint.
async fn attempt(app: &TestApp, owner: &Session, id: &str) -> Value {
    happen(app, owner.account, "job.failed", 1).await;
    assert_eq!(send_due(app).await, 1);
    last_delivery(app, owner, id).await["log"][0].clone()
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_redirect_is_not_followed(db: PgPool) {
    let app = TestApp::new(db).await;
    let owner = app.session().await;
    let receiver = Receiver::start().await;
    receiver.answer(Answer::Redirect(receiver.url("/elsewhere")));
    let (id, _) = endpoint(&app, &owner, &receiver).await;
    let log = attempt(&app, &owner, &id).await;
    assert_eq!(
        (&log["status"], &log["error"]),
        (&json!(307), &json!("redirect"))
    );
    assert_eq!(receiver.only().path, "/hook");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_answer_without_end_is_read_to_its_limit(db: PgPool) {
    let app = TestApp::new(db).await;
    let owner = app.session().await;
    let receiver = Receiver::answering(Answer::Endless).await;
    let (id, _) = endpoint(&app, &owner, &receiver).await;
    let log = attempt(&app, &owner, &id).await;
    assert_eq!((&log["status"], &log["error"]), (&json!(200), &json!(null)));
    assert_eq!(log["answer"].as_str().unwrap().len(), 1_024);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_answer_that_comes_too_late_or_drips_counts_as_none(db: PgPool) {
    let mut app = TestApp::new(db).await;
    app.state.webhooks.attempt_max = Duration::from_millis(300);
    for answer in [Answer::Late(Duration::from_mins(1)), Answer::Drip] {
        let owner = app.session().await;
        let receiver = Receiver::answering(answer).await;
        let (id, _) = endpoint(&app, &owner, &receiver).await;
        let log = attempt(&app, &owner, &id).await;
        assert_eq!(
            (&log["status"], &log["error"]),
            (&json!(null), &json!("timeout"))
        );
        assert!(
            (300..5_000).contains(&log["latency_ms"].as_i64().unwrap()),
            "{log}"
        );
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_receiver_that_is_not_there_is_tried_again(db: PgPool) {
    let app = TestApp::new(db).await;
    let owner = app.session().await;
    let receiver = Receiver::start().await;
    let (id, _) = endpoint(&app, &owner, &receiver).await;
    drop(receiver);
    tokio::task::yield_now().await;
    let log = attempt(&app, &owner, &id).await;
    assert_eq!(
        (&log["status"], &log["error"]),
        (&json!(null), &json!("connect"))
    );
    assert_eq!(last_delivery(&app, &owner, &id).await["state"], "pending");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn bytes_that_are_no_text_are_shown_for_what_they_are(db: PgPool) {
    let app = TestApp::new(db).await;
    let owner = app.session().await;
    let receiver = Receiver::answering(Answer::Bytes(500, b"\xff\0not quite")).await;
    let (id, _) = endpoint(&app, &owner, &receiver).await;
    let log = attempt(&app, &owner, &id).await;
    assert_eq!(log["answer"], "\u{fffd}\0not quite");
    let bytes = BASE64_STANDARD.decode(log["answer_base64"].as_str().unwrap());
    assert_eq!(bytes.unwrap(), b"\xff\0not quite");
}

/// A service whose name `rebound.test` means a public address for the first so many look-ups, and this machine from then on.
async fn rebinding(db: PgPool, public: usize) -> (TestApp, Arc<AtomicUsize>) {
    let mut app = TestApp::new(db).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let means = move |_: &str| {
        let is_public = counted.fetch_add(1, Ordering::SeqCst) < public;
        vec![if is_public {
            "93.184.215.14"
        } else {
            "127.0.0.1"
        }]
    };
    let guard = Guard::with_lookup(Vec::new(), lookup(means));
    app.replace_webhooks(Webhooks::new(guard).unwrap());
    (app, asked)
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_name_that_means_this_machine_at_the_attempt_is_not_called(db: PgPool) {
    let (app, asked) = rebinding(db, 1).await;
    let owner = app.session().await;
    let made = create(
        &app,
        &owner,
        &json!({ "url": "https://rebound.test:8443/" }),
    )
    .await;
    let log = attempt(&app, &owner, made.text("/id")).await;
    assert_eq!(
        (&log["status"], &log["error"]),
        (&json!(null), &json!("address_refused"))
    );
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_name_that_changes_between_the_check_and_the_connection_is_not_called(db: PgPool) {
    let (app, asked) = rebinding(db, 2).await;
    let owner = app.session().await;
    let made = create(
        &app,
        &owner,
        &json!({ "url": "https://rebound.test:8443/" }),
    )
    .await;
    let log = attempt(&app, &owner, made.text("/id")).await;
    assert_eq!(
        (&log["status"], &log["error"]),
        (&json!(null), &json!("address_refused"))
    );
    assert_eq!(
        asked.load(Ordering::SeqCst),
        3,
        "the connection asked once more, and judged what it heard"
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_url_that_was_good_once_is_judged_at_each_attempt(db: PgPool) {
    let mut app = TestApp::new(db).await;
    let owner = app.session().await;
    let receiver = Receiver::start().await;
    let (id, _) = endpoint(&app, &owner, &receiver).await;
    let guard = Guard::with_lookup(Vec::new(), lookup(|_| Vec::new()));
    app.replace_webhooks(Webhooks::new(guard).unwrap());
    let log = attempt(&app, &owner, &id).await;
    assert_eq!(
        (&log["status"], &log["error"]),
        (&json!(null), &json!("address_refused"))
    );
    assert!(receiver.got().is_empty());
}
