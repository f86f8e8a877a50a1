//! Models that are called: a child that stays, many calls in one run, and none that another can harm.

use std::{fs, time::Duration};

use comptoir_domain::{
    job::{Device, InferenceSpec, JobSpec},
    program::graph::ScalarType,
    tensors::Tensors,
};
use comptoir_wire::calls::{self, Answer, Ask, Call, Fault, FaultCause, Outputs, Tensor};
use comptoir_worker::{
    engine::{
        Code, Failure, Host, HostTask, Launcher,
        host::{FromHost, Happened, ToHost, fitting},
    },
    sandbox::{Features, Sandbox},
};
use serde_bytes::ByteBuf;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::timeout;
use uuid::Uuid;

use crate::{
    children::script,
    harness::{Bench, LIMITS, cases, example, inference, launcher, with_graph},
};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);
/// Nobody waits longer for a call.
const WITHIN_MS: u32 = 60_000;

/// A child that hosts.
struct Hosted {
    host: Host,
    _scratch: TempDir,
}

impl Hosted {
    fn start(launcher: &Launcher, program: &[u8], weights: Option<&[u8]>, batch_max: u32) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        fs::write(scratch.path().join("program"), program).unwrap();
        if let Some(weights) = weights {
            fs::write(scratch.path().join("weights"), weights).unwrap();
        }
        let task = HostTask {
            program: "program".into(),
            weights: weights.map(|_| "weights".into()),
            writing: None,
            batch_max,
        };
        let host = launcher
            .host(LIMITS, (Device::Cpu, 1), task, scratch.path())
            .unwrap();
        Self {
            host,
            _scratch: scratch,
        }
    }

    /// A child that has loaded a program.
    async fn of(program: &[u8], batch_max: u32) -> Self {
        let mut hosted = Self::start(&launcher(), program, None, batch_max);
        assert_eq!(hosted.said().await.unwrap(), [FromHost::Loaded]);
        hosted
    }

    /// What it says next; why it ended.
    async fn said(&mut self) -> Result<Vec<FromHost>, Failure> {
        match timeout(PATIENCE, self.host.next()).await.unwrap().unwrap() {
            Happened::Said(frames) => Ok(frames),
            Happened::Ended(failure) => Err(failure),
        }
    }

    /// Why it ends.
    async fn end(mut self) -> Failure {
        loop {
            if let Err(failure) = self.said().await {
                return failure;
            }
        }
    }

    async fn send(&self, frames: &[ToHost]) {
        assert_eq!(fitting(frames), frames.len());
        self.host.room().await.unwrap().send(frames);
    }

    /// Answers to calls that come together, in the order of the calls.
    async fn answers(&mut self, calls: Vec<Vec<Tensor>>) -> Result<Vec<Answer>, Failure> {
        let frames: Vec<ToHost> = (0..).zip(calls).map(|(id, it)| call(id, it)).collect();
        self.send(&frames).await;
        self.replies(frames.len()).await
    }

    async fn replies(&mut self, count: usize) -> Result<Vec<Answer>, Failure> {
        let mut answers = Vec::new();
        while answers.len() < count {
            for frame in self.said().await? {
                let FromHost::Answer { id, answer, .. } = frame else {
                    panic!("no answer: {frame:?}")
                };
                answers.push((id, calls::answer(&answer).unwrap()));
            }
        }
        answers.sort_by_key(|(id, _)| *id);
        assert_eq!(answers.len(), count, "each call has one answer");
        Ok(answers.into_iter().map(|(_, answer)| answer).collect())
    }

    async fn outputs(&mut self, calls: Vec<Vec<Tensor>>) -> Vec<Outputs> {
        let answers = self.answers(calls).await.unwrap().into_iter();
        answers.map(outputs).collect()
    }
}

fn call(id: u128, inputs: Vec<Tensor>) -> ToHost {
    within(WITHIN_MS, id, inputs)
}

fn within(within_ms: u32, id: u128, inputs: Vec<Tensor>) -> ToHost {
    let call = Call {
        id: Uuid::from_u128(id),
        version: Uuid::nil(),
        within_ms,
        ask: Ask::Infer(inputs),
    };
    ToHost::Call {
        id: call.id,
        within_ms,
        was_cold: false,
        call: ByteBuf::from(calls::encode(&call)),
    }
}

fn outputs(answer: Answer) -> Outputs {
    match answer {
        Answer::Outputs(outputs) => outputs,
        other => panic!("{other:?}"),
    }
}

fn fault(answer: Answer) -> Fault {
    match answer {
        Answer::Fault(fault) => fault,
        other => panic!("{other:?}"),
    }
}

