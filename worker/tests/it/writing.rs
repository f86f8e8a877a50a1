//! Texts that are written: token by token, several by turns, none seeing anything of another.

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use comptoir_domain::{program::graph::ScalarType, sampling::Sampling};
use comptoir_wire::calls::{self, Answer, Ask, Call, FaultCause, Tensor, Write};
use comptoir_worker::engine::{
    Host, HostTask,
    host::{FromHost, Happened, ToHost, WritingTask},
};
use serde::Deserialize;
use serde_bytes::ByteBuf;
use tempfile::TempDir;
use tokio::time::timeout;
use uuid::Uuid;

use crate::harness::{LIMITS, launcher};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_mins(1);
const WITHIN_MS: u32 = 60_000;
const GREEDY: Sampling = Sampling {
    temperature: 0.0,
    top_p: 1.0,
    seed: 0,
};

fn file(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples/gpt");
    fs::read(folder.join(name)).unwrap()
}

/// What `export.py` wrote of the small model.
#[derive(Deserialize)]
struct Vectors {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    ids: Vec<u32>,
    written: Vec<u32>,
}

/// What it wrote of the transformers library's own export.
#[derive(Deserialize)]
struct Exported {
    prompt: Vec<u32>,
    written: Vec<u32>,
    context: u32,
    vocabulary: u32,
}

fn cases() -> Vec<Case> {
    let vectors: Vectors = serde_json::from_slice(&file("vectors/vectors.json")).unwrap();
    vectors.cases
}

fn logits() -> String {
    let manifest: serde_json::Value = serde_json::from_slice(&file("manifest.json")).unwrap();
    manifest["generation"]["logits"]
        .as_str()
        .unwrap()
        .to_owned()
}

/// A child that writes texts, and what came of each.
struct Writing {
    host: Host,
    said: BTreeMap<u128, Said>,
    _scratch: TempDir,
}

/// What came of a call.
#[derive(Debug, Default)]
struct Said {
    tokens: Vec<u32>,
    parts: usize,
    last: Option<Answer>,
}

impl Writing {
    /// The small model, so many texts at a time.
    async fn of_gpt(texts_max: u32) -> Self {
        let writing = |program| WritingTask {
            program,
            ids: "input_ids".to_owned(),
            positions: "cache_position".to_owned(),
            logits: logits(),
            context: 128,
            texts_max,
        };
        let files = [
            ("program", "gpt.pt2"),
            ("weights", "weights.safetensors"),
            ("writing", "generate.pt2"),
        ];
        Self::start(&files, writing).await
    }

    async fn start(files: &[(&str, &str)], writing: impl FnOnce(PathBuf) -> WritingTask) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        for (name, from) in files {
            fs::write(scratch.path().join(name), file(from)).unwrap();
        }
        let has_weights = files.iter().any(|(name, _)| *name == "weights");
        let task = HostTask {
            program: "program".into(),
            weights: has_weights.then(|| "weights".into()),
            writing: Some(writing("writing".into())),
            batch_max: 4,
        };
        let device = comptoir_domain::job::Device::Cpu;
        let host = launcher().host(LIMITS, (device, 1), task, scratch.path());
        let mut this = Self {
            host: host.unwrap(),
            said: BTreeMap::new(),
            _scratch: scratch,
        };
        assert_eq!(this.frames().await, [FromHost::Loaded]);
        this
    }

    async fn frames(&mut self) -> Vec<FromHost> {
        loop {
            match timeout(PATIENCE, self.host.next()).await.unwrap().unwrap() {
                Happened::Said(frames) if frames.is_empty() => {}
                Happened::Said(frames) => return frames,
                Happened::Ended(failure) => panic!("it ended: {failure}"),
            }
        }
    }

    async fn send(&self, frames: &[ToHost]) {
        self.host.room().await.unwrap().send(frames);
    }

    async fn ask(&self, asks: impl IntoIterator<Item = (u128, Ask)>) {
        let frames: Vec<ToHost> = asks.into_iter().map(|(id, ask)| frame(id, ask)).collect();
        self.send(&frames).await;
    }

    /// Hears what comes next.
    async fn hear(&mut self) {
        for frame in self.frames().await {
            let FromHost::Answer {
                id,
                is_last,
                answer,
            } = frame
            else {
                panic!("no answer: {frame:?}")
            };
            let said = self.said.entry(id.as_u128()).or_default();
            assert!(said.last.is_none(), "nothing comes behind the last");
            let answer = calls::answer(&answer).unwrap();
            if let Answer::Written(written) = &answer {
                said.tokens.extend(&written.tokens);
            }
            said.parts += 1;
            if is_last {
                said.last = Some(answer);
            }
        }
    }

    /// Waits until a call is over.
    async fn over(&mut self, id: u128) -> &Said {
        while self.said.get(&id).is_none_or(|it| it.last.is_none()) {
            self.hear().await;
        }
        &self.said[&id]
    }

    async fn fault(&mut self, id: u128) -> FaultCause {
        match &self.over(id).await.last {
            Some(Answer::Fault(fault)) => fault.cause,
            other => panic!("no fault: {other:?}"),
        }
    }
}

