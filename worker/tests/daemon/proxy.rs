//! A proxy in front of the scheduler: it remembers what passed, and spoils what it is told to.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    http::{Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use serde_json::Value;
use tokio::sync::{Notify, Semaphore};

/// Most bytes of a body here.
const BODY_BYTES_MAX: usize = 64 << 20;
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_mins(1);

/// A request that passed.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: Method,
    pub path: String,
    /// The body, where it is JSON.
    pub body: Value,
}

impl Seen {
    /// Is it of this route? `/events` stands for the events of any attempt.
    pub fn is(&self, method: &Method, end: &str) -> bool {
        self.method == method
            && (self.path.ends_with(end) || self.path.contains(&format!("{end}/")))
    }

    /// Is it an exchange that reports something in this field?
    pub fn reports(&self, field: &str) -> bool {
        self.is(&Method::POST, "/v1/work")
            && self.body[field].as_array().is_some_and(|it| !it.is_empty())
    }
}

/// What is done to a request.
#[derive(Clone)]
pub enum Spoil {
    /// It arrives; the answer does not.
    LoseAnswer,
    /// It does not arrive.
    Refuse(StatusCode),
    /// It does not arrive; somebody answers this.
    Answer(&'static str),
    /// It arrives when the gate opens.
    Hold(Arc<Semaphore>),
}

type Matcher = Box<dyn Fn(&Seen) -> bool + Send + Sync>;

struct Rule {
    left: usize,
    matches: Matcher,
    spoil: Spoil,
}

/// The proxy; cheap to clone.
#[derive(Clone, Default)]
pub struct Proxy {
    seen: Arc<Mutex<Vec<Seen>>>,
    rules: Arc<Mutex<Vec<Rule>>>,
    changed: Arc<Notify>,
}

impl Proxy {
    /// Puts the proxy before a service.
    pub fn before(&self, service: Router) -> Router {
        service.layer(middleware::from_fn_with_state(self.clone(), pass))
    }

    /// Spoils the next `times` requests that match.
    pub fn spoil(
        &self,
        times: usize,
        spoil: Spoil,
        matches: impl Fn(&Seen) -> bool + Send + Sync + 'static,
    ) {
        self.rules.lock().unwrap().push(Rule {
            left: times,
            matches: Box::new(matches),
            spoil,
        });
    }

    /// Holds the next request that matches; the permit that is added to the gate lets it pass.
    pub fn hold(&self, matches: impl Fn(&Seen) -> bool + Send + Sync + 'static) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        self.spoil(1, Spoil::Hold(Arc::clone(&gate)), matches);
        gate
    }

    /// How many requests match.
    pub fn count(&self, matches: impl Fn(&Seen) -> bool) -> usize {
        self.seen
            .lock()
            .unwrap()
            .iter()
            .filter(|seen| matches(seen))
            .count()
    }

    /// Waits until so many requests match.
    pub async fn until(&self, times: usize, matches: impl Fn(&Seen) -> bool) {
        let wait = async {
            while self.count(&matches) < times {
                // What was missed between the look and the wait is seen at the next request: heartbeats and polls go on.
                tokio::select! {
                    () = self.changed.notified() => {}
                    () = tokio::time::sleep(Duration::from_millis(100)) => {}
                }
            }
        };
        let seen = tokio::time::timeout(PATIENCE, wait).await;
        assert!(
            seen.is_ok(),
            "not seen {times} times; seen: {:#?}",
            self.seen.lock().unwrap()
        );
    }

    fn spoil_of(&self, seen: &Seen) -> Option<Spoil> {
        let mut rules = self.rules.lock().unwrap();
        let rule = rules
            .iter_mut()
            .find(|rule| rule.left > 0 && (rule.matches)(seen))?;
        rule.left -= 1;
        Some(rule.spoil.clone())
    }

    fn note(&self, seen: Seen) {
        self.seen.lock().unwrap().push(seen);
        self.changed.notify_waiters();
    }
}

async fn pass(State(proxy): State<Proxy>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY_BYTES_MAX).await else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let is_json = parts
        .headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind == "application/json");
    let seen = Seen {
        method: parts.method.clone(),
        path: parts.uri.path().to_owned(),
        body: if is_json {
            serde_json::from_slice(&body).unwrap_or_default()
        } else {
            Value::Null
        },
    };
    let spoil = proxy.spoil_of(&seen);
    proxy.note(seen);
    let arrives = |body: Bytes| next.run(Request::from_parts(parts, Body::from(body)));
    match spoil {
        None => arrives(body).await,
        Some(Spoil::Refuse(status)) => status.into_response(),
        Some(Spoil::Answer(text)) => text.into_response(),
        Some(Spoil::LoseAnswer) => {
            arrives(body).await;
            let broken = futures::stream::once(async { Err::<Bytes, _>(io::Error::other("lost")) });
            Body::from_stream(broken).into_response()
        }
        Some(Spoil::Hold(gate)) => {
            gate.acquire().await.unwrap().forget();
            arrives(body).await
        }
    }
}