/// Some rows of the images, or of the tokens.
fn rows(file: &str, name: &str, start: u64, count: u64) -> Tensor {
    let bytes = example(file);
    let tensors = Tensors::read(&bytes).unwrap();
    let view = tensors.tensor(name).unwrap();
    let row = view.data.len() / usize::try_from(view.shape[0]).unwrap();
    let at = |rows: u64| usize::try_from(rows).unwrap() * row;
    let mut shape = view.shape.to_vec();
    shape[0] = count;
    Tensor {
        dtype: view.dtype,
        shape,
        bytes: view.data[at(start)..at(start + count)].to_vec(),
    }
}

fn images(start: u64, count: u64) -> Vec<Tensor> {
    vec![rows("test.safetensors", "images", start, count)]
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let each = bytes.chunks_exact(4);
    each.map(|it| f32::from_le_bytes(it.try_into().unwrap()))
        .collect()
}

fn assert_close(ours: &Outputs, theirs: &Outputs) {
    assert_eq!(ours.tensors.len(), theirs.tensors.len());
    for (a, b) in ours.tensors.iter().zip(&theirs.tensors) {
        assert_eq!((a.dtype, &a.shape), (b.dtype, &b.shape));
        let (a, b) = (floats(&a.bytes), floats(&b.bytes));
        let scale = b.iter().fold(0_f32, |most, it| most.max(it.abs()));
        let most = a.iter().zip(&b).map(|(a, b)| (a - b).abs());
        assert!(most.fold(0_f32, f32::max) <= 1e-6 * scale);
    }
}

/// The small net with its graph changed.
fn changed(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    with_graph(&example("mlp.pt2"), |graph| {
        let mut document: Value = serde_json::from_str(&graph).unwrap();
        change(&mut document);
        document.to_string()
    })
}

#[tokio::test]
async fn calls_that_come_together_get_what_each_gets_alone() {
    let mut hosted = Hosted::of(&example("mlp.pt2"), 256).await;
    let calls: Vec<_> = (0..40).map(|at| images(at * 3, 1 + at % 3)).collect();
    let together = hosted.outputs(calls.clone()).await;
    for (call, theirs) in calls.into_iter().zip(together) {
        let rows = call[0].shape[0];
        assert_eq!(theirs.batch_rows, 79, "they ran in one batch");
        assert_eq!(theirs.tensors[0].shape, [rows, 10]);
        let [alone] = hosted.outputs(vec![call]).await.try_into().unwrap();
        assert_eq!(u64::from(alone.batch_rows), rows);
        assert_close(&alone, &theirs);
    }
}

#[tokio::test]
async fn a_call_that_runs_alone_gets_the_bits_that_a_job_gets() {
    let case = cases("inference");
    let case = case.iter().find(|it| it["name"] == "mlp_inference");
    let case = case.unwrap();
    let mut bench = Bench::new();
    let spec = InferenceSpec {
        batch_size: 1,
        ..inference(&mut bench, case)
    };
    let events = bench.run(JobSpec::Inference(spec)).await;
    let bytes = Bench::output(&events);
    let expected = Tensors::read(&bytes).unwrap();
    let expected = expected.tensor("output_0").unwrap();
    let program = example(case["program"].as_str().unwrap());
    let weights = case["weights"].as_str().map(example);
    let mut hosted = Hosted::start(&launcher(), &program, weights.as_deref(), 8);
    assert_eq!(hosted.said().await.unwrap(), [FromHost::Loaded]);
    let input = case["inputs"]["x"].as_str().unwrap();
    for (row, expected) in (0..9).zip(expected.data.chunks(40)) {
        let call = vec![rows(case["data"].as_str().unwrap(), input, row, 1)];
        let [ours] = hosted.outputs(vec![call]).await.try_into().unwrap();
        assert_eq!(ours.tensors[0].bytes, expected, "row {row}");
    }
}

#[tokio::test]
async fn a_call_that_is_wrong_fails_alone() {
    let mut hosted = Hosted::of(&example("mlp.pt2"), 256).await;
    let [good] = images(0, 2).try_into().unwrap();
    let of = |dtype, shape: &[u64]| {
        let mut tensor = Tensor {
            dtype,
            shape: shape.to_vec(),
            bytes: Vec::new(),
        };
        tensor.bytes = vec![0; usize::try_from(tensor.expected_bytes().unwrap()).unwrap()];
        tensor
    };
    let wrong = [
        (vec![], "the program has 1"),
        (vec![good.clone(), good.clone()], "the program has 1"),
        (vec![of(ScalarType::F64, &[1, 1, 8, 8])], "is F64"),
        (vec![of(ScalarType::F32, &[1, 1, 8, 9])], "has the shape"),
        (vec![of(ScalarType::F32, &[64])], "has the shape"),
        (vec![of(ScalarType::F32, &[])], "has the shape"),
        (vec![of(ScalarType::F32, &[0, 1, 8, 8])], "no row"),
        (
            vec![Tensor {
                shape: vec![3, 1, 8, 8],
                ..good.clone()
            }],
            "has not the bytes",
        ),
    ];
    let mut together: Vec<_> = wrong.iter().map(|(inputs, _)| inputs.clone()).collect();
    together.insert(3, vec![good.clone()]);
    together.push(vec![good]);
    let mut answers = hosted.answers(together).await.unwrap();
    let last = outputs(answers.pop().unwrap());
    let third = outputs(answers.remove(3));
    assert_eq!(last.batch_rows, 4, "the two good ones ran together");
    assert_eq!(last.tensors, third.tensors);
    for (answer, (_, reason)) in answers.into_iter().zip(wrong) {
        let fault = fault(answer);
        assert_eq!(fault.cause, FaultCause::Caller);
        assert!(fault.detail.contains(reason), "{}", fault.detail);
    }
}

