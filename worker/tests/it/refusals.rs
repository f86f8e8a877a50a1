//! What is refused, and who answers for it.

use std::io;

use comptoir_domain::{
    job::{Cause, Device, InferenceSpec, JobSpec, Loss, Optimizer},
    tensors::{self, TensorView, Tensors},
};
use comptoir_worker::{
    engine::{Code, Description, Event, Failure, Task},
    sandbox::{Features, Sandbox},
};

use crate::harness::{
    Bench, LIMITS, cases, collect, column, convnet, example, inference, launcher, training,
    with_graph,
};

async fn failure(bench: &Bench, spec: JobSpec) -> Failure {
    match bench.run(spec).await.pop() {
        Some(Event::Failed(failure)) => failure,
        other => panic!("not refused: {other:?}"),
    }
}

fn mlp(bench: &mut Bench) -> InferenceSpec {
    let case = cases("inference")
        .into_iter()
        .find(|case| case["name"] == "mlp_inference")
        .unwrap();
    inference(bench, &case)
}

async fn refuse_program(program: &[u8]) -> Failure {
    let mut bench = Bench::new();
    let spec = InferenceSpec {
        program: bench.blob(program),
        ..mlp(&mut bench)
    };
    let failure = failure(&bench, JobSpec::Inference(spec)).await;
    assert_eq!(
        (failure.code, failure.cause()),
        (Code::InvalidProgram, Cause::Client),
        "{failure}"
    );
    failure
}

/// Starts a job on a machine that lacks these walls; whether a child was started.
async fn start_without(landlock: bool, seccomp: bool, allow_unsandboxed: bool) -> io::Result<()> {
    let mut bench = Bench::new();
    let spec = mlp(&mut bench);
    let found = launcher().sandbox().features;
    let features = Features {
        landlock: found.landlock.filter(|_| !landlock),
        seccomp: found.seccomp && !seccomp,
    };
    let launcher = launcher().behind(Sandbox {
        features,
        allow_unsandboxed,
    });
    let description = Description {
        task: Task::Job(Box::new(bench.task(JobSpec::Inference(spec)))),
        device: Device::Cpu,
        threads: 1,
    };
    let job = launcher.spawn(LIMITS, description, bench.scratch.path())?;
    let last = collect(job).await.pop();
    assert!(matches!(last, Some(Event::Done { .. })), "{last:?}");
    Ok(())
}

#[tokio::test]
async fn no_job_starts_where_a_wall_is_missing() {
    for (landlock, seccomp) in [(true, false), (false, true), (true, true)] {
        let refused = start_without(landlock, seccomp, false).await;
        let refusal = refused.unwrap_err().to_string();
        assert!(refusal.contains("--allow-unsandboxed"), "{refusal}");
    }
    // Whoever said that it may be has said so.
    start_without(true, true, true).await.unwrap();
}

#[tokio::test]
async fn an_operator_off_the_list_does_not_run() {
    let program = with_graph(&example("mlp.pt2"), |graph| {
        graph.replace(
            "torch.ops.aten.relu.default",
            "torch.ops.aten.from_file.default",
        )
    });
    let failure = refuse_program(&program).await;
    assert!(failure.detail.contains("from_file"), "{failure}");
}

#[tokio::test]
async fn a_file_that_is_no_archive_is_refused_by_its_content() {
    refuse_program(b"\x80\x02}q\x00.").await;
    refuse_program(&example("test.safetensors")).await;
}

#[tokio::test]
async fn a_program_that_records_smaller_shapes_than_it_makes_does_not_run() {
    // 96 hidden values recorded as 1 would be priced as 1.
    let program = with_graph(&example("mlp.pt2"), |graph| {
        let mut document: serde_json::Value = serde_json::from_str(&graph).unwrap();
        let values = document["graph_module"]["graph"]["tensor_values"]
            .as_object_mut()
            .unwrap();
        values["linear"]["sizes"][1] = serde_json::json!({ "as_int": 1 });
        document.to_string()
    });
    let failure = refuse_program(&program).await;
    assert!(failure.detail.contains("`linear`"), "{failure}");
}

#[tokio::test]
async fn weights_must_be_those_of_the_program() {
    let mut bench = Bench::new();
    let spec = mlp(&mut bench);
    let right = example("vectors/mlp_sgd.safetensors");
    let right = Tensors::read(&right).unwrap();
    let views: Vec<TensorView<'_>> = right.iter().collect();
    let one_missing = tensors::to_bytes(views[1..].iter().copied()).unwrap();
    let renamed = TensorView {
        name: "stranger",
        ..views[0]
    };
    let one_more = tensors::to_bytes(views.iter().copied().chain([renamed])).unwrap();
    let longer: Vec<u64> = [&[1], views[0].shape].concat();
    let reshaped = TensorView {
        shape: &longer,
        ..views[0]
    };
    let one_other = tensors::to_bytes(views[1..].iter().copied().chain([reshaped])).unwrap();
    for weights in [one_missing, one_more, one_other] {
        let weights = Some(bench.blob(&weights));
        let failure = failure(
            &bench,
            JobSpec::Inference(InferenceSpec {
                weights,
                ..spec.clone()
            }),
        )
        .await;
        assert_eq!(
            (failure.code, failure.cause()),
            (Code::InvalidWeights, Cause::Client),
            "{failure}"
        );
    }
}

