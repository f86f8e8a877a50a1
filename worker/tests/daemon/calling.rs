//! A server that speaks to a worker as a scheduler does, for calls of models alone: it gives no jobs.

use std::{
    collections::{HashMap, VecDeque},
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{
        Path as Named, State,
        ws::{Message, WebSocket, WebSocketUpgrade},
    },
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use comptoir_domain::{amount::Amount, digest::Sha256, id::WorkerId, job::Device};
use comptoir_wire::{
    calls::{
        self, Answer, Ask, Call, FromWorker, HostOrder, Hosting, MESSAGE_BYTES_MAX, SUBPROTOCOL,
        TICKET_HEADER, Tensor, ToWorker,
    },
    join::WorkerFacts,
    token::WorkerTokenReply,
    work::{BlobSize, WorkReply},
};
use comptoir_worker::{
    daemon::{
        display::Display,
        folder::{Folder, Identity},
        measure,
        run::{self, RunError, RunOptions},
    },
    engine::Launcher,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_bytes::ByteBuf;
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::harness::{example, launcher};

/// Longer than anything here takes.
pub const PATIENCE: Duration = Duration::from_secs(40);
const TOKEN: &str = "a-token-of-a-worker";
const TICKET: &str = "a-ticket";

#[derive(Clone)]
struct Served {
    connected: mpsc::Sender<WebSocket>,
    blobs: Arc<Mutex<HashMap<String, Vec<u8>>>>,
    fetched: Arc<AtomicUsize>,
    /// Connections that are refused first.
    refusals: Arc<AtomicUsize>,
}

/// The server.
pub struct Calls {
    served: Served,
    connections: mpsc::Receiver<WebSocket>,
    base: String,
    folder: TempDir,
}

/// A worker that runs in this process.
pub struct Running {
    stop: CancellationToken,
    task: JoinHandle<Result<(), RunError>>,
}

impl Running {
    /// Asks it to stop.
    pub fn ask_to_stop(&self) {
        self.stop.cancel();
    }

    /// Asks it to stop, and waits.
    pub async fn stop(self) {
        self.stop.cancel();
        timeout(PATIENCE, self.task)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
}

impl Calls {
    pub async fn new() -> Self {
        let (connected, connections) = mpsc::channel(8);
        let served = Served {
            connected,
            blobs: Arc::default(),
            fetched: Arc::default(),
            refusals: Arc::default(),
        };
        let router = Router::new()
            .route("/v1/worker-token", post(token))
            .route("/v1/work", post(work))
            .route("/v1/calls", get(connect))
            .route("/v1/calls/blobs/{sha256}", get(blob))
            .with_state(served.clone());
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))
            .await
            .unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            served,
            connections,
            base,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// Refuses so many connections from now on.
    pub fn refuse(&self, times: usize) {
        self.served.refusals.store(times, Ordering::Relaxed);
    }

    /// How many blobs were fetched.
    pub fn fetched(&self) -> usize {
        self.served.fetched.load(Ordering::Relaxed)
    }

    /// Serves a blob under the digest of other bytes, or of its own.
    pub fn serve(&self, as_if: &[u8], bytes: &[u8]) -> BlobSize {
        let sha256 = Sha256::of(as_if);
        let mut blobs = self.served.blobs.lock().unwrap();
        blobs.insert(sha256.to_string(), bytes.to_vec());
        BlobSize {
            sha256,
            bytes: bytes.len() as u64,
        }
    }

    /// How a version of the small net is hosted, which needs so much memory.
    pub fn order(&self, version: u128, memory_bytes: u64) -> HostOrder {
        let mlp = example("mlp.pt2");
        HostOrder {
            version: Uuid::from_u128(version),
            ticket: TICKET.to_owned(),
            program: self.serve(&mlp, &mlp),
            weights: None,
            writing: None,
            memory_bytes,
            batch_max: 64,
        }
    }

    /// Where the worker is.
    pub fn worker_folder(&self) -> PathBuf {
        self.folder.path().join("worker")
    }

    /// A worker that hosts with so much memory.
    pub async fn worker(&self, host_memory_bytes: u64) -> Running {
        let folder = self.worker_folder();
        self.join(&folder, &launcher()).await;
        let options = RunOptions {
            folder,
            slots: 1,
            memory_bytes: None,
            cache_bytes: 1 << 30,
            host_memory_bytes: Some(host_memory_bytes),
        };
        let stop = CancellationToken::new();
        let asked = stop.clone();
        let run = async move { run::run(&options, launcher(), Display::hidden(), asked).await };
        Running {
            stop,
            task: tokio::spawn(run),
        }
    }

    /// What `join` would leave behind.
    async fn join(&self, folder: &Path, launcher: &Launcher) {
        let opened = Folder::open(folder).unwrap();
        opened.make_key().unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let class = measure::class(launcher, Device::Cpu, 1, scratch.path());
        let identity = Identity {
            worker_id: WorkerId::generate(),
            url: self.base.parse().unwrap(),
            server: Sha256::of(b"keys"),
            name: "bench".to_owned(),
            facts: WorkerFacts {
                device: Device::Cpu,
                device_name: "x".to_owned(),
                memory_bytes: 1 << 30,
                threads: 1,
                numeric_class: class.await.unwrap().to_string(),
                libtorch: "2.13.0".to_owned(),
                version: "0.1.0".to_owned(),
                price_floor_nano: Amount::ZERO,
                unsandboxed: !launcher.sandbox().is_complete(),
            },
        };
        opened.keep_identity(&identity).unwrap();
    }

    /// The next connection of the worker.
    pub async fn connection(&mut self) -> Connection {
        let socket = timeout(PATIENCE, self.connections.recv()).await;
        Connection {
            socket: socket.unwrap().unwrap(),
            frames: VecDeque::new(),
            hosting: None,
        }
    }

    /// The processes of children that host.
    pub fn children(&self) -> Vec<Pid> {
        let scratch = self.worker_folder().canonicalize().unwrap();
        let scratch = scratch.join("scratch").join("host-");
        let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
        let hosts = processes.filter(|process| {
            let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let mut arguments = command.split(|byte| *byte == 0);
            arguments.any(|it| it.starts_with(scratch.as_os_str().as_encoded_bytes()))
        });
        let ids = hosts.filter_map(|process| process.file_name().to_str()?.parse().ok());
        ids.map(Pid::from_raw).collect()
    }

    /// Sends its only child that hosts a signal.
    pub fn signal(&self, signal: Signal) {
        let children = self.children();
        assert_eq!(children.len(), 1);
        kill(children[0], signal).unwrap();
    }
}

/// A connection, seen from the server.
pub struct Connection {
    socket: WebSocket,
    frames: VecDeque<FromWorker>,
    hosting: Option<Hosting>,
}

impl Connection {
    pub async fn send(&mut self, frames: &[ToWorker]) {
        let message = Message::Binary(calls::pack(frames).into());
        self.socket.send(message).await.unwrap();
    }

    /// Sends whatever it is, as far as the worker takes it.
    pub async fn send_any(&mut self, message: Message) {
        timeout(PATIENCE, self.socket.send(message))
            .await
            .unwrap()
            .ok();
    }

    /// The next frame; none once the worker has ended the connection.
    async fn next(&mut self) -> Option<FromWorker> {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Some(frame);
            }
            let message = timeout(PATIENCE, self.socket.recv()).await.unwrap();
            if let Message::Binary(bytes) = message?.ok()? {
                self.frames.extend(calls::unpack(&bytes).unwrap());
            }
        }
    }

    /// Waits until the worker ends the connection.
    pub async fn ended(mut self) {
        while self.next().await.is_some() {}
    }

    /// Waits until these versions are loaded, and no others.
    pub async fn hosts(&mut self, versions: &[u128]) -> Hosting {
        let expected: Vec<Uuid> = versions.iter().map(|it| Uuid::from_u128(*it)).collect();
        loop {
            if let Some(hosting) = &self.hosting
                && hosting.loaded == expected
            {
                return hosting.clone();
            }
            match self.next().await.unwrap() {
                FromWorker::Hosting(hosting) => self.hosting = Some(hosting),
                FromWorker::Answer { .. } => panic!("an answer that nobody waits for"),
            }
        }
    }

    /// The next answer.
    pub async fn answer(&mut self) -> (u128, Answer) {
        loop {
            match self.next().await.unwrap() {
                FromWorker::Hosting(hosting) => self.hosting = Some(hosting),
                FromWorker::Answer {
                    call,
                    is_last,
                    answer,
                } => {
                    assert!(is_last);
                    return (call.as_u128(), calls::answer(&answer).unwrap());
                }
            }
        }
    }

    /// Calls a version, and waits for its answer.
    pub async fn ask(&mut self, version: u128, id: u128) -> Answer {
        self.send(&[call(version, id)]).await;
        let (answered, answer) = self.answer().await;
        assert_eq!(answered, id);
        answer
    }
}