#[tokio::test]
async fn a_call_that_an_operator_refuses_fails_alone() {
    let mut hosted = Hosted::of(&example("encoder.pt2"), 256).await;
    let good = |start| vec![rows("tokens.safetensors", "tokens", start, 2)];
    let mut unknown = good(0);
    let far = 1_000_000_i64.to_le_bytes();
    unknown[0].bytes[..8].copy_from_slice(&far);
    let calls = vec![good(0), unknown, good(2)];
    let [first, guilty, last] = hosted.answers(calls).await.unwrap().try_into().unwrap();
    let guilty = fault(guilty);
    assert_eq!(guilty.cause, FaultCause::Caller);
    assert!(guilty.detail.contains("index"), "{}", guilty.detail);
    for (ours, start) in [(first, 0), (last, 2)] {
        let [alone] = hosted.outputs(vec![good(start)]).await.try_into().unwrap();
        assert_eq!(outputs(ours).tensors, alone.tensors);
    }
}

#[tokio::test]
async fn what_is_not_finite_is_computed_as_it_is() {
    let mut hosted = Hosted::of(&example("mlp.pt2"), 256).await;
    let mut broken = images(0, 1);
    broken[0].bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let calls = vec![broken, images(1, 1)];
    let [nan, good] = hosted.outputs(calls).await.try_into().unwrap();
    assert!(floats(&nan.tensors[0].bytes).iter().all(|it| it.is_nan()));
    assert!(
        floats(&good.tensors[0].bytes)
            .iter()
            .all(|it| it.is_finite())
    );
}

#[tokio::test]
async fn batches_are_as_large_as_the_program_and_the_order_allow() {
    let program = changed(|document| {
        document["range_constraints"]["s77"] = json!({ "min_val": 4, "max_val": 6 });
    });
    let mut few = Hosted::of(&program, 100).await;
    let mut many = Hosted::of(&example("mlp.pt2"), 100).await;
    for (count, batch_rows) in [(1, 4), (4, 4), (6, 6), (7, 6), (27, 6)] {
        let [ours] = few
            .outputs(vec![images(0, count)])
            .await
            .try_into()
            .unwrap();
        assert_eq!(ours.batch_rows, batch_rows, "{count} rows");
        let [theirs] = many
            .outputs(vec![images(0, count)])
            .await
            .try_into()
            .unwrap();
        assert_close(&ours, &theirs);
    }
    let mut small = Hosted::of(&example("mlp.pt2"), 5).await;
    let calls = vec![images(0, 3), images(0, 2), images(0, 1), images(0, 12)];
    let found = small.outputs(calls).await.into_iter();
    let found: Vec<u32> = found.map(|it| it.batch_rows).collect();
    assert_eq!(found, [5, 5, 1, 5]);
}

/// The net with this parameter a buffer, if so, and one operator on it before all others.
fn with_first_node(is_buffer: bool, nodes: &[Value], values: &[&str]) -> Vec<u8> {
    changed(|document| {
        let module = &mut document["graph_module"];
        let spec = json!({ "buffer": { "arg": { "name": "p_head_bias" }, "buffer_name": "head.bias", "persistent": true } });
        if is_buffer {
            module["signature"]["input_specs"][5] = spec;
        }
        let graph = &mut module["graph"];
        for value in values {
            graph["tensor_values"][*value] = graph["tensor_values"]["p_head_bias"].clone();
        }
        let all = graph["nodes"].as_array_mut().unwrap();
        let mut node = all[0].clone();
        for (at, change) in nodes.iter().enumerate() {
            for field in ["target", "inputs", "outputs", "name"] {
                node[field] = change[field].clone();
            }
            all.insert(at, node.clone());
        }
    })
}

