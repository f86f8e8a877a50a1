//! Calls of models on their way to workers and back, and the blobs of what they host.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use comptoir_domain::{
    digest::Sha256,
    fit::ProgramFacts,
    id::{AccountId, ModelId, ModelVersionId},
    model::{Manifest, Programs},
};
use comptoir_scheduler::{Calls, stub::StubWorker};
use comptoir_store::{
    blobs, quotes,
    relay::{Inbox, Relay},
};
use comptoir_wire::calls::{
    self, ANNOUNCEMENTS, Announcement, Answer, FaultCause, FromWorker, HostOrder, Hosting,
    Returned, Routed, SUBPROTOCOL, TICKET_HEADER, ToWorker, mailbox,
};
use futures::{SinkExt as _, StreamExt as _};
use reqwest::{Method, StatusCode};
use serde_bytes::ByteBuf;
use sqlx::PgPool;
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, Message, client::IntoClientRequest as _, http::HeaderValue},
};
use uuid::Uuid;

use crate::harness::{Bench, now};

const SOON: Duration = Duration::from_secs(20);
const PROGRAM: &[u8] = b"an archive";
const WEIGHTS: &[u8] = b"some weights";

type Stream = WebSocketStream<TcpStream>;

/// A worker that takes calls.
struct Host {
    worker: StubWorker,
    stream: Stream,
    waiting: Vec<ToWorker>,
}

async fn open(bench: &Bench, worker: &StubWorker, subprotocol: &str) -> Result<Stream, Error> {
    let address = bench.base.strip_prefix("http://").unwrap();
    let mut request = format!("ws://{address}/v1/calls").into_client_request()?;
    let token = worker.request(Method::GET, "/").build().unwrap();
    let fields = request.headers_mut();
    fields.insert(
        "authorization",
        token.headers()["authorization"].to_str().unwrap().parse()?,
    );
    fields.insert(
        "sec-websocket-protocol",
        HeaderValue::from_str(subprotocol)?,
    );
    let stream = TcpStream::connect(address).await?;
    client_async(request, stream)
        .await
        .map(|(stream, _)| stream)
}

impl Host {
    async fn connect(bench: &Bench, worker: StubWorker) -> Self {
        let mut stream = open(bench, &worker, SUBPROTOCOL).await.unwrap();
        let hosting = Hosting {
            memory_bytes: 1 << 30,
            loaded: Vec::new(),
        };
        let hello = calls::pack(&[FromWorker::Hosting(hosting)]);
        stream.send(Message::Binary(hello.into())).await.unwrap();
        Self {
            worker,
            stream,
            waiting: Vec::new(),
        }
    }

    async fn frame(&mut self) -> ToWorker {
        while self.waiting.is_empty() {
            let message = timeout(SOON, self.stream.next()).await.unwrap();
            let message = message.expect("the stream is open").unwrap();
            if let Message::Binary(frames) = message {
                self.waiting = calls::unpack(&frames).unwrap();
                self.waiting.reverse();
            }
        }
        self.waiting.pop().unwrap()
    }

    async fn order(&mut self) -> HostOrder {
        match self.frame().await {
            ToWorker::Host(order) => *order,
            other => panic!("an order comes first, not {other:?}"),
        }
    }

    async fn answer(&mut self, call: Uuid, answer: &Answer) {
        let frame = FromWorker::Answer {
            call,
            is_last: true,
            answer: ByteBuf::from(calls::encode(answer)),
        };
        let message = Message::Binary(calls::pack(&[frame]).into());
        self.stream.send(message).await.unwrap();
    }
}

async fn is_closed(stream: &mut Stream) -> bool {
    let ended = async {
        while let Some(Ok(message)) = stream.next().await {
            if message.is_close() {
                break;
            }
        }
    };
    timeout(SOON, ended).await.is_ok()
}

/// An API process, as far as schedulers know one.
struct Asking {
    process: Uuid,
    relay: Relay,
    inbox: Inbox,
    scheduler: Option<Uuid>,
}

