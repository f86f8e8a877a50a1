//! Training against PyTorch's own results, and against itself.

use std::path::PathBuf;

use comptoir_domain::{
    job::{InferenceSpec, JobSpec},
    tensors::Tensors,
};
use comptoir_worker::engine::{EpochMetrics, Event, Segment};

use crate::harness::{
    Bench, LIMITS, assert_close, cases, collect, convnet, example, inference, training, vectors,
};

fn segments(events: &[Event]) -> Vec<Segment> {
    let segment = |event: &Event| match event {
        Event::Segment(segment) => Some(segment.clone()),
        _ => None,
    };
    events.iter().filter_map(segment).collect()
}

/// Metrics without what a clock says.
fn metrics(events: &[Event]) -> Vec<EpochMetrics> {
    let metrics = |event: &Event| match event {
        Event::Metrics(metrics) => Some(EpochMetrics {
            seconds: 0.0,
            ..*metrics
        }),
        _ => None,
    };
    events.iter().filter_map(metrics).collect()
}

#[tokio::test]
async fn every_optimizer_and_schedule_gives_what_pytorch_gives() {
    let cases = cases("training");
    assert!(cases.len() >= 7);
    for case in cases {
        let mut bench = Bench::new();
        let spec = training(&mut bench, &case);
        let events = bench.run(JobSpec::Training(spec)).await;
        assert_close(
            &Bench::output(&events),
            &example(case["expected"].as_str().unwrap()),
            str::to_owned,
        );
        let expected = case["epoch_losses"].as_array().unwrap();
        let found = metrics(&events);
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            let expected = expected.as_f64().unwrap();
            assert!(
                (found.loss - expected).abs() <= 1e-5 * expected.abs(),
                "{} is not {expected}",
                found.loss
            );
        }
    }
}

#[tokio::test]
async fn a_resumed_training_ends_as_if_it_had_never_stopped() {
    let mut bench = Bench::new();
    let mut spec = convnet(&mut bench);
    spec.segment_steps = 3;
    let whole = bench.run(JobSpec::Training(spec.clone())).await;
    let checkpoints = segments(&whole);
    let ends: Vec<_> = checkpoints.iter().map(|it| (it.segment, it.step)).collect();
    assert_eq!(
        ends,
        [(0, 3), (1, 6), (2, 9)],
        "the last of 10 steps has no checkpoint"
    );
    for done in 1..=3 {
        let mut task = bench.task(JobSpec::Training(spec.clone()));
        // Within an epoch, across one, and short of the end.
        task.resume = checkpoints[done - 1].path.file_name().map(PathBuf::from);
        let copy = std::fs::read(&checkpoints[done - 1].path).unwrap();
        let resumed = collect(bench.start(task, LIMITS)).await;
        assert_eq!(
            segments(&resumed),
            checkpoints[done..],
            "resumed after {done} segments"
        );
        assert_eq!(Bench::output(&resumed), Bench::output(&whole));
        assert!(metrics(&whole).ends_with(&metrics(&resumed)) && !metrics(&resumed).is_empty());
        assert_eq!(std::fs::read(&checkpoints[done - 1].path).unwrap(), copy);
    }
}

#[tokio::test]
async fn a_replayed_piece_ends_with_the_bits_of_the_run_and_says_nothing_else() {
    let mut bench = Bench::new();
    let mut spec = convnet(&mut bench);
    spec.segment_steps = 3;
    let whole = bench.run(JobSpec::Training(spec.clone())).await;
    let checkpoints = segments(&whole);
    // The first piece, one across an epoch, and the rest after the last checkpoint.
    for (from, until) in [(None, 3), (Some(0), 6), (Some(1), 9), (Some(2), 10)] {
        let mut task = bench.task(JobSpec::Training(spec.clone()));
        let file = from.and_then(|segment: usize| checkpoints[segment].path.file_name());
        task.resume = file.map(PathBuf::from);
        task.until_step = Some(until);
        let replayed = collect(bench.start(task, LIMITS)).await;
        assert!(segments(&replayed).is_empty() && metrics(&replayed).is_empty());
        let Some(Event::Done { outputs }) = replayed.last() else {
            panic!("{replayed:?}")
        };
        let [output] = outputs.as_slice() else {
            panic!("{outputs:?}")
        };
        let end = checkpoints.iter().find(|it| it.step == until);
        match end {
            Some(end) => assert_eq!(
                (output.name.as_str(), output.sha256),
                ("checkpoint", end.sha256)
            ),
            None => assert_eq!(Bench::output(&replayed), Bench::output(&whole)),
        }
    }
}

#[tokio::test]
async fn two_processes_compute_the_same_bits() {
    let mut runs = Vec::new();
    for _ in 0..2 {
        let mut bench = Bench::new();
        let spec = convnet(&mut bench);
        let events = bench.run(JobSpec::Training(spec)).await;
        let hashes: Vec<_> = segments(&events)
            .iter()
            .map(|segment| segment.sha256)
            .collect();
        runs.push((Bench::output(&events), hashes, metrics(&events)));
    }
    assert_eq!(runs[0], runs[1]);
}

#[tokio::test]
async fn another_seed_is_another_training() {
    let mut outputs = Vec::new();
    for seed in [7, 8] {
        let mut bench = Bench::new();
        let mut spec = convnet(&mut bench);
        spec.seed = seed;
        spec.epochs = 1;
        let events = bench.run(JobSpec::Training(spec)).await;
        outputs.push(Bench::output(&events));
    }
    assert_ne!(outputs[0], outputs[1]);
}

#[tokio::test]
async fn the_convolutional_net_learns_the_digits() {
    let mut bench = Bench::new();
    let mut case = cases("training")
        .into_iter()
        .find(|case| case["name"] == "convnet_adam")
        .unwrap();
    case["program"] = "convnet.pt2".into();
    case["rows"] = 1437.into();
    case["spec"] = vectors()["trained"]["spec"].clone();
    let spec = training(&mut bench, &case);
    let trained = bench.run(JobSpec::Training(spec)).await;
    let last = *metrics(&trained).last().unwrap();
    assert_eq!((last.epoch, last.step, last.rows), (4, 225, 1437));
    assert!(last.accuracy.unwrap() > 0.95 && last.loss < 0.2, "{last:?}");

    let case = cases("inference")
        .into_iter()
        .find(|case| case["name"] == "convnet_trained_inference")
        .unwrap();
    let weights = bench.blob(&Bench::output(&trained));
    let spec = InferenceSpec {
        weights: Some(weights),
        ..inference(&mut bench, &case)
    };
    let inferred = bench.run(JobSpec::Inference(spec)).await;
    let (outputs, labels) = (Bench::output(&inferred), example("test.safetensors"));
    let (outputs, labels) = (
        Tensors::read(&outputs).unwrap(),
        Tensors::read(&labels).unwrap(),
    );
    let logits = outputs.tensor("output_0").unwrap().data.chunks_exact(40);
    let labels = labels.tensor("labels").unwrap().data.chunks_exact(8);
    assert_eq!((logits.len(), labels.len()), (360, 360));
    let likeliest = |row: &[u8]| {
        let row = row
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
        row.enumerate()
            .max_by(|(_, a), (_, b)| a.total_cmp(b))
            .unwrap()
            .0
    };
    let label =
        |bytes: &[u8]| usize::try_from(i64::from_le_bytes(bytes.try_into().unwrap())).unwrap();
    let correct = logits
        .zip(labels)
        .filter(|(row, bytes)| likeliest(row) == label(bytes))
        .count();
    assert!(correct >= 342, "{correct} of 360");
}
