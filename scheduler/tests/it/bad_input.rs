//! The catalogue of bad input against the worker protocol: each case gets a problem document or an outcome that refuses, none
//! a 5xx, and nothing is written.

#[expect(
    dead_code,
    reason = "cases of the client's service are in the table too"
)]
#[path = "../../../api/tests/it/bad_input/cases.rs"]
mod cases;

use comptoir_domain::{digest::Sha256, id::AttemptId, job::Tier};
use comptoir_scheduler::stub::{StubResult, StubWorker};
use comptoir_wire::{LEASE_TOKEN_HEADER, encoded::Base64, heartbeat::Held, work::Lease};
use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};
use time::Duration;

use crate::harness::{Bench, held, inference, lease, now, seal, training};

/// Routes that take JSON.
const JSON_ROUTES: [&str; 6] = [
    "/v1/join",
    "/v1/worker-token",
    "/v1/work",
    "/v1/heartbeats",
    "/v1/attempts/{id}/events",
    "/v1/attempts/{id}/segments",
];

/// The rows of every table that a worker's word could change, and what is leased.
async fn rows(bench: &Bench) -> Vec<(String, i64)> {
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
           AND relname NOT IN ('audit_events', 'audit_head', 'worker_heartbeats') ORDER BY relname",
    )
    .fetch_all(&bench.owner)
    .await
    .unwrap();
    let mut counts = Vec::new();
    for table in tables {
        let count = AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
        let count = sqlx::query_scalar(count).fetch_one(&bench.owner);
        counts.push((table, count.await.unwrap()));
    }
    let leased = "SELECT count(*) FROM queue WHERE lease_token IS NOT NULL";
    let leased = sqlx::query_scalar(leased).fetch_one(&bench.owner);
    counts.push(("leases".to_owned(), leased.await.unwrap()));
    counts
}

async fn assert_refused(call: reqwest::RequestBuilder, allowed: &[u16], what: &str) {
    let reply = call.send().await.unwrap();
    let status = reply.status().as_u16();
    let kind = reply.headers().get(header::CONTENT_TYPE).cloned();
    let text = reply.text().await.unwrap();
    assert!(allowed.contains(&status), "{what}: {status} {text}");
    assert_eq!(kind.unwrap(), "application/problem+json", "{what}");
    for leak in ["sqlx", "postgres", "panicked", "SELECT ", "src/"] {
        assert!(!text.contains(leak), "{what} tells of our insides: {text}");
    }
}

/// A worker with a lease on a training job.
async fn somebody(db: PgPool) -> (Bench, StubWorker, Lease) {
    let bench = Bench::new(db).await;
    let (client, worker) = (bench.client().await, bench.worker(0xa1).await);
    bench.submit(client, &training(), Tier::None).await;
    let leased = lease(&worker).await;
    (bench, worker, leased)
}

