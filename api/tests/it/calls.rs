//! Calls of models over HTTP: what is answered is charged once, and nothing else is. The scheduler is played here, and its workers with it.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use alloy_primitives::Address;
use axum::http::{HeaderName, Method, StatusCode, header};
use comptoir_api::calls::{Calls, Terms};
use comptoir_domain::{asset::Asset, program::graph::ScalarType};
use comptoir_store::relay::Relay;
use comptoir_wire::calls::{
    self as wire, ANNOUNCEMENTS, Announcement, Answer, Ask, Call, Connected, FaultCause, Hosting,
    Outputs, Returned, Routed, Tensor, mailbox,
};
use serde_bytes::ByteBuf;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    harness::{Reply, Session, TestApp},
    market::{self, balances, client},
    models,
};

const SOON: Duration = Duration::from_secs(20);
const ANNOUNCE_EVERY: Duration = Duration::from_millis(100);
/// What a call costs, in base units: see [`models::shown`].
pub const PRICE: u128 = 7;
const SAFETENSORS: &str = "application/x-safetensors";

/// Closed as soon as nothing is called.
const IMPATIENT: Terms = Terms {
    window: Duration::from_millis(300),
    idle: Duration::from_millis(300),
};

/// What a worker does with a call: everything that it says, which may be nothing.
pub type Behaviour = dyn Fn(&Call) -> Vec<Answer> + Send + Sync;

/// A public model, somebody who calls it, and workers of one owner who host it.
pub struct World {
    pub app: TestApp,
    asset: Asset,
    pub creator: Session,
    pub caller: Session,
    payer: Address,
    pub path: String,
    /// Workers that were asked, in order.
    asked: Arc<Mutex<Vec<Uuid>>>,
    closing: CancellationToken,
    running: Option<JoinHandle<()>>,
}

impl World {
    pub async fn new(db: PgPool, base: u128, workers: Vec<Arc<Behaviour>>) -> Self {
        Self::of(db, base, workers, Terms::default()).await
    }

    async fn of(db: PgPool, base: u128, workers: Vec<Arc<Behaviour>>, terms: Terms) -> Self {
        let mut app = TestApp::new(db).await;
        app.replace_calls(terms);
        let (asset, _) = market::open(&app).await;
        let (creator, _) = client(&app, &asset, 0).await;
        let (owner, _) = client(&app, &asset, 0).await;
        let (caller, payer) = client(&app, &asset, base).await;
        let path = models::shown(&app, &creator).await;
        let closing = CancellationToken::new();
        let running = tokio::spawn(Calls::run(app.state.clone(), closing.clone()));
        let asked = Arc::<Mutex<_>>::default();
        let scheduler = Scheduler {
            id: Uuid::new_v4(),
            relay: app.relay.clone(),
            owner: owner.account.0,
            workers: workers.into_iter().map(|it| (Uuid::new_v4(), it)).collect(),
            asked: Arc::clone(&asked),
        };
        tokio::spawn(scheduler.run());
        Self {
            app,
            asset,
            creator,
            caller,
            payer,
            path,
            asked,
            closing,
            running: Some(running),
        }
    }

    /// Calls it with so many rows of zeros, once a worker is there.
    pub async fn call(&self, rows: usize) -> Reply {
        let body = json!({ "inputs": { "x": vec![row(); rows] } });
        self.once_hosted(async || self.infer(&body).await).await
    }

