//! A receiver of webhooks on this machine: checks signatures, prints events, and forwards them where asked to.

use std::{
    collections::{HashSet, VecDeque},
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use aws_lc_rs::constant_time;
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use clap::Args;
use comptoir_api::webhooks::signature;
use comptoir_domain::webhook::{BODY_BYTES_MAX, Secret};
use comptoir_http::server::{self, Limits};
use reqwest::{Client, Method, redirect::Policy};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::{Context, http::Api, idempotency_key};
use crate::{
    output::{self, Output},
    service,
};

/// A message that was sent longer ago, or later, than so many seconds is an old one that somebody repeats.
const TOLERANCE_S: i64 = 300;
/// Messages that are remembered, to tell when one comes again.
const REMEMBERED: usize = 10_000;
/// How long whoever is forwarded to may take; less than the service waits.
const FORWARD_MAX: Duration = Duration::from_secs(15);

/// How to listen.
#[derive(Debug, Args)]
pub struct ListenArgs {
    /// The port on this machine; 0: a free one.
    #[arg(long, default_value_t = 4747)]
    port: u16,
    /// The secret of an endpoint that you made. Without it, an endpoint for this address is made, and deleted at the end: for a service
    /// on this machine, as `comptoir up` runs it.
    #[arg(long, env = "COMPTOIR_WEBHOOK_SECRET", hide_env_values = true)]
    secret: Option<String>,
    /// A type of events for the endpoint that is made, such as `job.completed`; may be repeated [default: all].
    #[arg(long = "event", conflicts_with = "secret")]
    events: Vec<String>,
    /// Send what was checked on to this URL, and answer what it answers.
    #[arg(long)]
    forward: Option<Url>,
    /// End after so many events [default: at Ctrl-C].
    #[arg(long)]
    count: Option<u64>,
}

/// Listens until it is told to stop.
///
/// # Errors
/// When the port is taken, or the endpoint cannot be made.
pub async fn run(context: &Context, args: ListenArgs) -> anyhow::Result<()> {
    let stop = service::until_signal()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, args.port)).await;
    let listener = listener.with_context(|| format!("listen on port {}", args.port))?;
    let address = listener.local_addr()?;
    let given = args
        .secret
        .as_deref()
        .map(str::parse::<Secret>)
        .transpose()?;
    let (secret, made) = if let Some(secret) = given {
        (secret, None)
    } else {
        let (api, id, secret) = make(context, address, &args.events).await?;
        (secret, Some((api, id)))
    };
    eprintln!("listening on http://{address}/");
    let receiver = Receiver::new(secret, &args, context.output, stop.clone())?;
    let router = Router::new()
        .fallback(post(receive))
        .with_state(Arc::new(receiver));
    let served = server::serve(listener, router, Limits::default(), stop.cancelled_owned()).await;
    if let Some((api, id)) = made {
        let path = format!("/v1/webhook-endpoints/{id}");
        let deleted = api.send(api.request(Method::DELETE, &path)).await;
        deleted.with_context(|| format!("delete {id}"))?;
    }
    Ok(served?)
}

async fn make(
    context: &Context,
    address: SocketAddr,
    events: &[String],
) -> anyhow::Result<(Api, String, Secret)> {
    let api = context.api().await?;
    let types = (!events.is_empty()).then_some(events);
    let body = json!({
        "url": format!("http://{address}/"),
        "event_types": types,
        "description": "comptoir webhook listen",
    });
    let made = api
        .create("/v1/webhook-endpoints", &idempotency_key(), &body)
        .await;
    let made = made.context("make an endpoint for this machine; a service elsewhere needs one of yours, and its --secret")?;
    let id = made["id"].as_str().unwrap_or_default().to_owned();
    let secret = made["secret"].as_str().unwrap_or_default().parse()?;
    Ok((api, id, secret))
}

struct Receiver {
    secret: Secret,
    output: Output,
    forward: Option<(Client, Url)>,
    count: Option<u64>,
    stop: CancellationToken,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    ids: HashSet<String>,
    order: VecDeque<String>,
    taken: u64,
}

impl Seen {
    /// Is it a message that came before?
    fn repeats(&mut self, id: &str) -> bool {
        if !self.ids.insert(id.to_owned()) {
            return true;
        }
        self.order.push_back(id.to_owned());
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        false
    }
}

impl Receiver {
    fn new(
        secret: Secret,
        args: &ListenArgs,
        output: Output,
        stop: CancellationToken,
    ) -> anyhow::Result<Self> {
        let forward = match &args.forward {
            None => None,
            Some(url) => {
                let client = Client::builder()
                    .redirect(Policy::none())
                    .timeout(FORWARD_MAX);
                Some((client.build()?, url.clone()))
            }
        };
        Ok(Self {
            secret,
            output,
            forward,
            count: args.count,
            stop,
            seen: Mutex::default(),
        })
    }

    fn print(&self, id: &str, message: &Value, is_repeated: bool) {
        match self.output {
            Output::Json => {
                let line = json!({
                    "id": id,
                    "type": message["type"],
                    "timestamp": message["timestamp"],
                    "data": message["data"],
                    "repeated": is_repeated,
                });
                output::say(line);
            }
            Output::Table => {
                let text = |name: &str| message[name].as_str().unwrap_or_default().to_owned();
                let again = if is_repeated { " (again)" } else { "" };
                let (when, kind, data) = (text("timestamp"), text("type"), &message["data"]);
                output::say(format_args!("{when} {kind} {id}{again} {data}"));
            }
        }
    }
}

