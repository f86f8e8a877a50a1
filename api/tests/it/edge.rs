//! Who may call, from where and how often; and that no credential opens what it is not for.

use std::path::Path;

use axum::http::{Method, StatusCode, header};
use comptoir_domain::{
    audit::Action,
    credential::{ApiKey, Environment},
};
use comptoir_http::jwt::{Grant, SigningKey};
use comptoir_store::audit;
use serde_json::{Value, json};
use sqlx::PgPool;
use time::Duration;

use crate::harness::{ORIGIN, Reply, TestApp};

const EMAIL: &str = "victim@example.org";
const PASSWORD: &str = "a long enough password";

async fn sign_in(app: &TestApp, email: &str, password: &str, from: &str) -> Reply {
    let body = json!({ "email": email, "password": password });
    let call = app.request(Method::POST, "/v1/auth/token").json(&body);
    call.called_from(from).send().await
}

async fn sign_up(app: &TestApp) {
    let body = json!({ "email": EMAIL, "password": PASSWORD });
    let reply = app.request(Method::POST, "/v1/accounts").json(&body);
    reply.send().await.expect(StatusCode::CREATED);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn guessing_is_stopped_where_it_comes_from_and_locks_nobody_out(db: PgPool) {
    let app = TestApp::new(db).await;
    sign_up(&app).await;
    let (attacker, victim) = ("203.0.113.9", "198.51.100.7");
    for _ in 0..10 {
        sign_in(&app, EMAIL, "a wrong password", attacker)
            .await
            .expect_problem(StatusCode::UNAUTHORIZED, "invalid_grant");
    }
    // Even the right password is not looked at any more, however the address is written.
    for email in [EMAIL, "VICTIM@example.org"] {
        let stopped = sign_in(&app, email, PASSWORD, attacker).await;
        let stopped = stopped.expect_problem(StatusCode::TOO_MANY_REQUESTS, "rate_limited");
        let wait: u64 = stopped.header(header::RETRY_AFTER).parse().unwrap();
        assert!((1..=90).contains(&wait), "{wait}");
    }
    // Another account from there, and the victim from elsewhere, sign in as ever.
    sign_in(&app, "other@example.org", PASSWORD, attacker)
        .await
        .expect_problem(StatusCode::UNAUTHORIZED, "invalid_grant");
    sign_in(&app, EMAIL, PASSWORD, victim)
        .await
        .expect(StatusCode::OK);

    let mut connection = app.owner.acquire().await.unwrap();
    let events = audit::list(&mut connection, None, None, 100).await.unwrap();
    let count = |action: Action| {
        let named = events
            .iter()
            .filter(|it| it.record.action == action.as_str());
        named
            .filter(|it| it.record.ip == Some(attacker.parse().unwrap()))
            .count()
    };
    assert_eq!(count(Action::SessionThrottled), 1, "{events:?}");
    assert_eq!(
        count(Action::SessionRefused),
        10,
        "nine before it, and the other account"
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn who_signs_in_rightly_is_not_counted(db: PgPool) {
    let app = TestApp::new(db).await;
    sign_up(&app).await;
    let program = "198.51.100.7";
    for _ in 0..30 {
        sign_in(&app, EMAIL, PASSWORD, program)
            .await
            .expect(StatusCode::OK);
    }
    // Nor does it buy a guesser more than the ten that everybody has.
    let mut statuses = Vec::new();
    for tried in 0..12 {
        let password = if tried == 5 {
            PASSWORD
        } else {
            "a wrong password"
        };
        let status = sign_in(&app, EMAIL, password, program).await.status;
        statuses.push(status.as_u16());
    }
    let expected = [&[401; 5][..], &[200], &[401; 5], &[429]].concat();
    assert_eq!(statuses, expected);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_account_that_is_not_there_is_throttled_as_one_that_is(db: PgPool) {
    let app = TestApp::new(db).await;
    sign_up(&app).await;
    for email in [EMAIL, "nobody@example.org", "no address at all"] {
        let mut statuses = Vec::new();
        for _ in 0..11 {
            statuses.push(
                sign_in(&app, email, "a wrong password", "203.0.113.9")
                    .await
                    .status
                    .as_u16(),
            );
        }
        assert_eq!(statuses, [&[401; 10][..], &[429]].concat(), "{email}");
    }
}

/// What authenticates at other services of ours, or would elsewhere: none of it is an access token or an API key of here.
async fn strangers(app: &TestApp) -> Vec<String> {
    let session = app.session().await;
    let subject = session.account.to_string();
    let signing = SigningKey::from_pem(&app.signing_pem).unwrap();
    let token = |issuer, audience, subject| {
        let grant = Grant {
            issuer,
            audience,
            subject,
            session: None,
        };
        signing.sign(&grant, app.now(), Duration::minutes(15))
    };
    let live = ApiKey::from_random(Environment::Live, [7; 32]);
    let unknown = ApiKey::from_random(Environment::Test, [7; 32]);
    let (head, rest) = session.token.split_once('.').unwrap();
    vec![
        token(ORIGIN, "comptoir-worker", &subject),
        token(ORIGIN, "comptoir-worker", "wrk_01h455vb4pex5vsknk084sn02q"),
        token("https://evil.example", "comptoir-api", &subject),
        token(ORIGIN, "comptoir-api", "acct_01h455vb4pex5vsknk084sn02q"),
        token(ORIGIN, "comptoir-api", &subject),
        live.reveal().to_owned(),
        unknown.reveal().to_owned(),
        unknown.reveal().to_uppercase(),
        format!("{head}.{rest}="),
        format!("{}.{}", session.token, session.token),
        format!("{}{}", session.token, "a".repeat(100_000)),
    ]
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn no_operation_is_opened_by_a_credential_of_another_kind(db: PgPool) {
    let app = TestApp::new(db).await;
    let strangers = strangers(&app).await;
    let document = serde_json::to_value(&app.openapi).unwrap();
    let mut walked = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, definition) in item.as_object().unwrap() {
            let security = definition["security"].as_array();
            if security.is_none_or(|all| all.contains(&json!({}))) {
                continue;
            }
            for stranger in &strangers {
                let method: Method = method.to_uppercase().parse().unwrap();
                let call = app
                    .request(method, &path.replace(['{', '}'], ""))
                    .json(&json!({}));
                let call = call.idempotency_key("walk").header(header::IF_MATCH, "*");
                let reply = call
                    .header(header::AUTHORIZATION, &format!("Bearer {stranger}"))
                    .send()
                    .await;
                let shown: String = stranger.chars().take(60).collect();
                assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{path} by {shown}");
                assert_eq!(reply.code(), "unauthenticated", "{path} by {shown}");
            }
            walked += 1;
        }
    }
    assert!(walked > 20, "{walked}");
}

/// What looks beyond the tenant on purpose, by the beginning of the function.
const BEYOND_THE_TENANT: &[&str] = &[
    // Which workers there are, whoever owns them.
    "explain.rs",
    // Is the address somebody else's? What a change of it moves is nobody's yet.
    "accounts.rs",
    "address.rs",
    // Leases that are taken back are of others' jobs.
    "workers.rs",
    // Batches, prices and problems are everybody's; sign-ins are nobody's yet; administrators work for everybody.
    "batches.rs",
    "prices.rs",
    "auth.rs",
    "passwords.rs",
    "siwe.rs",
    "submissions.rs",
];

/// A handler that knows its caller reads and writes through the caller's transaction, which the wall surrounds.
#[test]
fn a_handler_with_a_caller_stays_behind_the_wall() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/routes");
    let mut beyond = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() || BEYOND_THE_TENANT.contains(&&*name) {
            continue;
        }
        let source = std::fs::read_to_string(&path).unwrap();
        for function in source.split("\nasync fn ").skip(1) {
            let direct =
                function.contains("state.db.acquire()") || function.contains("state.db.begin()");
            if direct && function.contains("caller: Caller<") {
                beyond.push(format!("{name}: {}", function.lines().next().unwrap()));
            }
        }
    }
    assert_eq!(beyond, Vec::<String>::new());
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_error_in_a_specification_is_named_where_it_is(db: PgPool) {
    let app = TestApp::new(db).await;
    crate::market::open(&app).await;
    let session = app.session().await;
    let spec = crate::market::training(&app, &session, "mlp.pt2").await;
    let pointer = async |change: &dyn Fn(&mut Value)| {
        let mut spec = spec.clone();
        change(&mut spec);
        let body = json!({ "spec": spec, "tier": "none", "device": "cpu" });
        let reply = app.post("/v1/quotes", &body).by(&session).send().await;
        let reply = reply.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
        reply.text("/errors/0/pointer").to_owned()
    };
    assert_eq!(
        pointer(&|spec| spec["epochs"] = json!("five")).await,
        "/spec/epochs"
    );
    let rate = &|spec: &mut Value| spec["optimizer"]["learning_rate"] = json!("fast");
    assert_eq!(pointer(rate).await, "/spec/optimizer/learning_rate");
    assert_eq!(
        pointer(&|spec| spec["optimizer"] = json!(["sgd", 0.1])).await,
        "/spec/optimizer"
    );
    assert_eq!(
        pointer(&|spec| spec["target"] = json!(["a", "b"])).await,
        "/spec/target"
    );
    let inputs = spec["inputs"].as_object().unwrap();
    let input = inputs.keys().next().unwrap().clone();
    let blob = &|spec: &mut Value| spec["inputs"][&input]["blob"] = json!("not a digest");
    assert_eq!(pointer(blob).await, format!("/spec/inputs/{input}/blob"));
    assert_eq!(pointer(&|spec| spec["kind"] = json!(7)).await, "/spec/kind");
}