fn add_to(value: &str) -> Value {
    json!({
        "target": "torch.ops.aten.add_.Scalar",
        "inputs": [
            { "name": "self", "arg": { "as_tensor": { "name": value } }, "kind": 1 },
            { "name": "other", "arg": { "as_float": 1.0 }, "kind": 1 },
        ],
        "outputs": [{ "as_tensor": { "name": "added" } }],
        "name": "added",
    })
}

#[tokio::test]
async fn a_call_sees_nothing_of_what_another_left_in_a_buffer() {
    let counting = with_first_node(true, &[add_to("p_head_bias")], &["added"]);
    let mut hosted = Hosted::of(&counting, 256).await;
    let [first] = hosted.outputs(vec![images(0, 1)]).await.try_into().unwrap();
    for _ in 0..3 {
        let [later] = hosted.outputs(vec![images(0, 1)]).await.try_into().unwrap();
        assert_eq!(first.tensors, later.tensors);
    }
    let mut plain = Hosted::of(&example("mlp.pt2"), 256).await;
    let [without] = plain.outputs(vec![images(0, 1)]).await.try_into().unwrap();
    assert_ne!(first.tensors, without.tensors, "it does add");
}

#[tokio::test]
async fn a_program_that_changes_its_weights_answers_nothing() {
    let detached = json!({
        "target": "torch.ops.aten.flatten.using_ints",
        "inputs": [
            { "name": "self", "arg": { "as_tensor": { "name": "p_head_bias" } }, "kind": 1 },
            { "name": "start_dim", "arg": { "as_int": 0 }, "kind": 1 },
        ],
        "outputs": [{ "as_tensor": { "name": "seen" } }],
        "name": "seen",
    });
    let program = with_first_node(false, &[detached, add_to("seen")], &["seen", "added"]);
    let mut hosted = Hosted::of(&program, 256).await;
    let failure = hosted.answers(vec![images(0, 1)]).await.unwrap_err();
    assert_eq!(failure.code, Code::InvalidProgram, "{failure}");
    assert!(failure.detail.contains("head.bias"), "{failure}");
}

#[tokio::test]
async fn a_call_that_nobody_waits_for_is_answered_and_not_computed() {
    let mut hosted = Hosted::of(&example("mlp.pt2"), 256).await;
    let frames = [
        within(0, 0, images(0, 1)),
        call(1, images(0, 1)),
        call(2, images(0, 1)),
        ToHost::Cancel(Uuid::from_u128(1)),
        ToHost::Cancel(Uuid::from_u128(9)),
    ];
    hosted.send(&frames).await;
    let [late, cancelled, good] = hosted.replies(3).await.unwrap().try_into().unwrap();
    assert_eq!(fault(late).cause, FaultCause::Late);
    assert_eq!(fault(cancelled).cause, FaultCause::Late);
    assert_eq!(outputs(good).batch_rows, 1);
}

#[tokio::test]
async fn what_does_not_load_says_why() {
    let mlp = example("mlp.pt2");
    let code = |program: &[u8], weights: Option<&[u8]>| {
        let hosted = Hosted::start(&launcher(), program, weights, 8);
        async { hosted.end().await.code }
    };
    assert_eq!(code(b"x", None).await, Code::InvalidProgram);
    assert_eq!(code(&mlp, Some(b"x")).await, Code::InvalidWeights);
    let images = example("test.safetensors");
    assert_eq!(code(&mlp, Some(&images)).await, Code::InvalidWeights);
}

#[tokio::test]
async fn without_walls_nothing_is_hosted() {
    let launcher = launcher().behind(Sandbox {
        features: Features {
            landlock: None,
            ..launcher().sandbox().features
        },
        allow_unsandboxed: false,
    });
    let scratch = tempfile::tempdir().unwrap();
    let task = HostTask {
        program: "program".into(),
        weights: None,
        writing: None,
        batch_max: 1,
    };
    let refused = launcher.host(LIMITS, (Device::Cpu, 1), task, scratch.path());
    let refusal = refused.unwrap_err().to_string();
    assert!(refusal.contains("--allow-unsandboxed"), "{refusal}");
}

#[tokio::test]
async fn a_host_that_talks_nonsense_or_dies_is_ended() {
    for (body, code) in [
        ("printf '\\000\\000\\000\\002{}'; sleep 60", Code::Protocol),
        ("printf '\\377\\377\\377\\377'; sleep 60", Code::Protocol),
        ("kill -SEGV $$", Code::Crashed),
    ] {
        let (_folder, launcher) = script(body);
        let hosted = Hosted::start(&launcher, b"", None, 1);
        assert_eq!(hosted.end().await.code, code, "{body}");
    }
    let (_folder, launcher) = script("echo $$ >/proc/self/comm; exec sleep 600");
    let hosted = Hosted::start(&launcher, b"", None, 1);
    timeout(PATIENCE, hosted.host.end()).await.unwrap();
}