fn post(worker: &StubWorker, path: &str, held: Held) -> reqwest::RequestBuilder {
    let path = path.replace("{id}", &held.attempt_id.to_string());
    let call = worker.request(Method::POST, &path);
    call.header(LEASE_TOKEN_HEADER, held.lease_token.to_string())
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_bad_body_is_refused_by_every_route(db: PgPool) {
    let (bench, worker, leased) = somebody(db).await;
    let before = rows(&bench).await;
    for path in JSON_ROUTES {
        for case in cases::BODIES {
            let call = post(&worker, path, held(&leased)).body((case.bytes)());
            let call = call.header(header::CONTENT_TYPE, "application/json");
            // Bodies may be twice as long as a client's, and a blank one of more than its limit is no JSON either way.
            let allowed = [case.refused, &[400]].concat();
            assert_refused(call, &allowed, &format!("{path} with {}", case.name)).await;
        }
        for kinds in cases::CONTENT_TYPES {
            let call = post(&worker, path, held(&leased)).body("{}");
            let call = kinds
                .iter()
                .fold(call, |call, kind| call.header(header::CONTENT_TYPE, *kind));
            assert_refused(call, &[415], &format!("{path} as {kinds:?}")).await;
        }
        let coded = post(&worker, path, held(&leased)).body("{}");
        let coded = coded.header(header::CONTENT_ENCODING, "gzip");
        assert_refused(coded, &[415], &format!("{path} in gzip")).await;
        let long = post(&worker, path, held(&leased)).body(vec![b' '; (2 << 20) + 1]);
        let long = long.header(header::CONTENT_TYPE, "application/json");
        assert_refused(long, &[413], &format!("{path} beyond the limit")).await;
    }
    assert_eq!(rows(&bench).await, before, "nothing was written");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_bad_path_or_header_is_refused_by_every_route(db: PgPool) {
    let (bench, worker, leased) = somebody(db).await;
    let before = rows(&bench).await;
    let token = leased.lease_token.to_string();
    let tokens = ["", "x", "null", "lse_", "\u{e9}"];
    for (method, path) in [
        (Method::POST, "/v1/attempts/{id}/events"),
        (Method::POST, "/v1/attempts/{id}/segments"),
        (Method::GET, "/v1/attempts/{id}/blobs/{sha256}"),
        (Method::PUT, "/v1/attempts/{id}/blobs/{sha256}"),
    ] {
        let valid = match path.rsplit('/').next().unwrap() {
            "events" => {
                json!({ "events": [{ "seq": 1, "event": { "kind": "progress", "done": 1, "of": 2 } }] })
            }
            _ => json!({ "segment": 0, "checkpoint": Sha256::of(b"") }),
        };
        for parameter in cases::PATH_PARAMETERS {
            let at = path
                .replace("{id}", parameter)
                .replace("{sha256}", parameter);
            let call = worker.request(method.clone(), &at).json(&valid);
            let call = call.header(LEASE_TOKEN_HEADER, &token);
            assert_refused(call, &[400, 404], &format!("{method} {at}")).await;
        }
        let at = path
            .replace("{id}", &leased.attempt_id.to_string())
            .replace("{sha256}", &Sha256::of(b"").to_string());
        let lower = token.to_uppercase();
        for wrong in tokens.into_iter().chain([lower.as_str()]) {
            let call = worker.request(method.clone(), &at).json(&valid);
            let call = call.header(LEASE_TOKEN_HEADER, wrong);
            assert_refused(call, &[409], &format!("{method} {at} with {wrong:?}")).await;
        }
        for query in cases::QUERIES {
            let call = worker.request(method.clone(), &format!("{at}?{query}"));
            let call = call.json(&valid).header(LEASE_TOKEN_HEADER, &token);
            assert_refused(call, &[400], &format!("{method} {at}?{query}")).await;
        }
    }
    assert_eq!(rows(&bench).await, before, "nothing was written");
}

/// What a worker may not say of itself when it joins: where, and what.
const JOINS: &[(&str, &str)] = &[
    ("/name", r#""""#),
    ("/name", r#""a\u0007b""#),
    ("/facts/threads", "0"),
    ("/facts/threads", "1025"),
    ("/facts/threads", "4294967296"),
    ("/facts/threads", "-1"),
    ("/facts/memory_bytes", "0"),
    ("/facts/memory_bytes", "9007199254740992"),
    ("/facts/memory_bytes", "1e18"),
    ("/facts/device", r#""tpu""#),
    ("/facts/gpus", "1000000"),
    ("/facts/owner_id", r#""acct_01h455vb4pex5vsknk084sn02q""#),
    ("/facts/price_floor_nano", r#""-1""#),
    ("/facts/price_floor_nano", r#""0x10""#),
    ("/facts/price_floor_nano", r#""1e3""#),
    ("/facts/price_floor_nano", "1"),
    (
        "/facts/price_floor_nano",
        r#""340282366920938463463374607431768211456""#,
    ),
    ("/facts/libtorch", r#""""#),
    ("/facts/numeric_class", r#""a\u0000b""#),
    ("/public_key", r#""AAAA""#),
    ("/signature", r#""""#),
    ("/account_id", r#""acct_01h455vb4pex5vsknk084sn02q""#),
    ("/token", "null"),
];

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_worker_that_claims_what_cannot_be_does_not_join(db: PgPool) {
    let bench = Bench::new(db).await;
    let owner = bench.account(0xa1).await.account;
    let token = bench.join_token(owner, 9, now() + Duration::HOUR).await;
    let valid = json!({
        "token": token.reveal(),
        "public_key": Base64([1; 32]),
        "name": "bench",
        "facts": comptoir_scheduler::stub::facts("x"),
        "signature": Base64([0; 64]),
    });
    let before = rows(&bench).await;
    let join = |body: &Value| {
        let url = format!("{}/v1/join", bench.base);
        reqwest::Client::new().post(url).json(body)
    };
    let long = [
        ("/name", json!("a".repeat(101))),
        ("/facts/device_name", json!("a".repeat(1 << 20))),
    ];
    let cases = JOINS
        .iter()
        .map(|(place, wrong)| (*place, serde_json::from_str(wrong).unwrap()));
    for (place, wrong) in cases.chain(long) {
        let mut body = valid.clone();
        let (parent, field) = place.rsplit_once('/').unwrap();
        body.pointer_mut(parent).unwrap()[field] = wrong.clone();
        assert_refused(join(&body), &[422], &format!("{place}: {wrong}")).await;
    }
    // As it stands it is well formed, and signed by nobody.
    assert_refused(join(&valid), &[401], "the sample").await;
    let mut large = valid.clone();
    large["facts"]["device_name"] = json!("a".repeat(10 << 20));
    assert_refused(join(&large), &[413], "facts of 10 MB").await;
    assert_eq!(rows(&bench).await, before, "nobody joined");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_clock_at_its_end_gets_no_token(db: PgPool) {
    let bench = Bench::new(db).await;
    let worker = bench.worker(0xa1).await;
    let moments = [0, 1, i64::MAX.unsigned_abs(), 1 << 63, u64::MAX];
    for moment in moments {
        let call = reqwest::Client::new().post(format!("{}/v1/worker-token", bench.base));
        let call = call.json(&worker.token_request(moment));
        assert_refused(call, &[422], &format!("issued at {moment}")).await;
    }
    for wrong in ["-1", "18446744073709551616", "1.5", "\"0\"", "null"] {
        let mut body = json!(worker.token_request(0));
        body["issued_at_ms"] = serde_json::from_str(wrong).unwrap();
        let call = reqwest::Client::new().post(format!("{}/v1/worker-token", bench.base));
        assert_refused(call.json(&body), &[422], wrong).await;
    }
}

/// Reports of an attempt that no attempt can have, as the list of events.
const EVENTS: &[&str] = &[
    "[]",
    "{}",
    r#"[{"seq":0,"event":{"kind":"progress","done":1,"of":2}}]"#,
    r#"[{"seq":-1,"event":{"kind":"progress","done":1,"of":2}}]"#,
    r#"[{"seq":20001,"event":{"kind":"progress","done":1,"of":2}}]"#,
    r#"[{"seq":18446744073709551615,"event":{"kind":"progress","done":1,"of":2}}]"#,
    r#"[{"seq":1,"event":{"kind":"progress","done":-1,"of":2}}]"#,
    r#"[{"seq":1,"event":{"kind":"progress","done":1e400,"of":2}}]"#,
    r#"[{"seq":1,"event":{"kind":"charge","done":1,"of":2}}]"#,
    r#"[{"seq":1,"event":{"done":1,"of":2}}]"#,
    r#"[{"seq":2,"event":{"kind":"progress","done":1,"of":2}},{"seq":1,"event":{"kind":"progress","done":1,"of":2}}]"#,
    r#"[{"seq":1,"event":{"kind":"progress","done":1,"of":2}},{"seq":1,"event":{"kind":"progress","done":1,"of":2}}]"#,
    r#"[{"seq":1,"event":{"kind":"metrics","epoch":0,"step":1,"values":{"":1}}}]"#,
    r#"[{"seq":1,"event":{"kind":"metrics","epoch":0,"step":1,"values":{"loss":"1"}}}]"#,
    r#"[{"seq":1,"event":{"kind":"metrics","epoch":0,"step":1,"values":{"a\u0000b":1}}}]"#,
    r#"[{"seq":1,"event":{"kind":"metrics","epoch":4294967296,"step":1,"values":{}}}]"#,
    r#"[{"seq":1,"event":{"kind":"metrics","epoch":0,"step":1,"values":{},"account_id":"x"}}]"#,
];

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_attempt_reports_nothing_that_cannot_be(db: PgPool) {
    let (bench, worker, leased) = somebody(db).await;
    let before = rows(&bench).await;
    let event = r#"{"seq":1,"event":{"kind":"progress","done":1,"of":2}}"#;
    let name = "a".repeat(101);
    let many: Vec<_> = (0..33).map(|n| format!(r#""m{n}":1"#)).collect();
    let built = [
        format!("[{}{event}]", format!("{event},").repeat(64)),
        format!(
            r#"[{{"seq":1,"event":{{"kind":"metrics","epoch":0,"step":1,"values":{{"{name}":1}}}}}}]"#
        ),
        format!(
            r#"[{{"seq":1,"event":{{"kind":"metrics","epoch":0,"step":1,"values":{{{}}}}}}}]"#,
            many.join(",")
        ),
    ];
    let built = built.iter().map(String::as_str);
    for events in EVENTS.iter().copied().chain(built) {
        let call = post(&worker, "/v1/attempts/{id}/events", held(&leased));
        let call = call
            .header(header::CONTENT_TYPE, "application/json")
            .body(format!(r#"{{"events":{events}}}"#));
        assert_refused(call, &[422, 400], events).await;
    }
    // Segments that do not come next, or whose checkpoint nobody has.
    for segment in [0, 1, 2, u32::MAX] {
        let body = json!({ "segment": segment, "checkpoint": Sha256::of(b"nothing") });
        let call = post(&worker, "/v1/attempts/{id}/segments", held(&leased)).json(&body);
        assert_refused(call, &[409], &format!("segment {segment}")).await;
    }
    assert_eq!(rows(&bench).await, before, "nothing was written");
    // Numbers at their end are numbers: they are kept as they are, and nothing is computed of them.
    let most = u64::MAX;
    let body = json!({ "events": [
        { "seq": 1, "event": { "kind": "progress", "done": most, "of": 0 } },
        { "seq": 2, "event": { "kind": "metrics", "epoch": u32::MAX, "step": most, "values": { "loss": 1e308, "none": null } } },
    ] });
    let call = post(&worker, "/v1/attempts/{id}/events", held(&leased)).json(&body);
    assert_eq!(call.send().await.unwrap().status(), StatusCode::OK);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_upload_that_claims_too_much_or_nothing_is_not_read(db: PgPool) {
    let (bench, worker, leased) = somebody(db).await;
    let before = rows(&bench).await;
    let path = format!(
        "/v1/attempts/{}/blobs/{}",
        leased.attempt_id,
        Sha256::of(b"x")
    );
    let put = || {
        let call = worker.request(Method::PUT, &path);
        call.header(LEASE_TOKEN_HEADER, leased.lease_token.to_string())
    };
    for length in ["107374182400", "1073741825", "9223372036854775808"] {
        // Only the head is sent: the claim alone is refused.
        let reply = head_alone(&bench, &put().build().unwrap(), length).await;
        assert!(reply.starts_with("HTTP/1.1 413"), "{length}: {reply}");
        let is_problem = reply.contains("application/problem+json");
        assert!(is_problem, "{length}: {reply}");
    }
    let endless = futures::stream::iter([Ok::<_, std::io::Error>("x")]);
    let chunked = put().body(reqwest::Body::wrap_stream(endless));
    assert_refused(chunked, &[411], "without a length").await;
    let coded = put().header(header::CONTENT_ENCODING, "gzip").body("x");
    assert_refused(coded, &[415], "in gzip").await;
    assert_refused(put().body("other"), &[422], "other bytes").await;
    assert_eq!(rows(&bench).await, before, "nothing was kept");
}

/// What the service answers to a head that claims this length, before any body.
async fn head_alone(bench: &Bench, request: &reqwest::Request, length: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let address = bench.base.strip_prefix("http://").unwrap();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut head = format!("PUT {} HTTP/1.1\r\nhost: a\r\n", request.url().path());
    for (name, value) in request.headers() {
        head = format!("{head}{name}: {}\r\n", value.to_str().unwrap());
    }
    head = format!("{head}connection: close\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    reply
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_report_of_what_the_worker_does_not_hold_changes_nothing(db: PgPool) {
    let bench = Bench::new(db).await;
    let (client, worker) = (bench.client().await, bench.worker(0xa1).await);
    bench.submit(client, &inference(), Tier::None).await;
    let leased = lease(&worker).await;
    let before = rows(&bench).await;
    let nobodys = AttemptId::generate();
    let result = StubResult::of(&leased, Sha256::of(b"nothing"));
    let exchange = async |body: Value| -> Value {
        let call = worker.request(Method::POST, "/v1/work").json(&body);
        let reply = call.send().await.unwrap();
        assert_eq!(reply.status(), StatusCode::OK, "{body}");
        reply.json().await.unwrap()
    };
    let wrong_token = Held {
        attempt_id: leased.attempt_id,
        lease_token: comptoir_domain::id::LeaseToken::generate(),
    };
    for held in [
        Held {
            attempt_id: nobodys,
            ..held(&leased)
        },
        wrong_token,
    ] {
        let named = json!({ "attempt_id": held.attempt_id, "lease_token": held.lease_token });
        let with = |fields: Value| {
            let mut report = named.clone();
            report
                .as_object_mut()
                .unwrap()
                .extend(fields.as_object().unwrap().clone());
            report
        };
        // Whatever it says of time and size, it is not its to say.
        let sealed = with(json!({ "seal": Sha256::of(b""), "compute_ms": u64::MAX }));
        let shown = with(json!({
            "salt": Base64([0; 32]), "result_sha256": Sha256::of(b""), "outputs": { "outputs": Sha256::of(b"") },
        }));
        let failed = with(json!({ "cause": "client", "code": "x", "detail": "" }));
        let reply = exchange(json!({
            "wanted": 0, "wait_ms": 0, "seals": [sealed], "reveals": [shown], "failures": [failed],
        }))
        .await;
        let acks = reply["acks"].as_array().unwrap();
        assert_eq!(acks.len(), 3, "{reply}");
        assert!(
            acks.iter().all(|ack| ack["outcome"] == "stale_lease"),
            "{reply}"
        );
    }
    // A reveal before it was ordered, and before anything was sealed.
    let reply = exchange(json!({ "wanted": 0, "wait_ms": 0, "reveals": [result.reveal()] })).await;
    assert_ne!(reply["acks"][0]["outcome"], "accepted", "{reply}");
    assert_eq!(rows(&bench).await, before, "nothing was written");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_time_of_computing_beyond_every_clock_is_kept_or_refused(db: PgPool) {
    let bench = Bench::new(db).await;
    let (client, worker) = (bench.client().await, bench.worker(0xa1).await);
    for compute_ms in [i64::MAX.unsigned_abs(), 1 << 63, u64::MAX] {
        bench.submit(client, &inference(), Tier::None).await;
        let leased = lease(&worker).await;
        let mut sealed = StubResult::of(&leased, Sha256::of(b"")).seal(worker.id);
        sealed.compute_ms = compute_ms;
        let call = worker.request(Method::POST, "/v1/work");
        let call = call.json(&json!({ "wanted": 0, "wait_ms": 0, "seals": [sealed] }));
        let reply = call.send().await.unwrap();
        assert!(
            !reply.status().is_server_error(),
            "{compute_ms}: {}",
            reply.status()
        );
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn one_exchange_reports_and_asks_no_more_than_its_limits(db: PgPool) {
    let (bench, worker, leased) = somebody(db).await;
    let before = rows(&bench).await;
    let named = json!({ "attempt_id": leased.attempt_id, "lease_token": leased.lease_token });
    let (many, idle) = (vec![named; 513], json!({ "wanted": 0, "wait_ms": 0 }));
    let with = |field: &str, value: Value| {
        let mut body = idle.clone();
        body[field] = value;
        body
    };
    for body in [
        with("wanted", json!(257)),
        with("wanted", json!(65_536)),
        with("wanted", json!(-1)),
        with("wait_ms", json!(30_001)),
        with("wait_ms", json!(u64::MAX)),
        with("held", json!(many)),
        with("worker_id", json!(worker.id)),
        with("seals", json!({})),
    ] {
        let call = worker.request(Method::POST, "/v1/work").json(&body);
        assert_refused(call, &[422], &body.to_string()).await;
    }
    let beats = worker.request(Method::POST, "/v1/heartbeats");
    let beats = beats.json(&json!({ "leases": many }));
    assert_refused(beats, &[422], "513 heartbeats").await;
    assert_eq!(rows(&bench).await, before, "nothing was written");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_result_is_taken_once_and_for_its_own_attempt(db: PgPool) {
    let bench = Bench::new(db).await;
    let (client, worker) = (bench.client().await, bench.worker(0xa1).await);
    let job = bench.submit(client, &inference(), Tier::None).await;
    let leased = lease(&worker).await;
    let (result, _) = seal(&worker, &leased, &[1.0]).await;
    assert_eq!(
        crate::harness::reveal(&worker, &result).await,
        comptoir_wire::work::AckOutcome::Accepted
    );
    assert_eq!(bench.rule().await, 1);
    let earned = bench.earned(job).await;
    let before = rows(&bench).await;
    // Again, with another result, and under another salt: what was taken stands, and is paid once.
    let mut other = StubResult::of(&leased, Sha256::of(b"other"));
    for result in [&result, &other.clone(), {
        other.salt = [7; 32];
        &other
    }] {
        let body = json!({
            "wanted": 0, "wait_ms": 0, "seals": [result.seal(worker.id)], "reveals": [result.reveal()],
        });
        let call = worker.request(Method::POST, "/v1/work").json(&body);
        assert_eq!(call.send().await.unwrap().status(), StatusCode::OK);
    }
    assert_eq!(bench.rule().await, 0);
    assert_eq!(bench.earned(job).await, earned);
    assert_eq!(rows(&bench).await, before, "nothing was written");
}