impl Asking {
    fn start(bench: &Bench) -> Self {
        let process = Uuid::new_v4();
        let relay = bench.relay.clone();
        let inbox = relay.listen(&[ANNOUNCEMENTS, &mailbox(process)]);
        tokio::spawn(Calls::run(bench.state.clone()));
        Self {
            process,
            relay,
            inbox,
            scheduler: None,
        }
    }

    /// Waits until this many workers are announced that can host something.
    async fn hosts(&mut self, wanted: usize) -> Vec<calls::Connected> {
        loop {
            let message = timeout(SOON, self.inbox.next()).await.unwrap().unwrap();
            if message.mailbox != ANNOUNCEMENTS {
                continue;
            }
            let heard: Announcement = calls::frame(message.frames.last().unwrap()).unwrap();
            self.scheduler = Some(heard.scheduler);
            let able = heard
                .workers
                .iter()
                .filter(|it| it.hosting.memory_bytes > 0);
            if able.count() == wanted {
                return heard.workers;
            }
        }
    }

    fn call(&self, worker: Uuid, version: Uuid) -> Uuid {
        let call = Uuid::new_v4();
        let routed = Routed::Call {
            worker,
            version,
            call,
            reply_to: self.process,
            body: ByteBuf::from(call.as_bytes().to_vec()),
        };
        self.send(&routed);
        call
    }

    fn send(&self, routed: &Routed) {
        let to: Arc<str> = mailbox(self.scheduler.unwrap()).into();
        self.relay.send(&to, calls::encode(routed).into()).unwrap();
    }

    async fn answer(&mut self) -> (Uuid, Answer) {
        loop {
            let message = timeout(SOON, self.inbox.next()).await.unwrap().unwrap();
            if message.mailbox == mailbox(self.process) {
                let returned: Returned = calls::frame(&message.frames[0]).unwrap();
                return (returned.call, calls::answer(&returned.answer).unwrap());
            }
        }
    }

    async fn fault(&mut self) -> (Uuid, FaultCause) {
        match self.answer().await {
            (call, Answer::Fault(fault)) => (call, fault.cause),
            (_, other) => panic!("a fault is wanted, not {other:?}"),
        }
    }
}

