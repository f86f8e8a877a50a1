//! How often a client may call, and who counts as one.

use std::{
    net::SocketAddr,
    num::NonZeroU32,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, Request},
    http::{HeaderMap, Response, StatusCode},
    routing::get,
};
use comptoir_http::{
    Edge, Problem, credential, finish_with,
    rate_limit::{self, Limiter, Policy, RateLimits, Shared},
};
use tower::ServiceExt as _;

/// Nothing fills up again while a test runs.
const WINDOW: Duration = Duration::from_hours(1);
/// A Redis that is there answers in this time.
const PATIENCE: Duration = Duration::from_mins(1);
const GOOD: &str = "good";
const ORIGIN: &str = "https://shop.example";

fn policy(name: &'static str, quota: u32) -> Policy {
    Policy {
        name,
        quota: NonZeroU32::new(quota).unwrap(),
        window: WINDOW,
    }
}

/// One route for anybody, three for whoever is `GOOD`, of which one does not end, and health; so many requests with a credential and without.
fn service(quotas: (u32, u32), shared: Option<&Arc<Shared>>) -> Router {
    let guarded = async |headers: HeaderMap| {
        let named = credential::bearer(&headers).or_else(|| credential::session_cookie(&headers));
        if named.is_some_and(|it| it.starts_with(GOOD)) {
            rate_limit::accepted();
            return Ok("welcome");
        }
        Err(Problem::unauthenticated())
    };
    let slow = async |headers: HeaderMap| {
        let credential = credential::bearer(&headers);
        assert!(credential.is_some_and(|it| it.starts_with(GOOD)));
        rate_limit::accepted();
        std::future::pending::<()>().await;
    };
    let routes = Router::new()
        .route("/public", get(async || "ok"))
        .route("/guarded", get(guarded))
        .route("/busy", get(guarded))
        .route("/slow", get(slow))
        .route("/healthz", get(async || "ok"));
    let edge = Edge {
        trusted_proxy_hops: 1,
        limits: Some(
            RateLimits::new(
                policy("default", quotas.0),
                policy("anonymous", quotas.1),
                shared,
            )
            .apart(
                |path| path == "/busy",
                policy("busy", quotas.0 * 10),
                shared,
            ),
        ),
        cors_origins: vec![ORIGIN.parse().unwrap()],
    };
    finish_with(routes, 1024, &edge)
}

async fn ask(service: &Router, path: &str, headers: &[(&str, &str)]) -> Response<Body> {
    let mut request = Request::get(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut request = request.body(Body::empty()).unwrap();
    let peer: SocketAddr = "192.0.2.1:4711".parse().unwrap();
    request.extensions_mut().insert(ConnectInfo(peer));
    service.clone().oneshot(request).await.unwrap()
}

async fn status(service: &Router, path: &str, headers: &[(&str, &str)]) -> u16 {
    ask(service, path, headers).await.status().as_u16()
}

fn text<'a>(response: &'a Response<Body>, name: &str) -> &'a str {
    response
        .headers()
        .get(name)
        .map_or("", |it| it.to_str().unwrap())
}

#[tokio::test]
async fn a_path_that_is_limited_apart_has_a_bucket_of_its_own() {
    let service = service((1, 100), None);
    let key = [("authorization", "Bearer good-1")];
    assert_eq!(status(&service, "/guarded", &key).await, 200);
    assert_eq!(status(&service, "/guarded", &key).await, 429);
    for _ in 0..10 {
        assert_eq!(status(&service, "/busy", &key).await, 200);
    }
    assert_eq!(status(&service, "/busy", &key).await, 429);
    let strangers = [("authorization", "Bearer bad")];
    assert_eq!(
        status(&service, "/busy", &strangers).await,
        401,
        "whoever was not accepted has its address's"
    );
}

#[tokio::test]
async fn a_credential_counts_from_when_it_is_accepted_however_long_the_answer_takes() {
    let service = service((100, 1), None);
    let key = [("authorization", "Bearer good-1")];
    let beside = async {
        tokio::task::yield_now().await;
        status(&service, "/guarded", &key).await
    };
    tokio::select! {
        biased;
        _ = ask(&service, "/slow", &key) => panic!("it does not end"),
        status = beside => assert_eq!(status, 200, "its address has nothing left"),
    }
}

