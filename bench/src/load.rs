//! Load over keep-alive connections: as little of the machine as a client can take, so that what is measured is the server.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

/// Before a request is repeated.
const REPEAT_AFTER: Duration = Duration::from_millis(1);

/// What is read at once of an answer that is thrown away.
const PIECE_BYTES: usize = 256 << 10;

/// Makes the bytes of a request, given its number.
pub type Request = dyn Fn(u64) -> Vec<u8> + Send + Sync;

/// What a load did.
#[derive(Debug)]
pub struct Load {
    /// Requests that succeeded in a second.
    pub per_second: f64,
    /// How long each took, in microseconds, in rising order.
    latencies: Vec<u32>,
}

impl Load {
    /// The latency that this part of the requests did not pass, in microseconds.
    #[must_use]
    pub fn percentile(&self, part: f64) -> f64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a place in a list"
        )]
        let place = (self.latencies.len() as f64 * part) as usize;
        let last = self.latencies.len().saturating_sub(1);
        self.latencies
            .get(place.min(last))
            .copied()
            .map_or(0.0, f64::from)
    }
}

/// Some clients, each with one request on its way at a time.
pub async fn closed(
    address: SocketAddr,
    clients: usize,
    lasting: Duration,
    request: &Arc<Request>,
) -> anyhow::Result<Load> {
    keep_asking(address, clients, lasting, request, None).await
}

/// As [`closed`], but every so many requests the client resets its connection instead of reading the answer, and repeats the request on
/// a new one. Only what is answered counts.
pub async fn resetting(
    address: SocketAddr,
    clients: usize,
    lasting: Duration,
    request: &Arc<Request>,
    every: u64,
) -> anyhow::Result<Load> {
    keep_asking(address, clients, lasting, request, Some(every)).await
}

async fn keep_asking(
    address: SocketAddr,
    clients: usize,
    lasting: Duration,
    request: &Arc<Request>,
    reset_every: Option<u64>,
) -> anyhow::Result<Load> {
    let (number, began) = (Arc::new(AtomicU64::new(0)), Instant::now());
    let mut running = Vec::with_capacity(clients);
    for _ in 0..clients {
        let (number, request) = (Arc::clone(&number), Arc::clone(request));
        running.push(tokio::spawn(async move {
            let mut connection = Connection::open(address).await?;
            let mut latencies = Vec::new();
            while began.elapsed() < lasting {
                let turn = number.fetch_add(1, Ordering::Relaxed);
                let bytes = request(turn);
                let sent = Instant::now();
                if reset_every.is_some_and(|every| turn % every == every - 1) {
                    connection.reset(&bytes).await?;
                    connection = Connection::open(address).await?;
                    connection.repeat(&bytes).await?;
                } else {
                    connection.exchange(&bytes).await?;
                }
                latencies.push(micros(sent.elapsed()));
            }
            anyhow::Ok(latencies)
        }));
    }
    collect(running, began).await
}

/// Requests at a fixed rate, whether the server keeps up or not: a request's latency counts from when it was due.
pub async fn open(
    address: SocketAddr,
    clients: usize,
    per_second: f64,
    lasting: Duration,
    request: &Arc<Request>,
) -> anyhow::Result<Load> {
    let (number, began) = (Arc::new(AtomicU64::new(0)), Instant::now());
    let mut running = Vec::with_capacity(clients);
    for _ in 0..clients {
        let (number, request) = (Arc::clone(&number), Arc::clone(request));
        running.push(tokio::spawn(async move {
            let mut connection = Connection::open(address).await?;
            let mut latencies = Vec::new();
            loop {
                let turn = number.fetch_add(1, Ordering::Relaxed);
                let turns = u32::try_from(turn).context("fewer requests than that")?;
                let due = began + Duration::from_secs_f64(f64::from(turns) / per_second);
                if due - began >= lasting {
                    return anyhow::Ok(latencies);
                }
                tokio::time::sleep_until(due).await;
                connection.exchange(&request(turn)).await?;
                latencies.push(micros(due.elapsed()));
            }
        }));
    }
    collect(running, began).await
}

