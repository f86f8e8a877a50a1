//! Passwords that were forgotten, and the mail that goes with them.

use std::path::Path;

use axum::http::{Method, StatusCode};
use comptoir_api::steps;
use serde_json::{Value, json};
use sqlx::PgPool;
use time::Duration;

use crate::harness::{Reply, Session, TestApp};

const EMAIL: &str = "someone@example.org";
const PASSWORD: &str = "a long enough password";
const OTHER: &str = "another long password";

async fn post(app: &TestApp, path: &str, body: &Value) -> Reply {
    let call = app.request(Method::POST, path).json(body);
    call.send().await
}

async fn sign_up(app: &TestApp) {
    let body = json!({ "email": EMAIL, "password": PASSWORD });
    let made = post(app, "/v1/accounts", &body).await;
    made.expect(StatusCode::CREATED);
}

async fn sign_in(app: &TestApp, password: &str) -> Reply {
    let body = json!({ "email": EMAIL, "password": password });
    post(app, "/v1/auth/token", &body).await
}

async fn ask(app: &TestApp, email: &str) -> Reply {
    post(app, "/v1/auth/password/resets", &json!({ "email": email })).await
}

async fn reset(app: &TestApp, token: &str, password: &str) -> Reply {
    let body = json!({ "token": token, "password": password });
    post(app, "/v1/auth/password", &body).await
}

/// The letters that were sent, oldest first; each is read once.
pub fn letters(folder: &Path) -> Vec<String> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort_by_key(|file| std::fs::metadata(file).unwrap().modified().unwrap());
    files
        .into_iter()
        .map(|file| {
            let letter = std::fs::read_to_string(&file).unwrap();
            std::fs::remove_file(&file).unwrap();
            // What quoted-printable does to a line that is too long.
            letter.replace("=\r\n", "").replace("\r\n", "\n")
        })
        .collect()
}