/// A version of a model: its program and its weights are blobs.
async fn publish(bench: &Bench, account: AccountId) -> ModelVersionId {
    let (program, weights) = (Sha256::of(PROGRAM), Sha256::of(WEIGHTS));
    let mut conn = bench.owner.acquire().await.unwrap();
    for content in [PROGRAM, WEIGHTS] {
        let stored = bench
            .state
            .objects
            .put(Bytes::from_static(content))
            .await
            .unwrap();
        blobs::register(&mut conn, stored, now()).await.unwrap();
    }
    let facts = ProgramFacts {
        torch_version: "2".into(),
        is_trainable: false,
        batch_min: 1,
        batch_max: 32,
        inputs: Vec::new(),
        outputs: Vec::new(),
        weights: BTreeMap::new(),
        madds_per_row: 1,
        stored_bytes: 8,
        learned_bytes: 0,
        value_bytes: vec![0, 8],
    };
    quotes::keep_facts(&mut conn, program, &facts, now())
        .await
        .unwrap();
    let manifest = Manifest {
        programs: Programs {
            infer: program,
            train: None,
            generate: None,
        },
        weights: Some(weights),
        labels: None,
        text: None,
        result: None,
        generation: None,
    };
    let (model, version) = (ModelId::generate(), ModelVersionId::generate());
    sqlx::query("INSERT INTO models VALUES ($1, $2, 'm', 'm', '', 'MIT', '', '{}', 'private', NULL, now(), now())")
        .bind(model.0)
        .bind(account.0)
        .execute(&mut *conn)
        .await
        .unwrap();
    sqlx::query(
        "INSERT INTO model_versions (version_id, model_id, account_id, number, manifest, manifest_sha256, licence, notes, created_at)
         VALUES ($1, $2, $3, 1, $4, $5, 'MIT', '', now())",
    )
    .bind(version.0)
    .bind(model.0)
    .bind(account.0)
    .bind(serde_json::to_value(&manifest).unwrap())
    .bind(manifest.digest().0.as_slice())
    .execute(&mut *conn)
    .await
    .unwrap();
    version
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_call_reaches_its_worker_behind_the_order_and_its_answer_who_asked(pool: PgPool) {
    let bench = Bench::new(pool).await;
    let mut asking = Asking::start(&bench);
    let version = publish(&bench, bench.account(0x01).await.account).await;
    let mut host = Host::connect(&bench, bench.worker(0xa1).await).await;
    let workers = asking.hosts(1).await;
    assert_eq!(workers[0].worker, host.worker.id.0);
    let first = asking.call(host.worker.id.0, version.0);
    let order = host.order().await;
    assert_eq!((order.version, order.batch_max), (version.0, 32));
    assert_eq!(order.program.bytes, PROGRAM.len() as u64);
    assert_eq!(order.weights.unwrap().sha256, Sha256::of(WEIGHTS));
    assert_eq!(
        host.frame().await,
        ToWorker::Call(ByteBuf::from(first.as_bytes().to_vec()))
    );
    let second = asking.call(host.worker.id.0, version.0);
    let again = host.frame().await;
    assert_eq!(
        again,
        ToWorker::Call(ByteBuf::from(second.as_bytes().to_vec())),
        "the order is said once"
    );
    let answer = Answer::fault(FaultCause::Caller, "no");
    host.answer(second, &answer).await;
    host.answer(first, &answer).await;
    assert_eq!(asking.answer().await, (second, answer.clone()));
    assert_eq!(asking.answer().await, (first, answer));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_version_that_is_not_there_and_a_worker_that_is_not_are_told_at_once(pool: PgPool) {
    let bench = Bench::new(pool).await;
    let mut asking = Asking::start(&bench);
    let host = Host::connect(&bench, bench.worker(0xa1).await).await;
    asking.hosts(1).await;
    let unknown = asking.call(host.worker.id.0, Uuid::new_v4());
    assert_eq!(asking.fault().await, (unknown, FaultCause::Version));
    let nobody = asking.call(Uuid::new_v4(), Uuid::new_v4());
    assert_eq!(asking.fault().await, (nobody, FaultCause::Lost));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn calls_of_a_worker_that_goes_away_are_lost_at_once_and_nobody_answers_for_another(
    pool: PgPool,
) {
    let bench = Bench::new(pool).await;
    let mut asking = Asking::start(&bench);
    let version = publish(&bench, bench.account(0x01).await.account).await;
    let mut host = Host::connect(&bench, bench.worker(0xa1).await).await;
    let mut other = Host::connect(&bench, bench.worker(0xa2).await).await;
    asking.hosts(2).await;
    let call = asking.call(host.worker.id.0, version.0);
    host.order().await;
    host.frame().await;
    // Another worker's word for it is nobody's.
    other
        .answer(call, &Answer::fault(FaultCause::Caller, "a lie"))
        .await;
    let mine = asking.call(other.worker.id.0, version.0);
    other.order().await;
    other.frame().await;
    other
        .answer(mine, &Answer::fault(FaultCause::Caller, "true"))
        .await;
    assert_eq!(asking.fault().await, (mine, FaultCause::Caller));
    drop(host.stream);
    assert_eq!(asking.fault().await, (call, FaultCause::Lost));
    assert_eq!(asking.hosts(1).await.len(), 1);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_second_stream_of_a_worker_takes_the_place_of_the_first(pool: PgPool) {
    let bench = Bench::new(pool).await;
    let mut asking = Asking::start(&bench);
    let version = publish(&bench, bench.account(0x01).await.account).await;
    let mut first = Host::connect(&bench, bench.worker(0xa1).await).await;
    asking.hosts(1).await;
    let call = asking.call(first.worker.id.0, version.0);
    first.order().await;
    first.frame().await;
    let second = open(&bench, &first.worker, SUBPROTOCOL).await.unwrap();
    assert_eq!(asking.fault().await, (call, FaultCause::Lost));
    assert!(is_closed(&mut first.stream).await);
    drop(second);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn whoever_gives_up_a_call_has_its_worker_told(pool: PgPool) {
    let bench = Bench::new(pool).await;
    let mut asking = Asking::start(&bench);
    let version = publish(&bench, bench.account(0x01).await.account).await;
    let mut host = Host::connect(&bench, bench.worker(0xa1).await).await;
    asking.hosts(1).await;
    let call = asking.call(host.worker.id.0, version.0);
    host.order().await;
    host.frame().await;
    asking.send(&Routed::Cancel { call });
    assert_eq!(host.frame().await, ToWorker::Cancel(call));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn blobs_of_a_version_are_given_to_the_worker_of_the_ticket_alone(pool: PgPool) {
    let bench = Bench::new(pool).await;
    let mut asking = Asking::start(&bench);
    let version = publish(&bench, bench.account(0x01).await.account).await;
    let mut host = Host::connect(&bench, bench.worker(0xa1).await).await;
    let other = bench.worker(0xa2).await;
    asking.hosts(1).await;
    asking.call(host.worker.id.0, version.0);
    let order = host.order().await;
    let fetch = async |worker: &StubWorker, sha256: Sha256, ticket: &str| {
        let request = worker.request(Method::GET, &format!("/v1/calls/blobs/{sha256}"));
        let reply = request.header(TICKET_HEADER, ticket).send().await.unwrap();
        (reply.status(), reply.bytes().await.unwrap())
    };
    let (program, weights) = (Sha256::of(PROGRAM), Sha256::of(WEIGHTS));
    let got = fetch(&host.worker, program, &order.ticket).await;
    assert_eq!(got, (StatusCode::OK, Bytes::from_static(PROGRAM)));
    let got = fetch(&host.worker, weights, &order.ticket).await;
    assert_eq!(got, (StatusCode::OK, Bytes::from_static(WEIGHTS)));
    let status = |got: (StatusCode, Bytes)| got.0;
    let stranger = Sha256::of(b"another blob");
    assert_eq!(
        status(fetch(&host.worker, stranger, &order.ticket).await),
        StatusCode::NOT_FOUND
    );
    assert_eq!(
        status(fetch(&other, program, &order.ticket).await),
        StatusCode::FORBIDDEN
    );
    let own_token = host.worker.request(Method::GET, "/").build().unwrap();
    let own_token = own_token.headers()["authorization"].to_str().unwrap();
    let own_token = own_token.strip_prefix("Bearer ").unwrap();
    assert_eq!(
        status(fetch(&host.worker, program, own_token).await),
        StatusCode::FORBIDDEN
    );
    assert_eq!(
        status(fetch(&host.worker, program, "").await),
        StatusCode::FORBIDDEN
    );
    // A ticket is no worker token.
    let url = format!("{}/v1/calls/blobs/{program}", bench.base);
    let posing = reqwest::Client::new()
        .get(url)
        .bearer_auth(&order.ticket)
        .send()
        .await
        .unwrap();
    assert_eq!(posing.status(), StatusCode::UNAUTHORIZED);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_stream_that_says_what_is_no_frame_ends_and_one_of_another_protocol_never_begins(
    pool: PgPool,
) {
    let bench = Bench::new(pool).await;
    let worker = bench.worker(0xa1).await;
    let Err(Error::Http(refused)) = open(&bench, &worker, "comptoir-calls-0").await else {
        panic!("another protocol is refused");
    };
    assert_eq!(refused.status().as_u16(), 426);
    let plain = worker
        .request(Method::GET, "/v1/calls")
        .send()
        .await
        .unwrap();
    assert_eq!(plain.status(), StatusCode::UPGRADE_REQUIRED);
    for garbage in [
        Message::Binary(Bytes::from_static(&[0xff; 64])),
        Message::Text("hello".into()),
        Message::Binary(
            calls::pack(&[FromWorker::Hosting(Hosting {
                memory_bytes: 1,
                loaded: vec![Uuid::nil(); 257],
            })])
            .into(),
        ),
    ] {
        let mut stream = open(&bench, &worker, SUBPROTOCOL).await.unwrap();
        stream.send(garbage).await.unwrap();
        assert!(is_closed(&mut stream).await);
    }
}
