//! Jobs over the example programs, run in children of the real binary.

use std::{
    collections::BTreeMap,
    fs,
    io::Cursor,
    path::{Path, PathBuf},
    time::Duration,
};

use comptoir_domain::{
    digest::Sha256,
    fit::{self, ProgramFacts},
    job::{Device, InferenceSpec, JobSpec, TensorRef, Tier, TrainingSpec},
    program::Archive,
    tensors::{self, TensorView, Tensors, TensorsHeader},
};
use comptoir_worker::engine::{Description, Event, Job, JobTask, Launcher, Limits, Task};
use serde_json::Value;
use tempfile::TempDir;

/// What honest fp32 machines agree to: relative L2 distance, and largest difference by the largest reference.
pub const RELATIVE_L2_MAX: f64 = 1e-5;
pub const MAX_BY_REFERENCE: f64 = 5e-6;

/// Batch norm does not see the bias before it, nor softmax that of the keys: their true gradients are 0, what is left of
/// them is rounding, and Adam makes full steps of that. The running means move with the biases.
const IS_ROUNDING: [&str; 4] = [
    "conv1.bias",
    "conv2.bias",
    "norm1.running_mean",
    "norm2.running_mean",
];

/// Enough for every honest job here.
pub const LIMITS: Limits = Limits {
    memory_bytes: 2 << 30,
    wall: Duration::from_mins(1),
    file_bytes: 1 << 30,
};

/// A folder of example files.
pub fn digits() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/digits")
}

/// The bytes of an example file.
pub fn example(path: &str) -> Vec<u8> {
    fs::read(digits().join(path)).unwrap()
}

/// The description of the reference results.
pub fn vectors() -> Value {
    serde_json::from_slice(&example("vectors/vectors.json")).unwrap()
}

/// The reference cases of a kind.
pub fn cases(kind: &str) -> Vec<Value> {
    let cases = vectors()["cases"].as_array().unwrap().clone();
    cases
        .into_iter()
        .filter(|case| case["kind"] == kind)
        .collect()
}

pub fn launcher() -> Launcher {
    Launcher::new(env!("CARGO_BIN_EXE_comptoir-worker").into())
}

/// A scratch folder with the blobs of one job.
pub struct Bench {
    pub scratch: TempDir,
    blobs: BTreeMap<Sha256, PathBuf>,
}

impl Bench {
    pub fn new() -> Self {
        Self {
            scratch: tempfile::tempdir().unwrap(),
            blobs: BTreeMap::new(),
        }
    }

    /// Puts a blob into the folder.
    pub fn blob(&mut self, bytes: &[u8]) -> Sha256 {
        let digest = Sha256::of(bytes);
        let path = PathBuf::from(format!("blob-{digest}"));
        fs::write(self.scratch.path().join(&path), bytes).unwrap();
        self.blobs.insert(digest, path);
        digest
    }

    pub fn task(&self, spec: JobSpec) -> JobTask {
        JobTask {
            spec,
            blobs: self.blobs.clone(),
            dataset: None,
            resume: None,
            until_step: None,
        }
    }

    pub fn start(&self, task: JobTask, limits: Limits) -> Job {
        self.start_with(&launcher(), task, limits)
    }

    pub fn start_with(&self, launcher: &Launcher, task: JobTask, limits: Limits) -> Job {
        let description = Description {
            task: Task::Job(Box::new(task)),
            device: Device::Cpu,
            threads: 1,
        };
        launcher
            .spawn(limits, description, self.scratch.path())
            .unwrap()
    }

    /// Memory that the service would quote for a job.
    pub fn quoted_memory(&self, spec: &JobSpec) -> u64 {
        let read = |path: &PathBuf| fs::read(self.scratch.path().join(path)).unwrap();
        let archive = Archive::open(Cursor::new(read(&self.blobs[&spec.program()]))).unwrap();
        let facts = ProgramFacts::of(archive.program()).unwrap();
        let head = |(digest, path): (&Sha256, &PathBuf)| {
            Some((*digest, TensorsHeader::read(&read(path)).ok()?))
        };
        let heads = self.blobs.iter().filter_map(head).collect();
        fit::check(spec, Tier::None, &facts, &heads)
            .unwrap()
            .min_memory_bytes
    }

    /// Runs a job to its end; all its events.
    pub async fn run(&self, spec: JobSpec) -> Vec<Event> {
        collect(self.start(self.task(spec), LIMITS)).await
    }

    /// The tensors of the one output of a finished job.
    pub fn output(events: &[Event]) -> Vec<u8> {
        let Some(Event::Done { outputs }) = events.last() else {
            panic!("not done: {:?}", events.last())
        };
        assert_eq!(outputs.len(), 1);
        let bytes = fs::read(&outputs[0].path).unwrap();
        assert_eq!(
            (Sha256::of(&bytes), bytes.len() as u64),
            (outputs[0].sha256, outputs[0].bytes)
        );
        bytes
    }
}

pub async fn collect(mut job: Job) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some(event) = job.next().await {
        events.push(event);
    }
    let lasts = events.iter().filter(|event| event.is_last()).count();
    assert_eq!(lasts, 1, "one last event: {events:?}");
    events
}

/// The first rows of one column of a data file, as a file of its own.
pub fn column(file: &[u8], name: &str, rows: u64) -> Vec<u8> {
    let tensors = Tensors::read(file).unwrap();
    let view = tensors.tensor(name).unwrap();
    let mut shape = view.shape.to_vec();
    let per_row = view.data.len() / usize::try_from(shape[0]).unwrap();
    shape[0] = rows;
    let data = &view.data[..per_row * usize::try_from(rows).unwrap()];
    tensors::to_bytes([TensorView {
        name,
        dtype: view.dtype,
        shape: &shape,
        data,
    }])
    .unwrap()
}

