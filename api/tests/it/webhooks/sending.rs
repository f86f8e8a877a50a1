//! What is sent, when, and how often.

use std::sync::Arc;

use axum::http::{Method, StatusCode};
use comptoir_api::webhooks::sender::Sender;
use comptoir_domain::webhook::SCHEDULE;
use serde_json::json;
use sqlx::PgPool;
use time::Duration;
use tokio::sync::Notify;

use super::{
    count, deliveries, endpoint, happen, last_delivery, leases_run_out, patch,
    receiver::{Answer, Receiver},
    send_all, send_due, shown, surely, test, tidy,
};
use crate::{harness::TestApp, market, passwords::letters};

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_happens_is_sent_signed_and_thin(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (client, _) = market::client(&app, &asset, 1_000_000).await;
    let receiver = Receiver::start().await;
    let (id, secret) = endpoint(&app, &client, &receiver).await;
    let job = market::job(&app, &client, "none").await;

    assert_eq!(send_due(&app).await, 1);
    let got = receiver.only();
    assert_eq!(
        (got.method.clone(), got.path.as_str()),
        (Method::POST, "/hook")
    );
    assert_eq!(got.header("content-type"), "application/json");
    assert!(got.is_signed_with(&secret));
    assert!(!got.is_signed_with("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"));
    assert_eq!(
        got.header("webhook-timestamp"),
        app.now().unix_timestamp().to_string()
    );
    assert!(got.body.len() < 20_000);
    assert_eq!(
        got.json(),
        json!({
            "type": "job.queued",
            "timestamp": "2026-11-22T09:00:00Z",
            "data": { "job_id": job.text("/id"), "seq": 1 },
        })
    );

    let event = app
        .get(&format!("/v1/events/{}", got.header("webhook-id")))
        .by(&client);
    let event = event.send().await.expect(StatusCode::OK);
    assert_eq!(event.text("/type"), "job.queued");
    assert_eq!(event.json["data"], got.json()["data"]);
    let delivery = last_delivery(&app, &client, &id).await;
    assert_eq!(delivery["state"], "delivered");
    assert_eq!(delivery["event_id"], got.header("webhook-id"));
    let log = &delivery["log"][0];
    assert_eq!(
        (&log["status"], &log["answer"], &log["error"]),
        (&json!(200), &json!("ok"), &json!(null))
    );
    assert_eq!(send_due(&app).await, 0, "once is enough");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_fails_is_tried_again_by_the_schedule(db: PgPool) {
    let app = TestApp::new(db).await;
    let owner = app.session().await;
    let receiver = Receiver::answering(Answer::Status(500, "out of order")).await;
    let (id, secret) = endpoint(&app, &owner, &receiver).await;
    happen(&app, owner.account, "job.failed", 1).await;
    for (attempt, pause) in (1..).zip(&SCHEDULE[1..=3]) {
        assert_eq!(send_due(&app).await, 1, "attempt {attempt}");
        let delivery = last_delivery(&app, &owner, &id).await;
        assert_eq!(
            (&delivery["state"], &delivery["attempts"]),
            (&json!("pending"), &json!(attempt))
        );
        assert_eq!(send_due(&app).await, 0, "not at once again");
        app.pass(*pause - Duration::SECOND);
        assert_eq!(send_due(&app).await, 0, "not before its time");
        app.pass(surely(*pause) - *pause + Duration::SECOND);
    }
    receiver.answer(Answer::Status(204, ""));
    assert_eq!(send_due(&app).await, 1);
    assert_eq!(shown(&app, &owner, &id).await["failing_since"], json!(null));
    let delivery = last_delivery(&app, &owner, &id).await;
    assert_eq!(delivery["state"], "delivered");
    let statuses: Vec<_> = delivery["log"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["status"].clone())
        .collect();
    assert_eq!(statuses, [500, 500, 500, 204]);
    assert_eq!(delivery["log"][0]["answer"], "out of order");
    let got = receiver.got();
    assert!(got.iter().all(|it| it.is_signed_with(&secret)));
    assert!(got.iter().all(|it| it.body == got[0].body));
    assert!(
        got.iter()
            .all(|it| it.header("webhook-id") == got[0].header("webhook-id"))
    );
    assert_ne!(
        got[0].header("webhook-timestamp"),
        got[1].header("webhook-timestamp")
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_endpoint_that_fails_for_days_is_disabled_and_its_owner_told(db: PgPool) {
    let mut app = TestApp::new(db).await;
    let mail = tempfile::tempdir().unwrap();
    app.with_mail(mail.path());
    let owner = app.session().await;
    let receiver = Receiver::answering(Answer::Status(503, "")).await;
    let (id, _) = endpoint(&app, &owner, &receiver).await;
    let since = app.now();
    happen(&app, owner.account, "job.failed", 1).await;
    for pause in SCHEDULE {
        app.pass(surely(pause));
        assert_eq!(send_due(&app).await, 1);
    }
    assert_eq!(receiver.got().len(), SCHEDULE.len());
    let delivery = last_delivery(&app, &owner, &id).await;
    assert_eq!(
        (&delivery["state"], &delivery["next_attempt_at"]),
        (&json!("failed"), &json!(null))
    );
    let disabled = shown(&app, &owner, &id).await;
    assert_eq!(
        (&disabled["enabled"], &disabled["disabled_reason"]),
        (&json!(false), &json!("failing"))
    );

    comptoir_api::steps::step(&app.state).await.unwrap();
    let letters = letters(mail.path());
    assert_eq!(letters.len(), 1);
    assert!(
        letters[0].contains(&id) && letters[0].contains("disabled"),
        "{}",
        letters[0]
    );

    // What happens meanwhile is not sent, but kept, and sent once it is asked for.
    happen(&app, owner.account, "job.completed", 2).await;
    assert_eq!(send_due(&app).await, 0);
    let owner = app.renewed(&owner);
    let since =
        json!({ "since": since.format(&time::format_description::well_known::Rfc3339).unwrap() });
    let redeliver = || {
        app.post(&format!("/v1/webhook-endpoints/{id}/redeliver"), &since)
            .by(&owner)
            .send()
    };
    redeliver()
        .await
        .expect_problem(StatusCode::CONFLICT, "webhook_endpoint_disabled");
    receiver.answer(Answer::Status(200, ""));
    patch(&app, &owner, &id, &json!({ "enabled": true }))
        .await
        .expect(StatusCode::OK);
    let begun = redeliver().await.expect(StatusCode::OK);
    assert_eq!(
        (&begun.json["redelivered"], &begun.json["has_more"]),
        (&json!(3), &json!(false))
    );
    send_all(&app).await;
    assert!(
        deliveries(&app, &owner, &id)
            .await
            .iter()
            .all(|it| it["state"] == "delivered")
    );
    assert_eq!(receiver.got().len(), SCHEDULE.len() + 3);
    assert_eq!(
        redeliver().await.json["redelivered"],
        0,
        "what was taken is not sent again"
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_endpoint_that_answers_410_gets_nothing_more(db: PgPool) {
    let app = TestApp::new(db).await;
    let owner = app.session().await;
    let receiver = Receiver::answering(Answer::Status(410, "moved out")).await;
    let (id, _) = endpoint(&app, &owner, &receiver).await;
    happen(&app, owner.account, "job.failed", 6).await;
    let sent = send_due(&app).await;
    assert_eq!(sent, 4, "as many as are sent at once");
    tidy(&app).await;
    happen(&app, owner.account, "job.failed", 1).await;
    assert_eq!(send_due(&app).await, 0);
    assert_eq!(receiver.got().len(), sent);
    let endpoint = shown(&app, &owner, &id).await;
    assert_eq!(endpoint["disabled_reason"], "gone");
    let states: Vec<_> = deliveries(&app, &owner, &id)
        .await
        .iter()
        .map(|it| it["state"].clone())
        .collect();
    assert_eq!(states.iter().filter(|it| **it == "failed").count(), 4);
    assert_eq!(states.iter().filter(|it| **it == "cancelled").count(), 2);
    assert_eq!(
        count(&app, "notices WHERE kind = 'webhook_disabled'").await,
        1,
        "told once"
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn two_senders_at_once_send_each_event_once(db: PgPool) {
    let app = TestApp::new(db).await;
    let owner = app.session().await;
    let receiver = Receiver::start().await;
    endpoint(&app, &owner, &receiver).await;
    happen(&app, owner.account, "job.queued", 30).await;
    let (mut one, mut other) = (
        Sender::new(app.state.clone()),
        Sender::new(app.state.clone()),
    );
    loop {
        let (first, second) = tokio::join!(one.begin(), other.begin());
        if first.unwrap() + second.unwrap() == 0 {
            break;
        }
        tokio::join!(one.finish(), other.finish());
    }
    let mut ids: Vec<_> = receiver
        .got()
        .iter()
        .map(|it| it.header("webhook-id").to_owned())
        .collect();
    ids.sort();
    ids.dedup();
    assert_eq!((ids.len(), receiver.got().len()), (30, 30));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_sender_that_dies_after_sending_lets_it_be_sent_again(db: PgPool) {
    let app = TestApp::new(db).await;
    let owner = app.session().await;
    let held = Arc::new(Notify::new());
    let receiver = Receiver::answering(Answer::Held(Arc::clone(&held))).await;
    let (id, _) = endpoint(&app, &owner, &receiver).await;
    happen(&app, owner.account, "job.completed", 1).await;
    let mut dying = Sender::new(app.state.clone());
    assert_eq!(dying.begin().await.unwrap(), 1);
    receiver.until(1).await;
    drop(dying);

    receiver.answer(Answer::Status(200, ""));
    assert_eq!(send_due(&app).await, 0, "somebody has it");
    leases_run_out(&app).await;
    assert_eq!(send_due(&app).await, 1);
    let got = receiver.got();
    assert_eq!(got.len(), 2, "at least once, not at most");
    assert_eq!(got[0].header("webhook-id"), got[1].header("webhook-id"));
    let delivery = last_delivery(&app, &owner, &id).await;
    assert_eq!(
        (&delivery["state"], &delivery["attempts"]),
        (&json!("delivered"), &json!(1))
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_sender_that_lost_its_lease_writes_nothing_down(db: PgPool) {
    let app = TestApp::new(db).await;
    let owner = app.session().await;
    let held = Arc::new(Notify::new());
    let receiver = Receiver::answering(Answer::Held(Arc::clone(&held))).await;
    let (id, _) = endpoint(&app, &owner, &receiver).await;
    happen(&app, owner.account, "job.completed", 1).await;
    let mut late = Sender::new(app.state.clone());
    assert_eq!(late.begin().await.unwrap(), 1);
    receiver.until(1).await;
    leases_run_out(&app).await;
    receiver.answer(Answer::Status(500, ""));
    assert_eq!(send_due(&app).await, 1);
    held.notify_one();
    late.finish().await;
    let delivery = last_delivery(&app, &owner, &id).await;
    assert_eq!(
        (&delivery["state"], &delivery["attempts"]),
        (&json!("pending"), &json!(1))
    );
    assert_eq!(delivery["log"][0]["status"], 500);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_receiver_that_does_not_answer_holds_nobody_else_up(db: PgPool) {
    let app = TestApp::new(db).await;
    let (slow, quick) = (app.session().await, app.session().await);
    let held = Arc::new(Notify::new());
    let stuck = Receiver::answering(Answer::Held(Arc::clone(&held))).await;
    let well = Receiver::start().await;
    endpoint(&app, &slow, &stuck).await;
    endpoint(&app, &quick, &well).await;
    happen(&app, slow.account, "job.queued", 100).await;
    let mut sender = Sender::new(app.state.clone());
    assert_eq!(
        sender.begin().await.unwrap(),
        4,
        "as many as one endpoint may have at once"
    );
    stuck.until(4).await;
    happen(&app, quick.account, "job.queued", 3).await;
    assert_eq!(sender.begin().await.unwrap(), 3);
    well.until(3).await;
    assert_eq!((stuck.got().len(), stuck.most_at_once()), (4, 4));
    drop(sender);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_account_with_many_slow_endpoints_holds_nobody_else_up(db: PgPool) {
    let app = TestApp::new(db).await;
    let (slow, quick) = (app.session().await, app.session().await);
    let held = Arc::new(Notify::new());
    let stuck = Receiver::answering(Answer::Held(Arc::clone(&held))).await;
    let well = Receiver::start().await;
    for _ in 0..20 {
        endpoint(&app, &slow, &stuck).await;
    }
    endpoint(&app, &quick, &well).await;
    happen(&app, slow.account, "job.queued", 10).await;
    happen(&app, quick.account, "job.queued", 3).await;
    let mut sender = Sender::new(app.state.clone());
    // Sixteen at all endpoints of one account, though each may have four, and three of the other.
    assert_eq!(sender.begin().await.unwrap(), 16 + 3);
    stuck.until(16).await;
    well.until(3).await;
    happen(&app, quick.account, "job.queued", 1).await;
    assert_eq!(sender.begin().await.unwrap(), 1, "what is sent counts");
    well.until(4).await;
    assert_eq!(stuck.got().len(), 16);
    drop(sender);
    // Endpoints that are known to be slow are fewer still.
    let known = "UPDATE webhook_endpoints SET is_slow = true WHERE account_id = $1";
    let known = sqlx::query(known).bind(slow.account.0);
    known.execute(&app.owner).await.unwrap();
    leases_run_out(&app).await;
    let mut sender = Sender::new(app.state.clone());
    sender.begin().await.unwrap();
    let theirs = format!(
        "webhook_deliveries WHERE lease_expires_at > clock_timestamp() AND account_id = '{}'",
        slow.account.0
    );
    assert_eq!(count(&app, &theirs).await, 8);
    drop(sender);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_endpoint_that_failed_gets_one_attempt_at_a_time_and_then_pauses(db: PgPool) {
    let app = TestApp::new(db).await;
    let owner = app.session().await;
    let receiver = Receiver::answering(Answer::Status(500, "")).await;
    let (id, _) = endpoint(&app, &owner, &receiver).await;
    happen(&app, owner.account, "job.queued", 20).await;
    assert_eq!(send_due(&app).await, 4);
    assert_eq!(send_due(&app).await, 1, "it failed");
    assert_eq!(send_due(&app).await, 0, "five failures in a row");
    app.pass(Duration::MINUTE);
    assert_eq!(send_due(&app).await, 1, "one, to see whether it is back");
    assert_eq!(send_due(&app).await, 0);
    app.pass(Duration::minutes(2));
    receiver.answer(Answer::Status(200, ""));
    assert_eq!(send_due(&app).await, 1);
    assert_eq!(shown(&app, &owner, &id).await["failing_since"], json!(null));
    assert_eq!(send_due(&app).await, 4, "it is back");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn one_delivery_is_sent_again_on_request(db: PgPool) {
    let app = TestApp::new(db).await;
    let owner = app.session().await;
    let receiver = Receiver::start().await;
    let (id, _) = endpoint(&app, &owner, &receiver).await;
    let event = test(&app, &owner, &id).await;
    assert_eq!(send_due(&app).await, 1);
    let delivery = deliveries(&app, &owner, &id).await[0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = format!("/v1/webhook-endpoints/{id}/deliveries/{delivery}/redeliver");
    let again = || app.request(Method::POST, &path).by(&owner).send();
    let begun = again().await.expect(StatusCode::OK);
    assert_eq!(begun.text("/state"), "pending");
    again().await.expect(StatusCode::OK);
    send_all(&app).await;
    let got = receiver.got();
    assert_eq!(
        got.len(),
        2,
        "asked for twice before it was sent, it is sent once"
    );
    assert!(got.iter().all(|it| it.header("webhook-id") == event));
    let delivery = last_delivery(&app, &owner, &id).await;
    assert_eq!(
        (&delivery["attempts"], &delivery["state"]),
        (&json!(2), &json!("delivered"))
    );
    patch(&app, &owner, &id, &json!({ "enabled": false }))
        .await
        .expect(StatusCode::OK);
    again()
        .await
        .expect_problem(StatusCode::CONFLICT, "webhook_endpoint_disabled");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn both_secrets_sign_while_one_replaces_the_other(db: PgPool) {
    let app = TestApp::new(db).await;
    let owner = app.session().await;
    let receiver = Receiver::start().await;
    let (id, before) = endpoint(&app, &owner, &receiver).await;
    let path = format!("/v1/webhook-endpoints/{id}/rotate");
    let rotated = app
        .post(&path, &json!({ "previous_valid_s": 60 }))
        .by(&owner)
        .send()
        .await;
    let rotated = rotated.expect(StatusCode::OK);
    assert_eq!(
        rotated.text("/previous_secret_until"),
        "2026-11-22T09:01:00Z"
    );
    let after = rotated.text("/secret").to_owned();
    assert_ne!(before, after);
    test(&app, &owner, &id).await;
    send_all(&app).await;
    app.pass(Duration::seconds(61));
    test(&app, &owner, &id).await;
    send_all(&app).await;
    let got = receiver.got();
    assert_eq!(got[0].header("webhook-signature").split(' ').count(), 2);
    assert!(got[0].is_signed_with(&before) && got[0].is_signed_with(&after));
    assert!(got[1].is_signed_with(&after) && !got[1].is_signed_with(&before));
    assert_eq!(
        count(&app, "webhook_endpoints WHERE previous_secret IS NOT NULL").await,
        1
    );
    tidy(&app).await;
    assert_eq!(
        count(&app, "webhook_endpoints WHERE previous_secret IS NOT NULL").await,
        0
    );
}