#[tokio::test]
async fn tied_weights_are_one_weight_under_each_of_its_names() {
    let case = cases("inference")
        .into_iter()
        .find(|case| case["name"] == "encoder_inference")
        .unwrap();
    let mut bench = Bench::new();
    let spec = inference(&mut bench, &case);
    let state = example("vectors/encoder_adamw.safetensors");
    let state = Tensors::read(&state).unwrap();
    let tied = ["embedding.weight", "head.weight"];
    let with = |names: &[&str], change: bool| {
        let kept = state
            .iter()
            .filter(|view| !tied.contains(&view.name) || names.contains(&view.name));
        let zeros = vec![0; state.tensor(tied[1]).unwrap().data.len()];
        let changed = kept.map(|view| {
            let data = if change && view.name == tied[1] {
                &zeros
            } else {
                view.data
            };
            TensorView { data, ..view }
        });
        tensors::to_bytes(changed).unwrap()
    };
    let mut outputs = Vec::new();
    for names in [&tied[..], &tied[..1], &tied[1..]] {
        let weights = Some(bench.blob(&with(names, false)));
        let spec = InferenceSpec {
            weights,
            ..spec.clone()
        };
        outputs.push(Bench::output(&bench.run(JobSpec::Inference(spec)).await));
    }
    assert!(outputs[0] == outputs[1] && outputs[1] == outputs[2]);
    let weights = Some(bench.blob(&with(&tied, true)));
    let failure = failure(
        &bench,
        JobSpec::Inference(InferenceSpec { weights, ..spec }),
    )
    .await;
    assert_eq!(failure.code, Code::InvalidWeights, "{failure}");
}

#[tokio::test]
async fn inputs_must_be_those_of_the_program() {
    let mut bench = Bench::new();
    let spec = mlp(&mut bench);
    let mut unknown = spec.clone();
    let x = unknown.inputs["x"].clone();
    unknown.inputs.insert("y".to_owned(), x);
    let mut missing = spec.clone();
    missing.inputs.get_mut("x").unwrap().tensor = "absent".to_owned();
    let mut integers = spec;
    let labels = bench.blob(&column(&example("test.safetensors"), "labels", 37));
    integers.inputs.insert(
        "x".to_owned(),
        comptoir_domain::job::TensorRef {
            blob: labels,
            dataset_version: None,
            tensor: "labels".into(),
        },
    );
    for spec in [unknown, missing, integers] {
        let failure = failure(&bench, JobSpec::Inference(spec)).await;
        assert_eq!(
            (failure.code, failure.cause()),
            (Code::InvalidInput, Cause::Client),
            "{failure}"
        );
    }
}

#[tokio::test]
async fn classes_must_be_those_of_the_output() {
    let mut bench = Bench::new();
    let mut spec = convnet(&mut bench);
    let ten = [10_i64; 150].map(i64::to_le_bytes).concat();
    let target = TensorView {
        name: "labels",
        dtype: comptoir_domain::program::graph::ScalarType::I64,
        shape: &[150],
        data: &ten,
    };
    spec.target.blob = bench.blob(&tensors::to_bytes([target]).unwrap());
    let failure = failure(&bench, JobSpec::Training(spec)).await;
    assert_eq!(
        (failure.code, failure.cause()),
        (Code::InvalidInput, Cause::Client),
        "{failure}"
    );
    assert!(failure.detail.contains("0 to 9"), "{failure}");
}

#[tokio::test]
async fn a_loss_that_runs_away_ends_the_job() {
    let mut bench = Bench::new();
    let case = cases("training")
        .into_iter()
        .find(|case| case["name"] == "mlp_mse")
        .unwrap();
    let mut spec = training(&mut bench, &case);
    assert_eq!(spec.loss, Loss::Mse);
    spec.optimizer = Optimizer::Sgd {
        learning_rate: 1e3,
        momentum: 0.9,
        weight_decay: 1e3,
        nesterov: false,
    };
    spec.epochs = 50;
    let failure = failure(&bench, JobSpec::Training(spec)).await;
    assert_eq!(
        (failure.code, failure.cause()),
        (Code::Diverged, Cause::Client),
        "{failure}"
    );
}

#[tokio::test]
async fn a_checkpoint_of_another_program_is_not_resumed() {
    let mut bench = Bench::new();
    let spec = convnet(&mut bench);
    let mut task = bench.task(JobSpec::Training(spec));
    let foreign = bench.blob(&example("vectors/mlp_sgd.safetensors"));
    task.resume = Some(format!("blob-{foreign}").into());
    let last = bench.start(task, crate::harness::LIMITS).last().await;
    assert!(
        matches!(&last, Event::Failed(failure) if failure.code == Code::InvalidCheckpoint),
        "{last:?}"
    );
}