/// The job of a reference case.
pub fn inference(bench: &mut Bench, case: &Value) -> InferenceSpec {
    let text = |name: &str| case[name].as_str().unwrap();
    let data = example(text("data"));
    let rows = case["rows"].as_u64().unwrap();
    let weights = case["weights"]
        .as_str()
        .map(|path| bench.blob(&example(path)));
    InferenceSpec {
        program: bench.blob(&example(text("program"))),
        weights,
        inputs: inputs(bench, case, &data, rows),
        batch_size: 16,
    }
}

/// The job of a reference case.
pub fn training(bench: &mut Bench, case: &Value) -> TrainingSpec {
    let text = |name: &str| case[name].as_str().unwrap();
    let data = example(text("data"));
    let rows = case["rows"].as_u64().unwrap();
    let target = text("target");
    let mut spec = case["spec"].clone();
    spec["program"] = serde_json::to_value(bench.blob(&example(text("program")))).unwrap();
    spec["inputs"] = serde_json::to_value(inputs(bench, case, &data, rows)).unwrap();
    let target = TensorRef {
        blob: bench.blob(&column(&data, target, rows)),
        dataset_version: None,
        tensor: target.to_owned(),
    };
    spec["target"] = serde_json::to_value(target).unwrap();
    serde_json::from_value(spec).unwrap()
}

fn inputs(bench: &mut Bench, case: &Value, data: &[u8], rows: u64) -> BTreeMap<String, TensorRef> {
    let named = case["inputs"].as_object().unwrap();
    let input = |(name, tensor): (&String, &Value)| {
        let tensor = tensor.as_str().unwrap().to_owned();
        let blob = bench.blob(&column(data, &tensor, rows));
        (
            name.clone(),
            TensorRef {
                blob,
                dataset_version: None,
                tensor,
            },
        )
    };
    named.iter().map(input).collect()
}

/// The convolutional net, dropout and batch norm included, over a few rows: a small job with every kind of state.
pub fn convnet(bench: &mut Bench) -> TrainingSpec {
    let mut case = cases("training")
        .into_iter()
        .find(|case| case["name"] == "convnet_adam")
        .unwrap();
    case["program"] = "convnet.pt2".into();
    training(bench, &case)
}

/// Compares two files of tensors by the two metrics, tensor by tensor.
pub fn assert_close(found: &[u8], expected: &[u8], names: impl Fn(&str) -> String) {
    let (found, expected) = (
        Tensors::read(found).unwrap(),
        Tensors::read(expected).unwrap(),
    );
    let mut compared = 0;
    for view in expected.iter() {
        let Ok(ours) = found.tensor(&names(view.name)) else {
            continue;
        };
        compared += 1;
        assert_eq!(
            (ours.dtype, ours.shape),
            (view.dtype, view.shape),
            "{}",
            view.name
        );
        let Some((mut ours, mut theirs)) = floats(ours).zip(floats(view)) else {
            assert_eq!(ours.data, view.data, "{}", view.name);
            continue;
        };
        if IS_ROUNDING.iter().any(|name| view.name.ends_with(name)) {
            continue;
        }
        if view.name.ends_with("self_attn.in_proj_bias") {
            // Queries, keys, values: as above for the keys.
            let third = ours.len() / 3;
            ours.drain(third..2 * third);
            theirs.drain(third..2 * third);
        }
        let squares =
            |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
        let differences: Vec<f64> = ours.iter().zip(&theirs).map(|(a, b)| a - b).collect();
        let distance = (squares(&mut differences.iter().copied())
            / squares(&mut theirs.iter().copied()))
        .sqrt();
        let largest = |values: &[f64]| {
            values
                .iter()
                .fold(0_f64, |largest, value| largest.max(value.abs()))
        };
        let worst = largest(&differences) / largest(&theirs);
        assert!(
            distance <= RELATIVE_L2_MAX,
            "{}: relative L2 {distance:e}",
            view.name
        );
        assert!(
            worst <= MAX_BY_REFERENCE,
            "{}: max by reference {worst:e}",
            view.name
        );
    }
    assert_eq!(
        compared,
        found.iter().count(),
        "every tensor found is expected"
    );
}

fn floats(view: TensorView<'_>) -> Option<Vec<f64>> {
    use comptoir_domain::program::graph::ScalarType;
    (view.dtype == ScalarType::F32).then(|| {
        view.data
            .chunks_exact(4)
            .map(|bytes| f64::from(f32::from_le_bytes(bytes.try_into().unwrap())))
            .collect()
    })
}

/// A `.pt2` archive with its graph changed.
pub fn with_graph(archive: &[u8], change: impl FnOnce(String) -> String) -> Vec<u8> {
    use std::io::{Read as _, Write as _};
    let mut from = zip::ZipArchive::new(Cursor::new(archive)).unwrap();
    let mut to = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let mut change = Some(change);
    for index in 0..from.len() {
        let mut entry = from.by_index(index).unwrap();
        let name = entry.name().unwrap().into_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        if name.ends_with("models/model.json") {
            let changed = change.take().unwrap()(String::from_utf8(bytes.clone()).unwrap());
            assert_ne!(changed.as_bytes(), bytes, "the change does something");
            bytes = changed.into_bytes();
        }
        to.start_file(name, options).unwrap();
        to.write_all(&bytes).unwrap();
    }
    to.finish().unwrap().into_inner()
}