#[tokio::test]
async fn a_client_is_told_what_is_left_and_then_to_wait() {
    let service = service((100, 3), None);
    for left in ["2", "1", "0"] {
        let reply = ask(&service, "/public", &[]).await;
        assert_eq!(reply.status(), StatusCode::OK);
        assert_eq!(
            text(&reply, "ratelimit-policy"),
            r#""anonymous";q=3;w=3600"#
        );
        let standing = format!(r#""anonymous";r={left};t="#);
        assert!(
            text(&reply, "ratelimit").starts_with(&standing),
            "{reply:?}"
        );
    }
    let refused = ask(&service, "/public", &[("origin", ORIGIN)]).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(text(&refused, "content-type"), "application/problem+json");
    let wait: u64 = text(&refused, "retry-after").parse().unwrap();
    assert!((1..=1_200).contains(&wait), "{wait}");
    assert!(text(&refused, "ratelimit").contains(";r=0;"));
    // A page of an origin that may call can read that it must wait; others read nothing.
    assert_eq!(text(&refused, "access-control-allow-origin"), ORIGIN);
    assert!(text(&refused, "access-control-expose-headers").contains("retry-after"));
    for stranger in [
        "null",
        "https://evil.example",
        "https://shop.example.evil.example",
    ] {
        let refused = ask(&service, "/public", &[("origin", stranger)]).await;
        assert_eq!(
            text(&refused, "access-control-allow-origin"),
            "",
            "{stranger}"
        );
    }
    let healthy = ask(&service, "/healthz", &[]).await;
    assert_eq!(healthy.status(), StatusCode::OK, "probes are heard");
    assert_eq!(text(&healthy, "ratelimit"), "");
}

#[tokio::test]
async fn each_address_has_its_own_limit_and_nobody_borrows_another() {
    let service = service((100, 2), None);
    let from = async |forwarded: &str| {
        status(&service, "/public", &[("x-forwarded-for", forwarded)]).await
    };
    assert_eq!([from("10.0.0.1").await, from("10.0.0.1").await], [200, 200]);
    assert_eq!(from("10.0.0.1").await, 429);
    assert_eq!(from("10.0.0.2").await, 200);
    for lie in ["10.0.0.9,10.0.0.1", "unknown, ::1 ,10.0.0.1", "10.0.0.1:80"] {
        assert_eq!(from(lie).await, 429, "{lie}");
    }
    // One customer's IPv6 is one client, however many addresses it has.
    assert_eq!(
        [from("2001:db8::1").await, from("2001:db8::2").await],
        [200, 200]
    );
    assert_eq!(from("2001:db8::3").await, 429);
}

#[tokio::test]
async fn a_credential_counts_for_itself_once_it_was_accepted() {
    let service = service((4, 3), None);
    let good = async |n: u32| {
        let credential = format!("Bearer {GOOD}-{n}");
        ask(&service, "/guarded", &[("authorization", &credential)]).await
    };
    for left in ["3", "2", "1", "0"] {
        let reply = good(1).await;
        assert_eq!(reply.status(), StatusCode::OK);
        let standing = format!(r#""default";r={left};"#);
        assert!(
            text(&reply, "ratelimit").starts_with(&standing),
            "{reply:?}"
        );
    }
    assert_eq!(good(1).await.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(good(2).await.status(), StatusCode::OK, "another credential");
    assert_eq!(
        status(&service, "/public", &[]).await,
        200,
        "the address has one left"
    );
    assert_eq!(status(&service, "/public", &[]).await, 429);
    assert_eq!(
        good(2).await.status(),
        StatusCode::OK,
        "an accepted one is not its address's"
    );
}

#[tokio::test]
async fn nobody_gets_more_by_making_credentials_up() {
    for path in ["/guarded", "/public"] {
        let service = service((100, 3), None);
        let mut answers = Vec::new();
        for n in 0..5 {
            let made_up = format!("Bearer made-up-{n}");
            answers.push(status(&service, path, &[("authorization", &made_up)]).await);
        }
        assert_eq!(answers[3..], [429, 429], "{path}: {answers:?}");
        let cookie = [("cookie", "__Host-comptoir=made-up")];
        assert_eq!(status(&service, path, &cookie).await, 429);
    }
}

#[tokio::test]
async fn a_credential_has_one_limit_however_it_is_spelt() {
    let spellings: [Vec<(&str, &str)>; 2] = [
        ["Bearer good", "bearer good", "BeArEr good", "BEARER good"]
            .map(|spelt| ("authorization", spelt))
            .into(),
        [
            "__Host-comptoir=good",
            "a=1; __Host-comptoir=good",
            "a=2;__Host-comptoir=good; b=3",
            " __Host-comptoir=good ;c=4",
        ]
        .map(|spelt| ("cookie", spelt))
        .into(),
    ];
    for spelt in spellings {
        let service = service((3, 100), None);
        let mut answers = Vec::new();
        for header in spelt {
            answers.push(status(&service, "/guarded", &[header]).await);
        }
        assert_eq!(answers, [200, 200, 200, 429]);
    }
    // Two sessions of one browser's cookies are two credentials.
    let service = service((1, 100), None);
    for session in ["good-1", "good-2"] {
        let cookie = format!("theme=dark; __Host-comptoir={session}");
        let answer = status(&service, "/guarded", &[("cookie", &cookie)]).await;
        assert_eq!(answer, 200, "{session}");
    }
}

/// A Redis of the test's own, to be stopped.
struct Redis {
    port: u16,
    child: Child,
}

impl Redis {
    fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let text = port.to_string();
        let options = [
            "--port",
            &text,
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
        ];
        let child = Command::new("redis-server")
            .args(options)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        Self { port, child }
    }

    fn hasty(&self) -> Shared {
        Shared::new(&format!("redis://127.0.0.1:{}", self.port), "test").unwrap()
    }

    /// Answers, however busy the machine is.
    fn shared(&self) -> Arc<Shared> {
        Arc::new(self.hasty().patient(PATIENCE))
    }

    async fn connect(&self) -> redis::aio::MultiplexedConnection {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port)).unwrap();
        for _ in 0..1_000 {
            if let Ok(connection) = client.get_multiplexed_async_connection().await {
                return connection;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("Redis does not answer");
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// How many of `count` requests to each of the services are let through.
async fn passed(services: &[&Router], count: usize) -> usize {
    let mut passed = 0;
    for _ in 0..count {
        for service in services {
            passed += usize::from(status(service, "/public", &[]).await == 200);
        }
    }
    passed
}

#[tokio::test]
async fn replicas_share_a_limit_through_redis() {
    let redis = Redis::start();
    let mut connection = redis.connect().await;
    // What a replica takes at once is a twentieth: two of them together never pass the quota.
    let (here, there) = (
        service((100, 60), Some(&redis.shared())),
        service((100, 60), Some(&redis.shared())),
    );
    assert_eq!(passed(&[&here, &there], 50).await, 60);
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg("*")
        .query_async(&mut connection)
        .await
        .unwrap();
    assert_eq!(keys.len(), 1, "one client, one key: {keys:?}");
    let ends_in: i64 = redis::cmd("PTTL")
        .arg(&keys[0])
        .query_async(&mut connection)
        .await
        .unwrap();
    assert!(
        ends_in > 0 && ends_in <= 3_600_001,
        "the key ends by itself: {ends_in}"
    );
    // What was in Redis may be lost at any moment: the quota begins anew, and nothing fails.
    redis::cmd("FLUSHALL")
        .query_async::<()>(&mut connection)
        .await
        .unwrap();
    assert_eq!(passed(&[&here], 70).await, 60);
}

#[tokio::test]
async fn without_redis_a_process_counts_for_itself() {
    let redis = Redis::start();
    let mut connection = redis.connect().await;
    let shared = Arc::new(redis.hasty());
    let service = service((100, 20), Some(&shared));
    // It is connected, by something else than what is counted below.
    let other = Limiter::new(policy("other", 3), Some(shared));
    let standing = other.take(&rate_limit::key(&[b"somebody"])).await;
    assert_eq!(standing.refused_for, None);
    redis::cmd("CLIENT")
        .arg("PAUSE")
        .arg(600_000)
        .query_async::<()>(&mut connection)
        .await
        .unwrap();
    // Redis hangs: one request waits for it, the others do not, and the process has its own count.
    assert_eq!(passed(&[&service], 40).await, 20);
    drop(redis);
    assert_eq!(passed(&[&service], 5).await, 0);
}

#[tokio::test]
async fn what_is_given_back_is_spent_once_and_is_never_more_than_the_quota() {
    let redis = Redis::start();
    redis.connect().await;
    for shared in [None, Some(redis.shared())] {
        let limiter = Limiter::new(policy("given-back", 3), shared);
        let key = rate_limit::key(&[b"somebody"]);
        for _ in 0..10 {
            let standing = limiter.take(&key).await;
            assert_eq!(standing.refused_for, None);
            limiter.give_back(&key, &standing);
        }
        let mut left = Vec::new();
        for _ in 0..4 {
            left.push(limiter.take(&key).await.refused_for.is_none());
        }
        assert_eq!(left, [true, true, true, false]);
        let standing = limiter.take(&rate_limit::key(&[b"another"])).await;
        for _ in 0..10 {
            limiter.give_back(&key, &standing);
        }
        let mut given = 0;
        while limiter.take(&key).await.refused_for.is_none() {
            given += 1;
        }
        assert_eq!(given, 3);
    }
}