/// A call with an image of ones.
pub fn call(version: u128, id: u128) -> ToWorker {
    let input = Tensor {
        dtype: comptoir_domain::program::graph::ScalarType::F32,
        shape: vec![1, 1, 8, 8],
        bytes: 1_f32.to_le_bytes().repeat(64),
    };
    let call = Call {
        id: Uuid::from_u128(id),
        version: Uuid::from_u128(version),
        within_ms: 60_000,
        ask: Ask::Infer(vec![input]),
    };
    ToWorker::Call(ByteBuf::from(calls::encode(&call)))
}

pub fn host(order: HostOrder) -> ToWorker {
    ToWorker::Host(Box::new(order))
}

async fn token() -> Json<WorkerTokenReply> {
    Json(WorkerTokenReply {
        token: TOKEN.to_owned(),
        expires_in_s: 3_600,
    })
}

async fn work() -> Json<WorkReply> {
    tokio::time::sleep(Duration::from_millis(200)).await;
    Json(WorkReply::default())
}

fn is_ours(headers: &HeaderMap) -> bool {
    let token = headers.get(header::AUTHORIZATION);
    token.is_some_and(|it| *it == format!("Bearer {TOKEN}"))
}

async fn connect(
    State(served): State<Served>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    let left = served.refusals.load(Ordering::Relaxed);
    served
        .refusals
        .store(left.saturating_sub(1), Ordering::Relaxed);
    if left > 0 {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    assert!(is_ours(&headers));
    let upgrade = upgrade
        .protocols([SUBPROTOCOL])
        .max_message_size(MESSAGE_BYTES_MAX);
    assert_eq!(upgrade.selected_protocol().unwrap(), SUBPROTOCOL);
    upgrade.on_upgrade(async move |socket| {
        served.connected.send(socket).await.ok();
    })
}

async fn blob(
    State(served): State<Served>,
    headers: HeaderMap,
    Named(sha256): Named<String>,
) -> Response {
    served.fetched.fetch_add(1, Ordering::Relaxed);
    let ticket = headers.get(TICKET_HEADER);
    if !is_ours(&headers) || ticket.is_none_or(|it| it != TICKET) {
        return StatusCode::FORBIDDEN.into_response();
    }
    let blobs = served.blobs.lock().unwrap();
    match blobs.get(&sha256) {
        Some(bytes) => bytes.clone().into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}