/// A header that is there once.
fn only<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// The message's id, when it was signed with the secret, and lately.
fn verify<'a>(
    secret: &Secret,
    headers: &'a HeaderMap,
    body: &[u8],
    now: i64,
) -> Result<&'a str, &'static str> {
    let header = |name| only(headers, name);
    let id = header("webhook-id").ok_or("no webhook-id")?;
    let timestamp = header("webhook-timestamp").and_then(|it| it.parse::<i64>().ok());
    let timestamp = timestamp.ok_or("no webhook-timestamp")?;
    let given = header("webhook-signature").ok_or("no webhook-signature")?;
    if now.abs_diff(timestamp) > TOLERANCE_S.unsigned_abs() {
        return Err("sent too long ago, or in the future");
    }
    let expected = signature(std::slice::from_ref(secret), id, timestamp, body);
    let is_expected = |one: &str| {
        constant_time::verify_slices_are_equal(one.as_bytes(), expected.as_bytes()).is_ok()
    };
    if given.split(' ').any(is_expected) {
        Ok(id)
    } else {
        Err("signed with another secret")
    }
}

async fn receive(
    State(receiver): State<Arc<Receiver>>,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, Vec<u8>) {
    let refuse = |why: &str| {
        eprintln!("refused a message: {why}");
        (StatusCode::UNAUTHORIZED, format!("{why}\n").into_bytes())
    };
    if body.len() > BODY_BYTES_MAX {
        return refuse("too long");
    }
    let now = service::now().unix_timestamp();
    let id = match verify(&receiver.secret, &headers, &body, now) {
        Ok(id) => id,
        Err(why) => return refuse(why),
    };
    let Ok(message) = serde_json::from_slice::<Value>(&body) else {
        return refuse("no JSON");
    };
    let is_last = {
        let mut seen = receiver.seen.lock().unwrap_or_else(PoisonError::into_inner);
        receiver.print(id, &message, seen.repeats(id));
        seen.taken += 1;
        receiver.count.is_some_and(|count| seen.taken >= count)
    };
    let answer = match &receiver.forward {
        None => (StatusCode::OK, Vec::new()),
        Some((client, url)) => forward(client, url, &headers, body).await,
    };
    if is_last {
        receiver.stop.cancel();
    }
    answer
}

async fn forward(
    client: &Client,
    url: &Url,
    headers: &HeaderMap,
    body: Bytes,
) -> (StatusCode, Vec<u8>) {
    let mut request = client.post(url.clone()).body(body);
    let names = [
        "content-type",
        "webhook-id",
        "webhook-timestamp",
        "webhook-signature",
    ];
    for name in names {
        if let Some(value) = headers.get(name) {
            request = request.header(name, value);
        }
    }
    match request.send().await {
        Ok(answer) => {
            let status = answer.status();
            // The service reads little of it.
            (status, status.canonical_reason().unwrap_or_default().into())
        }
        Err(error) => {
            eprintln!("not forwarded: {}", error.without_url());
            (StatusCode::BAD_GATEWAY, Vec::new())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_700_000_000;

    fn signed(secret: &Secret, at: i64, body: &[u8]) -> HeaderMap {
        let signed = format!(
            "v1,AAAA {}",
            signature(std::slice::from_ref(secret), "evt_1", at, body)
        );
        let mut headers = HeaderMap::new();
        headers.insert("webhook-id", "evt_1".parse().unwrap());
        headers.insert("webhook-timestamp", at.into());
        headers.insert("webhook-signature", signed.parse().unwrap());
        headers
    }

    #[test]
    fn what_was_signed_lately_with_the_secret_is_taken_and_nothing_else() {
        let (secret, other) = (Secret::from_random([1; 32]), Secret::from_random([2; 32]));
        let verify = |headers: &HeaderMap, body: &[u8]| {
            verify(&secret, headers, body, NOW).map(str::to_owned)
        };
        let good = signed(&secret, NOW, b"{}");
        assert_eq!(verify(&good, b"{}"), Ok("evt_1".to_owned()));
        assert!(verify(&good, b"{ }").is_err());
        assert!(verify(&signed(&other, NOW, b"{}"), b"{}").is_err());
        assert!(verify(&signed(&secret, NOW - 301, b"{}"), b"{}").is_err());
        assert!(verify(&signed(&secret, NOW + 301, b"{}"), b"{}").is_err());
        for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
            let mut without = good.clone();
            without.remove(name);
            assert!(verify(&without, b"{}").is_err(), "without {name}");
            let mut twice = good.clone();
            twice.append(name, good[name].clone());
            assert!(verify(&twice, b"{}").is_err(), "{name} twice");
        }
    }

    #[test]
    fn a_message_that_comes_again_is_known() {
        let mut seen = Seen::default();
        assert!(!seen.repeats("evt_1"));
        assert!(seen.repeats("evt_1"));
        for number in 0..=REMEMBERED {
            seen.repeats(&format!("other {number}"));
        }
        assert!(!seen.repeats("evt_1"), "what is long ago is forgotten");
        assert!(seen.ids.len() <= REMEMBERED && seen.order.len() <= REMEMBERED);
    }
}
