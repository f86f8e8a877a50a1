//! A node that fails and lies in the ways that nodes do: it stands between the settler and anvil.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use url::Url;

/// What happens to a request.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The connection ends without an answer, and nothing reached the node.
    Refused,
    /// No answer, ever.
    Hang,
    /// HTTP 429.
    TooMany,
    /// A JSON-RPC error with this code and message.
    Error(i64, &'static str),
    /// The first half of the answer.
    Truncated,
    /// A web page, as a load balancer has it for bad days.
    Html,
    /// The node gets the request; its answer is lost.
    AnswerLost,
    /// This result, whatever the node would say.
    Says(Value),
    /// What the node says, changed on its way.
    Lies(fn(&mut Value)),
    /// The question, changed on its way.
    Asks(fn(&mut Value)),
    /// The newest block is one that was the newest so many blocks ago.
    Lags(u64),
}

#[derive(Default)]
struct State {
    faults: BTreeMap<&'static str, Fault>,
    seen: BTreeMap<String, u64>,
}

/// Listens as long as the test runs.
pub struct Proxy {
    pub url: Url,
    state: Arc<Mutex<State>>,
}

impl Proxy {
    pub async fn before(node: &Url) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::<Mutex<State>>::default();
        let (node, shared) = (node.clone(), Arc::clone(&state));
        tokio::spawn(async move {
            let client = reqwest::Client::new();
            while let Ok((socket, _)) = listener.accept().await {
                let (client, node) = (client.clone(), node.clone());
                let shared = Arc::clone(&shared);
                tokio::spawn(async move { serve(socket, &client, node, &shared).await });
            }
        });
        Self {
            url: url.parse().unwrap(),
            state,
        }
    }

    /// From now on requests of this method (`*`: of any) meet the fault.
    pub fn fails(&self, method: &'static str, fault: Fault) {
        self.state.lock().unwrap().faults.insert(method, fault);
    }

    pub fn heals(&self) {
        self.state.lock().unwrap().faults.clear();
    }

    /// How often this method was asked for.
    pub fn seen(&self, method: &str) -> u64 {
        let state = self.state.lock().unwrap();
        state.seen.get(method).copied().unwrap_or_default()
    }
}

async fn serve(
    mut socket: TcpStream,
    client: &reqwest::Client,
    node: Url,
    state: &Mutex<State>,
) -> Option<()> {
    let body = read_request(&mut socket).await?;
    let request: Value = serde_json::from_slice(&body).ok()?;
    let method = request["method"].as_str().unwrap_or("batch").to_owned();
    let fault = {
        let mut state = state.lock().unwrap();
        *state.seen.entry(method.clone()).or_default() += 1;
        let of_method = state.faults.get(method.as_str());
        of_method.or(state.faults.get("*")).cloned()
    };
    let forward = async |body: &[u8]| {
        let request = client.post(node.clone()).body(body.to_vec());
        let request = request.header("content-type", "application/json");
        request.send().await.ok()?.bytes().await.ok()
    };
    let envelope = |key: &str, value: Value| {
        let mut answer = json!({ "jsonrpc": "2.0", "id": request["id"] });
        answer[key] = value;
        serde_json::to_vec(&answer).unwrap()
    };
    match fault {
        None => answer(&mut socket, "200 OK", &forward(&body).await?).await,
        Some(Fault::Refused) => Some(()),
        Some(Fault::Hang) => {
            // Until the client gives up.
            let mut rest = Vec::new();
            socket.read_to_end(&mut rest).await.ok().map(drop)
        }
        Some(Fault::TooMany) => answer(&mut socket, "429 Too Many Requests", b"slow down").await,
        Some(Fault::Error(code, message)) => {
            let error = envelope("error", json!({ "code": code, "message": message }));
            answer(&mut socket, "200 OK", &error).await
        }
        Some(Fault::Truncated) => {
            let whole = forward(&body).await?;
            answer(&mut socket, "200 OK", &whole[..whole.len() / 2]).await
        }
        Some(Fault::Html) => {
            answer(
                &mut socket,
                "502 Bad Gateway",
                b"<html><h1>Bad gateway</h1></html>",
            )
            .await
        }
        Some(Fault::AnswerLost) => forward(&body).await.map(drop),
        Some(Fault::Lies(lie)) => {
            let told = lied(&forward(&body).await?, lie)?;
            answer(&mut socket, "200 OK", &told).await
        }
        Some(Fault::Asks(change)) => {
            let mut request = request;
            change(&mut request["params"]);
            let told = forward(&serde_json::to_vec(&request).ok()?).await?;
            answer(&mut socket, "200 OK", &told).await
        }
        Some(Fault::Lags(blocks)) => {
            let head = number(&forward(&newest()).await?)?;
            let request = lagging(request, head.saturating_sub(blocks));
            let told = forward(&serde_json::to_vec(&request).ok()?).await?;
            answer(&mut socket, "200 OK", &told).await
        }
        Some(Fault::Says(result)) => {
            answer(&mut socket, "200 OK", &envelope("result", result)).await
        }
    }
}

/// The question which block is the newest.
fn newest() -> Vec<u8> {
    let asked = json!({ "jsonrpc": "2.0", "id": 0, "method": "eth_blockNumber", "params": [] });
    serde_json::to_vec(&asked).unwrap()
}

/// The same question with another newest block.
fn lagging(mut request: Value, head: u64) -> Value {
    if request["params"][0] == "latest" {
        request["params"][0] = json!(format!("{head:#x}"));
    }
    request
}

/// The number that an answer holds.
fn number(answer: &[u8]) -> Option<u64> {
    let answer: Value = serde_json::from_slice(answer).ok()?;
    let digits = answer["result"].as_str()?.strip_prefix("0x")?;
    u64::from_str_radix(digits, 16).ok()
}

/// Every result of an answer, or of a batch of them, changed by a lie.
fn lied(answer: &[u8], lie: fn(&mut Value)) -> Option<Vec<u8>> {
    let mut told: Value = serde_json::from_slice(answer).ok()?;
    match &mut told {
        Value::Array(answers) => answers.iter_mut().for_each(|it| lie(&mut it["result"])),
        answer => lie(&mut answer["result"]),
    }
    serde_json::to_vec(&told).ok()
}

async fn read_request(socket: &mut TcpStream) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        if socket.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        let Some(end) = bytes.windows(4).position(|it| it == b"\r\n\r\n") else {
            continue;
        };
        let head = std::str::from_utf8(&bytes[..end]).ok()?.to_lowercase();
        let length = head
            .lines()
            .find_map(|it| it.strip_prefix("content-length:"));
        let length: usize = length?.trim().parse().ok()?;
        if bytes.len() >= end + 4 + length {
            return Some(bytes[end + 4..].to_vec());
        }
    }
}

async fn answer(socket: &mut TcpStream, status: &str, body: &[u8]) -> Option<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    socket.write_all(head.as_bytes()).await.ok()?;
    socket.write_all(body).await.ok()?;
    socket.shutdown().await.ok()
}