fn frame(id: u128, ask: Ask) -> ToHost {
    let call = Call {
        id: Uuid::from_u128(id),
        version: Uuid::nil(),
        within_ms: WITHIN_MS,
        ask,
    };
    ToHost::Call {
        id: call.id,
        within_ms: WITHIN_MS,
        was_cold: false,
        call: ByteBuf::from(calls::encode(&call)),
    }
}

fn write(tokens: &[u32], tokens_max: usize, sampling: Sampling) -> Write {
    Write {
        tokens: tokens.to_vec(),
        written: 0,
        tokens_max: u32::try_from(tokens_max).unwrap(),
        vocabulary_end: 512,
        ends: Vec::new(),
        sampling,
    }
}

#[tokio::test]
async fn what_the_transformers_library_exports_writes_what_the_library_writes() {
    let exported: Exported = serde_json::from_slice(&file("vectors/static_cache.json")).unwrap();
    let archive = "vectors/static_cache.pt2";
    let bytes = std::io::Cursor::new(file(archive));
    let program = comptoir_domain::program::Archive::open(bytes).unwrap();
    let (logits, _) = program.program().user_outputs().next().unwrap();
    let logits = logits.to_owned();
    let task = |program| WritingTask {
        program,
        ids: "input_ids".to_owned(),
        positions: "cache_position".to_owned(),
        logits,
        context: exported.context,
        texts_max: 1,
    };
    let mut writing = Writing::start(&[("program", archive), ("writing", archive)], task).await;
    let ask = Write {
        vocabulary_end: exported.vocabulary,
        ..write(&exported.prompt, exported.written.len(), GREEDY)
    };
    writing.ask([(1, Ask::Write(ask))]).await;
    assert_eq!(writing.over(1).await.tokens, exported.written);
}

#[tokio::test]
async fn texts_that_are_written_by_turns_are_what_pytorch_writes_of_each_alone() {
    let mut writing = Writing::of_gpt(2).await;
    let cases = cases();
    let asks = (0..).zip(&cases);
    let asks = asks.map(|(id, it)| (id, Ask::Write(write(&it.ids, it.written.len(), GREEDY))));
    writing.ask(asks).await;
    for (id, case) in (0..).zip(&cases) {
        let said = writing.over(id).await;
        assert_eq!(said.tokens, case.written, "text {id}");
        assert_eq!(said.parts, case.written.len(), "each token as it comes");
    }
}

#[tokio::test]
async fn another_worker_goes_on_where_one_ended_as_that_would_have() {
    let mut writing = Writing::of_gpt(4).await;
    let prompt = &cases()[0].ids;
    let drawn = Sampling {
        temperature: 1.0,
        top_p: 0.9,
        seed: 42,
    };
    let whole = write(prompt, 20, drawn);
    let other = Sampling { seed: 43, ..drawn };
    writing
        .ask([
            (1, Ask::Write(whole.clone())),
            (2, Ask::Write(write(prompt, 20, other))),
        ])
        .await;
    let tokens = writing.over(1).await.tokens.clone();
    assert_ne!(tokens, writing.over(2).await.tokens, "another seed");
    let rest = Write {
        tokens: [prompt, &tokens[..8]].concat(),
        written: 8,
        tokens_max: 12,
        ..whole
    };
    writing.ask([(3, Ask::Write(rest))]).await;
    assert_eq!(writing.over(3).await.tokens, tokens[8..]);
}