/// The token in the only letter.
fn token(folder: &Path) -> String {
    let [letter] = letters(folder).try_into().unwrap();
    assert!(letter.contains(&format!("To: {EMAIL}")), "{letter}");
    let token = letter
        .lines()
        .find_map(|line| line.trim().strip_prefix("crp_"));
    format!("crp_{}", token.unwrap())
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_forgotten_password_is_replaced_once_and_signs_everybody_out(db: PgPool) {
    let mut app = TestApp::new(db).await;
    let folder = tempfile::tempdir().unwrap();
    app.with_mail(folder.path());
    sign_up(&app).await;
    let signed_in = sign_in(&app, PASSWORD).await.expect(StatusCode::OK);
    ask(&app, "Someone@EXAMPLE.org")
        .await
        .expect(StatusCode::ACCEPTED);
    assert!(
        letters(folder.path()).is_empty(),
        "nothing leaves in the request"
    );
    steps::step(&app.state).await.unwrap();
    let token = token(folder.path());

    reset(&app, &token, "too short")
        .await
        .expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    reset(&app, &token, OTHER)
        .await
        .expect(StatusCode::NO_CONTENT);
    reset(&app, &token, PASSWORD)
        .await
        .expect_problem(StatusCode::UNAUTHORIZED, "invalid_grant");
    sign_in(&app, PASSWORD)
        .await
        .expect_problem(StatusCode::UNAUTHORIZED, "invalid_grant");
    let session = Session {
        token: signed_in.text("/access_token").to_owned(),
        ..app.session().await
    };
    let seen = app.get("/v1/account").by(&session).send().await;
    seen.expect_problem(StatusCode::UNAUTHORIZED, "unauthenticated");
    let body = json!({ "refresh_token": signed_in.text("/refresh_token") });
    post(&app, "/v1/auth/refresh", &body)
        .await
        .expect_problem(StatusCode::UNAUTHORIZED, "invalid_grant");
    sign_in(&app, OTHER).await.expect(StatusCode::OK);

    steps::step(&app.state).await.unwrap();
    let [told] = letters(folder.path()).try_into().unwrap();
    assert!(
        told.contains("Subject: Your password was replaced"),
        "{told}"
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_unknown_address_gets_the_same_answer_and_the_same_work(db: PgPool) {
    let mut app = TestApp::new(db).await;
    let folder = tempfile::tempdir().unwrap();
    app.with_mail(folder.path());
    sign_up(&app).await;
    let known = ask(&app, EMAIL).await.expect(StatusCode::ACCEPTED);
    let unknown = ask(&app, "nobody@example.org")
        .await
        .expect(StatusCode::ACCEPTED);
    assert_eq!((known.bytes, known.json), (unknown.bytes, unknown.json));
    let asked: i64 = sqlx::query_scalar("SELECT count(*) FROM password_reset_requests")
        .fetch_one(&app.owner)
        .await
        .unwrap();
    assert_eq!(asked, 2, "both are written, and looked up later");
    steps::step(&app.state).await.unwrap();
    assert_eq!(letters(folder.path()).len(), 1);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_token_holds_half_an_hour_and_ends_with_the_next(db: PgPool) {
    let mut app = TestApp::new(db).await;
    let folder = tempfile::tempdir().unwrap();
    app.with_mail(folder.path());
    sign_up(&app).await;
    let mail = async || {
        ask(&app, EMAIL).await.expect(StatusCode::ACCEPTED);
        steps::step(&app.state).await.unwrap();
    };
    mail().await;
    let first = token(folder.path());
    mail().await;
    assert!(letters(folder.path()).is_empty(), "one in two minutes");
    app.pass(Duration::minutes(3));
    mail().await;
    let second = token(folder.path());
    for (token, minutes) in [(first, 0), (second, 30)] {
        app.pass(Duration::minutes(minutes));
        reset(&app, &token, OTHER)
            .await
            .expect_problem(StatusCode::UNAUTHORIZED, "invalid_grant");
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_token_is_sealed_until_it_is_sent_and_gone_after(db: PgPool) {
    let mut app = TestApp::new(db).await;
    let folder = tempfile::tempdir().unwrap();
    sign_up(&app).await;
    ask(&app, EMAIL).await.expect(StatusCode::ACCEPTED);
    steps::step(&app.state).await.unwrap();
    let stored = async || {
        let row: (Option<Vec<u8>>, Value) = sqlx::query_as("SELECT secret, facts FROM notices")
            .fetch_one(&app.owner)
            .await
            .unwrap();
        row
    };
    let (secret, facts) = stored().await;
    let secret = secret.unwrap();
    assert!(!secret.windows(4).any(|part| part == b"crp_"), "sealed");
    assert!(!facts.to_string().contains("crp_"), "{facts}");
    app.with_mail(folder.path());
    steps::step(&app.state).await.unwrap();
    token(folder.path());
    let (secret, _): (Option<Vec<u8>>, Value) = sqlx::query_as("SELECT secret, facts FROM notices")
        .fetch_one(&app.owner)
        .await
        .unwrap();
    assert_eq!(secret, None);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_notice_that_is_not_taken_is_tried_again_later_and_sent_once(db: PgPool) {
    let mut app = TestApp::new(db).await;
    let folder = tempfile::tempdir().unwrap();
    let mail = folder.path().join("mail");
    app.with_mail(&mail);
    sign_up(&app).await;
    ask(&app, EMAIL).await.expect(StatusCode::ACCEPTED);
    steps::step(&app.state).await.unwrap();
    std::fs::create_dir(&mail).unwrap();
    steps::step(&app.state).await.unwrap();
    assert!(letters(&mail).is_empty(), "its pause is not over");
    app.pass(Duration::minutes(1));
    steps::step(&app.state).await.unwrap();
    assert_eq!(letters(&mail).len(), 1);
    app.pass(Duration::days(1));
    steps::step(&app.state).await.unwrap();
    assert!(letters(&mail).is_empty(), "it is sent");
}

/// A mail server that takes one message and says what it got.
async fn receive(listener: tokio::net::TcpListener) -> String {
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
    let (stream, _) = listener.accept().await.unwrap();
    let (reading, mut writing) = stream.into_split();
    let mut lines = BufReader::new(reading).lines();
    writing.write_all(b"220 test\r\n").await.unwrap();
    let (mut got, mut in_message) = (String::new(), false);
    while let Some(line) = lines.next_line().await.unwrap() {
        got.push_str(&line);
        got.push('\n');
        let answer: &[u8] = match line.as_str() {
            "." => {
                in_message = false;
                b"250 taken\r\n"
            }
            _ if in_message => continue,
            "DATA" => {
                in_message = true;
                b"354 go on\r\n"
            }
            "QUIT" => break,
            _ => b"250 ok\r\n",
        };
        writing.write_all(answer).await.unwrap();
        if line == "." {
            break;
        }
    }
    got
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_notice_goes_by_smtp(db: PgPool) {
    let mut app = TestApp::new(db).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("smtp://{}", listener.local_addr().unwrap());
    let mailer = comptoir_api::mail::Mailer::open(&url, "Comptoir <no-reply@comptoir.test>");
    app.state.mailer = Some(mailer.unwrap());
    sign_up(&app).await;
    ask(&app, EMAIL).await.expect(StatusCode::ACCEPTED);
    let server = tokio::spawn(receive(listener));
    steps::step(&app.state).await.unwrap();
    let got = server.await.unwrap();
    for part in [
        "MAIL FROM:<no-reply@comptoir.test>",
        &format!("RCPT TO:<{EMAIL}>"),
        "Subject: Set a new password",
        "Message-ID: <ntc_",
        "crp_",
    ] {
        assert!(got.contains(part), "{part} in {got}");
    }
    let sent: i64 = sqlx::query_scalar("SELECT count(*) FROM notices WHERE sent_at IS NOT NULL")
        .fetch_one(&app.owner)
        .await
        .unwrap();
    assert_eq!(sent, 1);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn whoever_shares_a_refresh_token_with_a_thief_is_told(db: PgPool) {
    let mut app = TestApp::new(db).await;
    let folder = tempfile::tempdir().unwrap();
    app.with_mail(folder.path());
    sign_up(&app).await;
    let signed_in = sign_in(&app, PASSWORD).await.expect(StatusCode::OK);
    let body = json!({ "refresh_token": signed_in.text("/refresh_token") });
    let refused = StatusCode::UNAUTHORIZED;
    // Who shows it again and again finds the session ended: nobody is told of that, and nothing is written.
    for expected in [StatusCode::OK, refused, refused, refused] {
        let refreshed = post(&app, "/v1/auth/refresh", &body).await;
        refreshed.expect(expected);
    }
    steps::step(&app.state).await.unwrap();
    let [told] = letters(folder.path()).try_into().unwrap();
    assert!(told.contains("Subject: You were signed out"), "{told}");
    assert_eq!(reuses(&app).await, 1);
    // Nor is it a reuse where the owner had signed out before.
    let signed_in = sign_in(&app, PASSWORD).await.expect(StatusCode::OK);
    let spent = json!({ "refresh_token": signed_in.text("/refresh_token") });
    let next = post(&app, "/v1/auth/refresh", &spent).await;
    let next = next.expect(StatusCode::OK);
    let last = json!({ "refresh_token": next.text("/refresh_token") });
    let ended = post(&app, "/v1/auth/logout", &last).await;
    ended.expect(StatusCode::NO_CONTENT);
    let replayed = post(&app, "/v1/auth/refresh", &spent).await;
    replayed.expect_problem(refused, "invalid_grant");
    steps::step(&app.state).await.unwrap();
    assert_eq!(letters(folder.path()).len(), 0);
    assert_eq!(reuses(&app).await, 1);
}

/// Reuses of refresh tokens that the audit log knows.
async fn reuses(app: &TestApp) -> usize {
    let mut connection = app.owner.acquire().await.unwrap();
    let log = comptoir_store::audit::list(&mut connection, None, None, 100).await;
    let reused = |it: &comptoir_store::audit::Entry| it.record.action == "session.reused";
    log.unwrap().iter().filter(|it| reused(it)).count()
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_notice_to_an_address_that_no_mail_goes_to_is_given_up_at_once(db: PgPool) {
    let mut app = TestApp::new(db).await;
    let folder = tempfile::tempdir().unwrap();
    app.with_mail(folder.path());
    for email in [".a@example.org", "a@xn--.com"] {
        let body = json!({ "email": email, "password": PASSWORD });
        let refused = post(&app, "/v1/accounts", &body).await;
        let refused = refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
        assert_eq!(refused.text("/errors/0/pointer"), "/email", "{email}");
    }
    // Somebody who signed up when that was not asked.
    sign_up(&app).await;
    sqlx::query("UPDATE accounts SET email = '.someone@example.org'")
        .execute(&app.owner)
        .await
        .unwrap();
    ask(&app, ".someone@example.org")
        .await
        .expect(StatusCode::ACCEPTED);
    steps::step(&app.state).await.unwrap();
    let ended: Vec<(i16, bool)> =
        sqlx::query_as("SELECT attempts, given_up_at IS NOT NULL FROM notices")
            .fetch_all(&app.owner)
            .await
            .unwrap();
    assert_eq!(ended, [(1, true)]);
    assert_eq!(letters(folder.path()).len(), 0);
}
