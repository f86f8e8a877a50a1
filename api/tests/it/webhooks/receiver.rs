//! A receiver that answers as it is told, and verifies signatures with code that is not ours.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, Method, Response, Uri},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::Value;
use sha2::Sha256;
use tokio::{net::TcpListener, sync::Notify, task::JoinHandle};

/// What a receiver got.
#[derive(Debug, Clone)]
pub struct Got {
    pub method: Method,
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Got {
    pub fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn kind(&self) -> String {
        self.json()["type"].as_str().unwrap().to_owned()
    }

    /// Was it signed with this secret, among others?
    pub fn is_signed_with(&self, secret: &str) -> bool {
        let key = BASE64_STANDARD
            .decode(secret.strip_prefix("whsec_").unwrap())
            .unwrap();
        let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
        mac.update(self.header("webhook-id").as_bytes());
        mac.update(b".");
        mac.update(self.header("webhook-timestamp").as_bytes());
        mac.update(b".");
        mac.update(&self.body);
        let expected = format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes()));
        self.header("webhook-signature")
            .split(' ')
            .any(|one| one == expected)
    }
}

/// What it answers.
#[derive(Clone)]
pub enum Answer {
    /// This status and text.
    Status(u16, &'static str),
    /// This status and bytes.
    Bytes(u16, &'static [u8]),
    /// A redirect to there.
    Redirect(String),
    /// 200 after this long.
    Late(Duration),
    /// 200 once it is told to.
    Held(Arc<Notify>),
    /// 200, and a body that goes on for ever, as fast as it is read.
    Endless,
    /// 200, and a byte now and then.
    Drip,
}

#[derive(Clone)]
struct Shared {
    got: Arc<Mutex<Vec<Got>>>,
    answer: Arc<Mutex<Answer>>,
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    arrived: Arc<Notify>,
}

pub struct Receiver {
    pub port: u16,
    shared: Shared,
    serving: JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Receiver {
    pub async fn start() -> Self {
        Self::answering(Answer::Status(200, "ok")).await
    }

    pub async fn answering(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Shared {
            got: Arc::default(),
            answer: Arc::new(Mutex::new(answer)),
            now: Arc::default(),
            most: Arc::default(),
            arrived: Arc::default(),
        };
        let router = Router::new().fallback(take).with_state(shared.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            port,
            shared,
            serving,
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Answers so from now on.
    pub fn answer(&self, answer: Answer) {
        *self.shared.answer.lock().unwrap() = answer;
    }

    pub fn got(&self) -> Vec<Got> {
        self.shared.got.lock().unwrap().clone()
    }

    /// The only message that came.
    #[track_caller]
    pub fn only(&self) -> Got {
        let got = self.got();
        assert_eq!(got.len(), 1, "{got:?}");
        got[0].clone()
    }

    /// How many messages it was at once with, at most.
    pub fn most_at_once(&self) -> usize {
        self.shared.most.load(Ordering::SeqCst)
    }

    /// Waits until so many messages came.
    pub async fn until(&self, count: usize) {
        while self.got().len() < count {
            self.shared.arrived.notified().await;
        }
    }
}

async fn take(
    State(shared): State<Shared>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let path = uri.path().to_owned();
    let now = shared.now.fetch_add(1, Ordering::SeqCst) + 1;
    shared.most.fetch_max(now, Ordering::SeqCst);
    shared.got.lock().unwrap().push(Got {
        method,
        path,
        headers,
        body,
    });
    shared.arrived.notify_one();
    let answer = shared.answer.lock().unwrap().clone();
    let answered = say(answer).await;
    shared.now.fetch_sub(1, Ordering::SeqCst);
    answered
}

async fn say(answer: Answer) -> Response<Body> {
    let response = Response::builder();
    match answer {
        Answer::Status(status, text) => response.status(status).body(text.into()).unwrap(),
        Answer::Bytes(status, bytes) => response.status(status).body(bytes.into()).unwrap(),
        Answer::Redirect(to) => {
            let response = response.status(307).header("location", to);
            response.body(Body::empty()).unwrap()
        }
        Answer::Late(by) => {
            tokio::time::sleep(by).await;
            Response::new(Body::empty())
        }
        Answer::Held(until) => {
            until.notified().await;
            Response::new(Body::empty())
        }
        Answer::Endless => {
            let chunk = || Ok::<_, std::io::Error>(Bytes::from_static(&[b'x'; 8_192]));
            Response::new(Body::from_stream(futures::stream::repeat_with(chunk)))
        }
        Answer::Drip => {
            let drops = futures::stream::unfold((), |()| async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Some((Ok::<_, std::io::Error>(Bytes::from_static(b".")), ()))
            });
            Response::new(Body::from_stream(drops))
        }
    }
}
