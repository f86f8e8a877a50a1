//! The worker protocol: requests as the scheduler reads them, replies as the worker does.

use std::{collections::BTreeMap, fmt::Debug};

use comptoir_domain::{
    digest::Sha256,
    id::{AttemptId, JoinTokenId, LeaseToken, WorkerId},
    job::{Device, InferenceSpec, JobSpec, Loss, Optimizer, Schedule, TensorRef, TrainingSpec},
    join_token::JoinToken,
    strict,
};
use comptoir_wire::{
    attempt::{
        AttemptEvent, Checkpoint, EventKind, EventsReply, EventsRequest, SegmentReply,
        SegmentRequest,
    },
    encoded::Base64,
    heartbeat::{HeartbeatReply, HeartbeatRequest, Held, LeaseState, LeaseStatus},
    join::{JoinReply, JoinRequest, WorkerFacts},
    seal,
    token::{WorkerTokenReply, WorkerTokenRequest, token_signing_bytes},
    work::{
        Ack, AckOutcome, BlobSize, Failure, FailureCause, Lease, Limits, Report, Reveal,
        RevealOrder, Seal, WorkReply, WorkRequest,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::seeds::Seed;

/// A body, as every route of the scheduler that takes one.
pub fn request(input: &[u8]) -> bool {
    let join = received::<JoinRequest>(input);
    if let Some(join) = &join {
        join.signing_bytes().expect("a request has a JSON form");
        if let Ok(token) = join.token.parse::<JoinToken>() {
            assert_eq!(token.reveal(), join.token, "a token has one form");
        }
        drop(join.check());
    }
    let token = received::<WorkerTokenRequest>(input);
    if let Some(token) = &token {
        let signed = token_signing_bytes(token.worker_id, token.issued_at_ms);
        assert_eq!(signed.len(), 48);
    }
    let beat = received::<HeartbeatRequest>(input);
    if let Some(beat) = &beat {
        drop(beat.check());
    }
    let events = received::<EventsRequest>(input);
    if let Some(events) = &events {
        drop(events.check());
    }
    let work = received::<WorkRequest>(input);
    if let Some(work) = &work
        && work.check().is_ok()
    {
        work.reveals.iter().for_each(open);
    }
    let segment = received::<SegmentRequest>(input);
    let is_attempts = events.is_some() || segment.is_some();
    join.is_some() || token.is_some() || beat.is_some() || work.is_some() || is_attempts
}

/// A seal is one worker's, whatever it seals.
fn open(reveal: &Reveal) {
    let result = seal::result_sha256(&reveal.outputs);
    let of = |worker| {
        let worker = WorkerId(uuid(worker));
        seal::seal(worker, reveal.attempt_id, &reveal.salt.0, result)
    };
    assert_ne!(of(1), of(2));
}

/// A body as the scheduler reads it; what was read is written and read again as the same.
fn received<T: DeserializeOwned + Serialize + PartialEq + Debug>(input: &[u8]) -> Option<T> {
    let body: T = strict::read(input).ok()?;
    let text = serde_json::to_vec(&body).expect("a request has a JSON form");
    assert!(!contains(&text, b"\\u0000"), "Postgres keeps no NUL");
    let again = strict::read(&text).expect("what was written can be read");
    assert_eq!(body, again);
    Some(body)
}

fn contains(text: &[u8], piece: &[u8]) -> bool {
    text.windows(piece.len()).any(|it| it == piece)
}

/// A body, as a worker reads the reply of every route.
pub fn reply(input: &[u8]) -> bool {
    let work = answered::<WorkReply>(input);
    // What a child is asked to compute was checked by the service, whose word a worker does not take.
    let leases = work.iter().flat_map(|work| &work.leases);
    for lease in leases.filter(|lease| lease.job.validate().is_ok()) {
        assert!(!lease.job.blobs().is_empty(), "a job has a program");
        assert!(!seal::output_of(&lease.job).is_empty());
    }
    let others = [
        answered::<HeartbeatReply>(input).is_some(),
        answered::<JoinReply>(input).is_some(),
        answered::<WorkerTokenReply>(input).is_some(),
        answered::<EventsReply>(input).is_some(),
        answered::<SegmentReply>(input).is_some(),
    ];
    work.is_some() || others.contains(&true)
}

fn answered<T: DeserializeOwned + Serialize + PartialEq + Debug>(input: &[u8]) -> Option<T> {
    let body: T = serde_json::from_slice(input).ok()?;
    let text = serde_json::to_vec(&body).expect("a reply has a JSON form");
    let again: T = serde_json::from_slice(&text).expect("what was written can be read");
    assert_eq!(body, again);
    Some(body)
}

/// Requests that are read.
pub fn requests() -> Vec<Seed> {
    let token = JoinToken::new(digest(), JoinTokenId(uuid(2)), [3; 32]);
    let join = JoinRequest {
        token: token.reveal(),
        public_key: Base64([1; 32]),
        name: "bench".into(),
        facts: WorkerFacts {
            device: Device::Cpu,
            device_name: "a processor".into(),
            memory_bytes: 1 << 33,
            threads: 8,
            numeric_class: "c".into(),
            libtorch: "2.13.0".into(),
            version: "0.1.0".into(),
            price_floor_nano: "7".parse().expect("digits"),
            unsandboxed: true,
        },
        signature: Base64([2; 64]),
    };
    let token = WorkerTokenRequest {
        worker_id: WorkerId(uuid(4)),
        issued_at_ms: 1_800_000_000_000,
        signature: Base64([5; 64]),
    };
    let beat = HeartbeatRequest {
        leases: vec![held()],
    };
    let metrics = EventKind::Metrics {
        epoch: 1,
        step: 10,
        values: BTreeMap::from([("loss".into(), Some(0.25)), ("accuracy".into(), None)]),
    };
    let events = [metrics, EventKind::Progress { done: 1, of: 2 }];
    let events = events.into_iter().zip(1..);
    let events = EventsRequest {
        events: events
            .map(|(event, seq)| AttemptEvent { seq, event })
            .collect(),
    };
    let segment = SegmentRequest {
        segment: 3,
        checkpoint: digest(),
    };
    vec![
        seed("join", &join),
        seed("token", &token),
        seed("heartbeat", &beat),
        seed("events", &events),
        seed("segment", &segment),
        seed("work", &work()),
        seed("idle", &WorkRequest::default()),
    ]
}

fn work() -> WorkRequest {
    let Held {
        attempt_id,
        lease_token,
    } = held();
    WorkRequest {
        wanted: 4,
        wait_ms: 30_000,
        held: vec![held()],
        seals: vec![Seal {
            attempt_id,
            lease_token,
            seal: digest(),
            compute_ms: 99,
        }],
        reveals: vec![Reveal {
            attempt_id,
            lease_token,
            salt: Base64([6; 32]),
            result_sha256: digest(),
            outputs: BTreeMap::from([("weights".into(), digest())]),
        }],
        failures: vec![Failure {
            attempt_id,
            lease_token,
            cause: FailureCause::Worker,
            code: "out_of_memory".into(),
            detail: "told".into(),
        }],
    }
}

/// Replies that are read.
pub fn replies() -> Vec<Seed> {
    let Held { attempt_id, .. } = held();
    let lease = LeaseStatus {
        attempt_id,
        status: LeaseState::Ok,
        expires_at: Some(OffsetDateTime::UNIX_EPOCH),
    };
    let joined = JoinReply {
        worker_id: WorkerId(uuid(4)),
    };
    let token = WorkerTokenReply {
        token: "a.b.c".into(),
        expires_in_s: 3_600,
    };
    let renewed = HeartbeatReply {
        leases: vec![lease],
    };
    let orders = WorkReply {
        leases: vec![leased(training()), leased(inference())],
        acks: vec![Ack {
            attempt_id,
            report: Report::Seal,
            outcome: AckOutcome::Accepted,
        }],
        reveal: vec![RevealOrder {
            attempt_id,
            reveal_by: OffsetDateTime::UNIX_EPOCH,
        }],
        cancel: vec![attempt_id],
    };
    vec![
        seed("work", &orders),
        seed("idle", &WorkReply::default()),
        seed("heartbeat", &renewed),
        seed("joined", &joined),
        seed("token", &token),
        seed("events", &EventsReply { last_seq: 9 }),
        seed("segment", &SegmentReply { segment: 2 }),
    ]
}

fn leased(job: JobSpec) -> Lease {
    let Held {
        attempt_id,
        lease_token,
    } = held();
    Lease {
        attempt_id,
        lease_token,
        expires_at: OffsetDateTime::UNIX_EPOCH,
        deadline_at: OffsetDateTime::UNIX_EPOCH,
        blobs: vec![BlobSize {
            sha256: digest(),
            bytes: 100,
        }],
        resume: Some(Checkpoint {
            segment: 0,
            step: 10,
            sha256: digest(),
            bytes: 50,
        }),
        until_step: Some(20),
        limits: Limits {
            memory_bytes: 1 << 30,
            blob_bytes_max: 1 << 20,
        },
        job,
    }
}

fn tensor() -> TensorRef {
    TensorRef {
        blob: digest(),
        dataset_version: None,
        tensor: "x".into(),
    }
}

fn inference() -> JobSpec {
    JobSpec::Inference(InferenceSpec {
        program: digest(),
        weights: Some(digest()),
        inputs: BTreeMap::from([("x".into(), tensor())]),
        batch_size: 8,
    })
}

fn training() -> JobSpec {
    JobSpec::Training(TrainingSpec {
        program: digest(),
        weights: None,
        inputs: BTreeMap::from([("x".into(), tensor())]),
        target: tensor(),
        output: 0,
        loss: Loss::CrossEntropy,
        optimizer: Optimizer::Sgd {
            learning_rate: 0.1,
            momentum: 0.9,
            weight_decay: 0.0,
            nesterov: true,
        },
        schedule: Schedule::Constant,
        epochs: 2,
        batch_size: 8,
        seed: 1,
        segment_steps: 4,
    })
}

fn held() -> Held {
    Held {
        attempt_id: AttemptId(uuid(7)),
        lease_token: LeaseToken(uuid(8)),
    }
}

const fn uuid(byte: u8) -> Uuid {
    Uuid::from_bytes([byte; 16])
}

fn digest() -> Sha256 {
    Sha256::of(b"a blob")
}

fn seed(name: &str, body: &impl Serialize) -> Seed {
    let text = serde_json::to_vec(body).expect("a body has a JSON form");
    Seed::new(name, text)
}