async fn collect(
    running: Vec<tokio::task::JoinHandle<anyhow::Result<Vec<u32>>>>,
    began: Instant,
) -> anyhow::Result<Load> {
    let mut latencies = Vec::new();
    for client in running {
        latencies.extend(client.await??);
    }
    let done = u32::try_from(latencies.len()).context("fewer requests than that")?;
    latencies.sort_unstable();
    Ok(Load {
        per_second: f64::from(done) / began.elapsed().as_secs_f64(),
        latencies,
    })
}

fn micros(elapsed: Duration) -> u32 {
    u32::try_from(elapsed.as_micros()).unwrap_or(u32::MAX)
}

/// One connection, and what was read of it.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    /// Connects.
    pub async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: Vec::with_capacity(16 << 10),
        })
    }

    /// Sends a request and hangs up at once, with a reset.
    async fn reset(mut self, request: &[u8]) -> anyhow::Result<()> {
        self.stream.write_all(request).await?;
        self.stream.set_zero_linger()?;
        Ok(())
    }

    /// [`Self::exchange`], again and again while the first request of this key is being worked on.
    async fn repeat(&mut self, request: &[u8]) -> anyhow::Result<()> {
        loop {
            match self.exchange(request).await {
                Err(error) if error.to_string().contains("idempotency_in_progress") => {
                    tokio::time::sleep(REPEAT_AFTER).await;
                }
                answered => return answered,
            }
        }
    }

    /// Sends a request and reads its answer to the end; any but a 2xx is an error.
    pub async fn exchange(&mut self, request: &[u8]) -> anyhow::Result<()> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        loop {
            self.more().await?;
            if let Some(whole) = self.is_whole()? {
                return if whole {
                    Ok(())
                } else {
                    bail!("refused: {}", String::from_utf8_lossy(&self.buffer))
                };
            }
        }
    }

    /// Sends a request and throws away what answers it, piece by piece; how many bytes its body had. Any but a 2xx is an error.
    pub async fn discard(&mut self, request: &[u8]) -> anyhow::Result<u64> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        self.buffer.reserve(PIECE_BYTES);
        let head = loop {
            self.more().await?;
            if let Some(head) = self.head()? {
                break head;
            }
        };
        let mut taken = self.buffer.len() - head.bytes;
        while taken < head.length {
            self.buffer.clear();
            taken += self.more().await?;
        }
        if head.is_success {
            Ok(taken as u64)
        } else {
            bail!("refused: {}", String::from_utf8_lossy(&self.buffer))
        }
    }

    async fn more(&mut self) -> anyhow::Result<usize> {
        let read = self.stream.read_buf(&mut self.buffer).await?;
        ensure!(read > 0, "the server hung up");
        Ok(read)
    }

    /// Did it succeed? `None` while some of it is missing.
    fn is_whole(&self) -> anyhow::Result<Option<bool>> {
        let head = self.head()?;
        let whole = head.filter(|it| self.buffer.len() >= it.bytes + it.length);
        Ok(whole.map(|it| it.is_success))
    }

    /// The head of the answer; `None` while some of it is missing.
    fn head(&self) -> anyhow::Result<Option<Head>> {
        let Some(end) = self.buffer.windows(4).position(|it| it == b"\r\n\r\n") else {
            return Ok(None);
        };
        let head = std::str::from_utf8(&self.buffer[..end])?;
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.trim().parse::<usize>())
        });
        let length = length.context("an answer names its length")??;
        let status = head.split(' ').nth(1).context("an answer has a status")?;
        Ok(Some(Head {
            bytes: end + 4,
            length,
            is_success: status.starts_with('2'),
        }))
    }
}

/// What an answer begins with.
struct Head {
    /// How long it is itself.
    bytes: usize,
    /// How long what follows is.
    length: usize,
    is_success: bool,
}

/// The bytes of a GET on a connection that is kept.
#[must_use]
pub fn get(path: &str, headers: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: bench\r\n{headers}\r\n").into_bytes()
}

/// The bytes of a POST of JSON on a connection that is kept.
#[must_use]
pub fn post(path: &str, headers: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n{headers}content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}