    /// What is answered once a worker is there.
    pub async fn once_hosted(&self, call: impl AsyncFn() -> Reply) -> Reply {
        let calling = async {
            loop {
                let reply = call().await;
                if reply.code() != "no_worker" || !self.asked.lock().unwrap().is_empty() {
                    return reply;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(SOON, calling).await.expect("a worker is announced")
    }

    pub async fn infer(&self, body: &Value) -> Reply {
        let call = self
            .app
            .request(Method::POST, &format!("{}/infer", self.path));
        call.json(body).by(&self.caller).send().await
    }

    /// The process ends, which charges what was called: what the payer has, and what is held of it.
    pub async fn settled(&mut self) -> (u128, u128) {
        self.closing.cancel();
        self.running.take().unwrap().await.unwrap();
        self.purse().await
    }

    async fn purse(&self) -> (u128, u128) {
        let it = balances(&self.app, &self.asset, self.payer).await;
        (it.available.base(), it.held.base())
    }

    /// Calls that were recorded.
    pub async fn events(&self) -> i64 {
        let events = sqlx::query_scalar("SELECT count(*) FROM usage_events");
        events.fetch_one(&self.app.owner).await.unwrap()
    }

    pub fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

/// A scheduler, as far as API processes know one.
struct Scheduler {
    id: Uuid,
    relay: Relay,
    owner: Uuid,
    workers: Vec<(Uuid, Arc<Behaviour>)>,
    asked: Arc<Mutex<Vec<Uuid>>>,
}

impl Scheduler {
    async fn run(self) {
        let mut inbox = self.relay.listen(&[&mailbox(self.id)]);
        let mut every = tokio::time::interval(ANNOUNCE_EVERY);
        loop {
            tokio::select! {
                _ = every.tick() => self.announce(),
                message = inbox.next() => {
                    let Some(message) = message else { return };
                    for frame in message.frames {
                        self.take(wire::frame(&frame).unwrap());
                    }
                }
            }
        }
    }

    fn announce(&self) {
        let hosting = Hosting {
            memory_bytes: 1 << 40,
            loaded: Vec::new(),
        };
        let workers = self.workers.iter().map(|(worker, _)| Connected {
            worker: *worker,
            owner: self.owner,
            hosting: hosting.clone(),
            waiting: 0,
        });
        let announcement = Announcement {
            scheduler: self.id,
            workers: workers.collect(),
        };
        self.send(ANNOUNCEMENTS, wire::encode(&announcement));
    }

    fn take(&self, frame: Routed) {
        let Routed::Call {
            worker,
            call,
            reply_to,
            body,
            ..
        } = frame
        else {
            return;
        };
        self.asked.lock().unwrap().push(worker);
        let (_, behaviour) = self.workers.iter().find(|(it, _)| *it == worker).unwrap();
        let asked = wire::call(&body).unwrap();
        assert_eq!(asked.id, call);
        let mut written = 0;
        for answer in behaviour(&asked) {
            let is_last = match (&asked.ask, &answer) {
                (Ask::Write(ask), Answer::Written(it)) => {
                    written += it.tokens.len();
                    let is_full = written >= usize::try_from(ask.tokens_max).unwrap();
                    is_full || it.tokens.last().is_some_and(|it| ask.ends.contains(it))
                }
                _ => true,
            };
            let returned = Returned {
                call,
                is_last,
                answer: ByteBuf::from(wire::encode(&answer)),
            };
            self.send(&mailbox(reply_to), wire::encode(&returned));
        }
    }

    fn send(&self, to: &str, frame: Vec<u8>) {
        self.relay.send(&Arc::from(to), frame.into()).unwrap();
    }
}

fn row() -> Value {
    json!([vec![vec![0.0; 8]; 8]])
}

fn outputs(rows: u64, classes: u64) -> Answer {
    let tensor = Tensor {
        dtype: ScalarType::F32,
        shape: vec![rows, classes],
        bytes: 0.5_f32
            .to_le_bytes()
            .repeat(usize::try_from(rows * classes).unwrap()),
    };
    let (batch_rows, compute_us, was_cold) = (1, 5, false);
    Answer::Outputs(Outputs {
        tensors: vec![tensor],
        batch_rows,
        compute_us,
        was_cold,
    })
}

fn rows_of(call: &Call) -> u64 {
    let Ask::Infer(inputs) = &call.ask else {
        panic!("a text is asked for")
    };
    inputs[0].rows().unwrap()
}

/// Answers as the program would: ten numbers for each row.
pub fn good() -> Arc<Behaviour> {
    Arc::new(|call| vec![outputs(rows_of(call), 10)])
}

fn faulty(cause: FaultCause) -> Arc<Behaviour> {
    Arc::new(move |_| vec![Answer::fault(cause, "why")])
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_call_is_answered_and_charged_once_and_the_rest_of_what_was_held_comes_back(db: PgPool) {
    let mut world = World::new(db, 1_000, vec![good()]).await;
    let reply = world.call(2).await.expect(StatusCode::OK);
    assert_eq!(
        reply.json["outputs"]["linear_2"],
        json!([vec![0.5; 10], vec![0.5; 10]])
    );
    assert_eq!(reply.json["usage"]["rows"], 2);
    assert_eq!(reply.text("/usage/cost"), "7");
    assert_eq!(reply.header(HeaderName::from_static("comptoir-cost")), "7");
    assert_eq!(
        reply.header(HeaderName::from_static("comptoir-call")),
        reply.text("/id")
    );
    let other = world.call(1).await.expect(StatusCode::OK);
    let receipt = other.header(HeaderName::from_static("comptoir-receipt"));
    assert_eq!(reply.text("/usage/receipt"), receipt, "one window");
    let (available, held) = world.purse().await;
    assert!(held >= 2 * PRICE, "{held} are held for calls");
    assert_eq!(available + held, 1_000, "nothing is charged yet");
    assert_eq!(world.settled().await, (1_000 - 2 * PRICE, 0));
    let windows = world
        .app
        .get("/v1/usage/windows")
        .by(&world.caller)
        .send()
        .await;
    assert_eq!(windows.json["data"][0]["calls"], 2);
    assert_eq!(windows.text("/data/0/charged/amount"), "14");
    assert_eq!(windows.text("/data/0/receipt_id"), receipt);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_call_whose_worker_is_lost_is_asked_of_another_one_and_charged_once(db: PgPool) {
    // Whichever is asked first goes away.
    let first = Arc::new(Mutex::new(true));
    let flaky: Arc<Behaviour> = Arc::new(move |call| {
        let is_first = std::mem::take(&mut *first.lock().unwrap());
        let lost = Answer::fault(FaultCause::Lost, "it went away");
        vec![if is_first {
            lost
        } else {
            outputs(rows_of(call), 10)
        }]
    });
    let mut world = World::new(db, 1_000, vec![Arc::clone(&flaky), flaky]).await;
    world.call(1).await.expect(StatusCode::OK);
    let asked = world.asked.lock().unwrap().clone();
    assert!(asked.len() == 2 && asked[0] != asked[1], "{asked:?}");
    assert_eq!(world.settled().await, (1_000 - PRICE, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_is_not_computed_is_the_callers_to_mend_and_costs_nothing(db: PgPool) {
    let mut world = World::new(
        db,
        1_000,
        vec![faulty(FaultCause::Caller), faulty(FaultCause::Caller)],
    )
    .await;
    let refused = world.call(1).await;
    let refused = refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "not_computed");
    assert_eq!(refused.text("/detail"), "why");
    assert_eq!(world.asked(), 1, "no other worker is asked");
    assert_eq!(world.settled().await, (1_000, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_answer_that_the_program_does_not_make_is_none_and_costs_nothing(db: PgPool) {
    let liar: Arc<Behaviour> = Arc::new(|call| vec![outputs(rows_of(call), 9)]);
    let mut world = World::new(db, 1_000, vec![Arc::clone(&liar), liar]).await;
    let refused = world.call(1).await;
    refused.expect_problem(StatusCode::SERVICE_UNAVAILABLE, "no_worker");
    assert_eq!(world.asked(), 2, "both were asked");
    assert_eq!(world.settled().await, (1_000, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn where_nobody_hosts_models_a_call_is_refused_at_once_and_costs_nothing(db: PgPool) {
    let mut world = World::new(db, 1_000, Vec::new()).await;
    let refused = world.infer(&json!({ "inputs": { "x": [row()] } })).await;
    let refused = refused.expect_problem(StatusCode::SERVICE_UNAVAILABLE, "no_worker");
    assert_eq!(refused.header(header::RETRY_AFTER), "5");
    assert_eq!(world.settled().await, (1_000, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_balance_pays_for_calls_to_its_last_unit_and_no_further(db: PgPool) {
    let mut world = World::new(db, 3 * PRICE + 6, vec![good()]).await;
    for _ in 0..3 {
        world.call(1).await.expect(StatusCode::OK);
    }
    let refused = world.call(1).await;
    refused.expect_problem(StatusCode::PAYMENT_REQUIRED, "insufficient_funds");
    assert_eq!(world.asked(), 3, "who cannot pay has nobody work");
    assert_eq!(world.settled().await, (6, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn free_calls_of_the_day_come_first_and_one_that_fails_is_not_used_up(db: PgPool) {
    let fails = Arc::new(Mutex::new(true));
    let once: Arc<Behaviour> = Arc::new(move |call| {
        let fails = std::mem::take(&mut *fails.lock().unwrap());
        let refused = Answer::fault(FaultCause::Caller, "no");
        vec![if fails {
            refused
        } else {
            outputs(rows_of(call), 10)
        }]
    });
    let mut world = World::new(db, 1_000, vec![once]).await;
    let tariff = json!({ "tariff": { "call_nano": "7000000000", "free_calls_per_day": 1 } });
    let prices = format!("{}/prices", world.path);
    let priced = world
        .app
        .post(&prices, &tariff)
        .by(&world.creator)
        .send()
        .await;
    priced.expect(StatusCode::CREATED);
    world.call(1).await.expect(StatusCode::UNPROCESSABLE_ENTITY);
    for cost in ["0", "7"] {
        let reply = world.call(1).await.expect(StatusCode::OK);
        assert_eq!(reply.text("/usage/cost"), cost);
        assert_eq!(reply.json["usage"]["receipt"].is_null(), cost == "0");
    }
    assert_eq!(world.settled().await, (1_000 - PRICE, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_caller_that_hangs_up_pays_for_what_was_computed(db: PgPool) {
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let telling: Arc<Behaviour> = Arc::new(move |call| {
        told.send(()).unwrap();
        vec![outputs(rows_of(call), 10)]
    });
    let mut world = World::new(db, 1_000, vec![telling]).await;
    {
        let calling = world.call(1);
        tokio::select! {
            biased;
            _ = heard.recv() => {}
            _ = calling => panic!("the answer is on its way"),
        }
    }
    let recorded = async {
        while world.events().await == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, recorded).await.expect("the call is recorded");
    assert_eq!(world.settled().await, (1_000 - PRICE, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_allowance_that_cannot_be_closed_is_tried_again_while_the_process_lives(db: PgPool) {
    let mut world = World::of(db, 3 * PRICE, vec![good()], IMPATIENT).await;
    world.call(1).await.expect(StatusCode::OK);
    let change = async |text| sqlx::raw_sql(text).execute(&world.app.owner).await.unwrap();
    change("ALTER TABLE allowances ADD CONSTRAINT stuck CHECK (closed_at IS NULL)").await;
    // It is idle, and its closing fails.
    tokio::time::sleep(3 * IMPATIENT.idle).await;
    assert_eq!(world.purse().await, (2 * PRICE, PRICE), "it is held still");
    change("ALTER TABLE allowances DROP CONSTRAINT stuck").await;
    let closed = async {
        while world.purse().await != (2 * PRICE, 0) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(SOON, closed)
        .await
        .expect("it is closed without anybody's help");
    assert_eq!(world.settled().await, (2 * PRICE, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_file_of_tensors_is_answered_with_one_and_bad_inputs_never_leave(db: PgPool) {
    let mut world = World::new(db, 1_000, vec![good()]).await;
    world.call(1).await.expect(StatusCode::OK);
    let head = br#"{"x":{"dtype":"F32","shape":[1,1,8,8],"data_offsets":[0,256]}}  "#;
    let file = [&(head.len() as u64).to_le_bytes(), &head[..], &[0; 256]].concat();
    let infer = format!("{}/infer", world.path);
    let send = async |file: Vec<u8>| {
        let call = world.app.request(Method::POST, &infer).by(&world.caller);
        call.header(header::CONTENT_TYPE, SAFETENSORS)
            .body(file)
            .send()
            .await
    };
    let reply = send(file.clone()).await.expect(StatusCode::OK);
    assert_eq!(reply.header(header::CONTENT_TYPE), SAFETENSORS);
    assert!(reply.bytes.ends_with(&0.5_f32.to_le_bytes().repeat(10)));
    let refused = send(file[..file.len() - 1].to_vec()).await;
    refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    for body in [
        json!({}),
        json!({ "inputs": { "x": [[1]] } }),
        json!({ "inputs": {}, "x": 1 }),
    ] {
        let refused = world.infer(&body).await;
        refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    }
    let plain = world.app.request(Method::POST, &infer).by(&world.caller);
    let plain = plain
        .header(header::CONTENT_TYPE, "text/plain")
        .body("x")
        .send()
        .await;
    plain.expect_problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type");
    assert_eq!(world.asked(), 2);
    assert_eq!(world.settled().await, (1_000 - 2 * PRICE, 0));
}
