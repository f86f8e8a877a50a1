//! Batch inference against PyTorch's own results.

use comptoir_domain::{
    job::{InferenceSpec, JobSpec},
    tensors::Tensors,
};
use comptoir_worker::engine::{
    plan::{Phase, Plan},
    state::ProgramFile,
};
use serde_json::{Value, json};

use crate::harness::{Bench, assert_close, cases, digits, example, inference, with_graph};

#[tokio::test]
async fn every_example_gives_what_pytorch_gives() {
    let cases = cases("inference");
    assert!(cases.len() >= 4);
    for case in cases {
        let mut bench = Bench::new();
        let spec = inference(&mut bench, &case);
        let events = bench.run(JobSpec::Inference(spec)).await;
        let expected = example(case["expected"].as_str().unwrap());
        assert_close(&Bench::output(&events), &expected, |_| {
            "output_0".to_owned()
        });
    }
}

#[tokio::test]
async fn the_batch_size_does_not_change_a_row() {
    let case = cases("inference")
        .into_iter()
        .find(|case| case["name"] == "convnet_trained_inference")
        .unwrap();
    let mut outputs = Vec::new();
    for batch_size in [1, 360] {
        let mut bench = Bench::new();
        let spec = InferenceSpec {
            batch_size,
            ..inference(&mut bench, &case)
        };
        let events = bench.run(JobSpec::Inference(spec)).await;
        outputs.push(Bench::output(&events));
    }
    let rows = Tensors::read(&outputs[0])
        .unwrap()
        .tensor("output_0")
        .unwrap()
        .shape
        .to_vec();
    assert_eq!(rows, [360, 10]);
    assert_close(&outputs[0], &outputs[1], str::to_owned);
}

#[tokio::test]
async fn normalisation_without_running_statistics_takes_those_of_the_batch() {
    let case = cases("inference")
        .into_iter()
        .find(|case| case["name"] == "convnet_inference")
        .unwrap();
    let mut bench = Bench::new();
    let without = |graph: String| {
        let mut document: Value = serde_json::from_str(&graph).unwrap();
        let nodes = document["graph_module"]["graph"]["nodes"]
            .as_array_mut()
            .unwrap();
        for input in nodes
            .iter_mut()
            .flat_map(|node| node["inputs"].as_array_mut().unwrap())
        {
            if ["running_mean", "running_var"].contains(&input["name"].as_str().unwrap()) {
                input["arg"] = json!({ "as_none": true });
            }
        }
        document.to_string()
    };
    let program = bench.blob(&with_graph(&example("convnet.pt2"), without));
    let spec = InferenceSpec {
        program,
        ..inference(&mut bench, &case)
    };
    let mut outputs = Vec::new();
    for batch_size in [37, 36] {
        let spec = InferenceSpec {
            batch_size,
            ..spec.clone()
        };
        outputs.push(Bench::output(&bench.run(JobSpec::Inference(spec)).await));
    }
    assert_ne!(outputs[0], outputs[1], "a row depends on its batch");
}

#[test]
fn inference_leaves_out_what_only_counts() {
    let file = std::fs::File::open(digits().join("convnet.pt2")).unwrap();
    let archive = ProgramFile::open(std::io::BufReader::new(file)).unwrap();
    let counts = |phase| {
        let plan = Plan::new(archive.program(), phase).ok().unwrap();
        let added = plan
            .calls
            .iter()
            .filter(|call| call.target.contains("add_"));
        added.count()
    };
    // Each batch norm counts its batches.
    assert_eq!((counts(Phase::Training), counts(Phase::Inference)), (2, 0));
}
