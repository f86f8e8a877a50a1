//! Batch inference against PyTorch's own results.

use comptoir_domain::{
    job::{InferenceSpec, JobSpec},
    tensors::Tensors,
};

use crate::harness::{Bench, assert_close, cases, example, inference};

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