#[tokio::test]
async fn a_text_ends_with_a_token_that_ends_it() {
    let mut writing = Writing::of_gpt(1).await;
    let Case { ids, written } = &cases()[0];
    let end = written[3];
    let first = written.iter().position(|it| *it == end).unwrap();
    let ask = Write {
        ends: vec![end],
        ..write(ids, 20, GREEDY)
    };
    writing.ask([(1, Ask::Write(ask))]).await;
    assert_eq!(writing.over(1).await.tokens, written[..=first]);
}

#[tokio::test]
async fn tokens_that_the_tokenizer_does_not_have_are_not_drawn() {
    let mut writing = Writing::of_gpt(1).await;
    let Case { ids, written } = &cases()[0];
    let ask = Write {
        vocabulary_end: *written.iter().max().unwrap(),
        ..write(ids, 20, GREEDY)
    };
    let end = ask.vocabulary_end;
    writing.ask([(1, Ask::Write(ask))]).await;
    assert!(writing.over(1).await.tokens.iter().all(|it| *it < end));
}

#[tokio::test]
async fn a_text_that_nobody_waits_for_ends_and_makes_room() {
    let mut writing = Writing::of_gpt(1).await;
    let Case { ids, written } = &cases()[0];
    writing
        .ask([
            (1, Ask::Write(write(ids, 128 - ids.len(), GREEDY))),
            (2, Ask::Write(write(ids, 3, GREEDY))),
        ])
        .await;
    while !writing.said.contains_key(&1) {
        writing.hear().await;
    }
    writing.send(&[ToHost::Cancel(Uuid::from_u128(1))]).await;
    assert_eq!(writing.fault(1).await, FaultCause::Late);
    assert!(writing.said[&1].tokens.len() < 128 - ids.len());
    assert_eq!(
        writing.over(2).await.tokens,
        written[..3],
        "nothing is left of the other"
    );
}

#[tokio::test]
async fn a_text_that_does_not_fit_fails_alone() {
    let mut writing = Writing::of_gpt(4).await;
    let Case { ids, written } = &cases()[1];
    let long = write(ids, 129 - ids.len(), GREEDY);
    let hot = Sampling {
        temperature: 3.0,
        ..GREEDY
    };
    let foreign = write(&[512], 3, GREEDY);
    writing
        .ask([
            (1, Ask::Write(long)),
            (2, Ask::Write(write(ids, 3, hot))),
            (3, Ask::Write(foreign)),
            (4, Ask::Write(write(ids, 3, GREEDY))),
        ])
        .await;
    for id in 1..=3 {
        assert_eq!(writing.fault(id).await, FaultCause::Caller, "call {id}");
    }
    assert_eq!(writing.over(4).await.tokens, written[..3]);
}

#[tokio::test]
async fn other_calls_are_answered_while_a_text_is_written() {
    let mut writing = Writing::of_gpt(1).await;
    let ids = &cases()[0].ids;
    let rows = Tensor {
        dtype: ScalarType::I64,
        shape: vec![1, 128],
        bytes: vec![0; 128 * 8],
    };
    writing
        .ask([(1, Ask::Write(write(ids, 128 - ids.len(), GREEDY)))])
        .await;
    while !writing.said.contains_key(&1) {
        writing.hear().await;
    }
    writing.ask([(2, Ask::Infer(vec![rows]))]).await;
    let outputs = &writing.over(2).await.last;
    assert!(matches!(outputs, Some(Answer::Outputs(_))), "{outputs:?}");
    assert!(writing.said[&1].last.is_none(), "the text is not over");
    assert_eq!(writing.over(1).await.tokens.len(), 128 - ids.len());
}
