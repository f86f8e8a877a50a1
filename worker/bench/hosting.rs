//! How many calls a second a child that hosts a small net answers, beside libtorch alone over batches of as many rows.

use std::{
    fs::{self, File},
    hint::black_box,
    io::{Cursor, Read as _, Write as _},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use comptoir_domain::{job::Device, program::graph::ScalarType};
use comptoir_wire::calls::{self, Answer, Ask, Call, Tensor as Sent};
use comptoir_worker::engine::{
    Host, HostTask, Launcher, Limits,
    host::{FromHost, Happened, ToHost},
};
use serde_bytes::ByteBuf;
use serde_json::Value;
use tch::{Kind, Tensor};
use uuid::Uuid;
use zip::{CompressionMethod, ZipArchive, ZipWriter, write::SimpleFileOptions};

use crate::{Measured, Options, median, timed};

/// Calls that wait at a time, of one row each; and rows of a batch beside them.
const TOGETHER: u32 = 32;
const INPUT: usize = 784;
const HIDDEN: usize = 256;
const CLASSES: usize = 10;

/// Calls a second, and rows a second.
pub fn measure(options: &Options) -> anyhow::Result<Measured> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut net = Net::new();
    let mut hosted = runtime.block_on(Hosted::start(&options.data, &net))?;
    runtime.block_on(hosted.answer(10 * u64::from(TOGETHER)))?;
    let (mut ratios, mut values, mut references) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        let turns = u32::try_from(options.millis)? * 5;
        let batch_us = timed(turns, || {
            drop(black_box(net.turn()));
            Ok(())
        })?;
        let reference = f64::from(TOGETHER) * 1e6 / batch_us;
        let (since, least) = (Instant::now(), Duration::from_millis(options.millis));
        let mut answered = 0;
        while since.elapsed() < least {
            answered += runtime.block_on(hosted.answer(u64::from(TOGETHER)))?;
        }
        let value = f64::from(u32::try_from(answered)?) / since.elapsed().as_secs_f64();
        ratios.push(value / reference);
        values.push(value);
        references.push(reference);
    }
    Ok(Measured {
        ratio: median(&mut ratios),
        value: median(&mut values),
        reference: median(&mut references),
    })
}

/// The net by hand.
struct Net {
    input: Tensor,
    weights: [Tensor; 4],
}

impl Net {
    fn new() -> Self {
        tch::manual_seed(0);
        let random = |shape: &[usize]| {
            let shape: Vec<i64> = shape
                .iter()
                .map(|size| i64::try_from(*size).unwrap_or(i64::MAX))
                .collect();
            Tensor::randn(shape, (Kind::Float, tch::Device::Cpu)) * 0.05
        };
        Self {
            input: random(&[TOGETHER as usize, INPUT]),
            weights: [
                random(&[HIDDEN, INPUT]),
                random(&[HIDDEN]),
                random(&[CLASSES, HIDDEN]),
                random(&[CLASSES]),
            ],
        }
    }

    fn turn(&mut self) -> Tensor {
        let _guard = tch::no_grad_guard();
        let [hidden, hidden_bias, head, head_bias] = &self.weights;
        let hidden = self.input.linear(hidden, Some(hidden_bias)).relu();
        hidden.linear(head, Some(head_bias))
    }
}

/// The same net in a child.
struct Hosted {
    host: Host,
    calls: Vec<ToHost>,
    waiting: u32,
    _scratch: tempfile::TempDir,
}

impl Hosted {
    async fn start(data: &Path, net: &Net) -> anyhow::Result<Self> {
        let scratch = tempfile::tempdir()?;
        fs::write(scratch.path().join("program"), archive(data, net)?)?;
        let task = HostTask {
            program: "program".into(),
            weights: None,
            writing: None,
            batch_max: TOGETHER,
        };
        let limits = Limits {
            memory_bytes: 256 << 20,
            wall: Duration::from_hours(1),
            file_bytes: 0,
        };
        let worker = std::env::current_exe()?.with_file_name("comptoir-worker");
        let launcher = Launcher::new(worker);
        let mut host = launcher.host(limits, (Device::Cpu, 1), task, scratch.path())?;
        match host.next().await {
            Some(Happened::Said(frames)) if frames == [FromHost::Loaded] => {}
            said => anyhow::bail!("not loaded: {said:?}"),
        }
        let rows = bytes(&net.input)?;
        let rows = rows.chunks(INPUT * size_of::<f32>());
        let calls = (0..).zip(rows).map(|(id, row)| {
            let input = Sent {
                dtype: ScalarType::F32,
                shape: vec![1, 1, 28, 28],
                bytes: row.to_vec(),
            };
            let id = Uuid::from_u128(id);
            let call = Call {
                id,
                version: Uuid::nil(),
                within_ms: u32::MAX,
                ask: Ask::Infer(vec![input]),
            };
            ToHost::Call {
                id,
                within_ms: u32::MAX,
                was_cold: false,
                call: ByteBuf::from(calls::encode(&call)),
            }
        });
        let calls: Vec<ToHost> = calls.collect();
        Ok(Self {
            host,
            calls,
            waiting: 0,
            _scratch: scratch,
        })
    }

    /// Keeps as many calls waiting until so many are answered.
    async fn answer(&mut self, count: u64) -> anyhow::Result<u64> {
        let mut answered = 0;
        let mut to_send = self.calls.clone();
        to_send.truncate((TOGETHER - self.waiting) as usize);
        while answered < count {
            if !to_send.is_empty() {
                let room = self.host.room().await.context("the child has ended")?;
                room.send(&to_send);
                self.waiting += u32::try_from(to_send.len())?;
            }
            let Some(Happened::Said(frames)) = self.host.next().await else {
                anyhow::bail!("the child has ended");
            };
            to_send.clear();
            for frame in frames {
                let FromHost::Answer { id, answer, .. } = frame else {
                    anyhow::bail!("no answer: {frame:?}");
                };
                let Answer::Outputs(_) = calls::answer(&answer)? else {
                    anyhow::bail!("no outputs");
                };
                to_send.push(self.calls[usize::try_from(id.as_u128())?].clone());
                answered += 1;
                self.waiting -= 1;
            }
        }
        Ok(answered)
    }
}

fn bytes(tensor: &Tensor) -> anyhow::Result<Vec<u8>> {
    Ok(comptoir_worker::engine::files::to_bytes(tensor)?)
}

/// The net as an archive, made of the small one of the examples: its first and last layer, in other sizes.
fn archive(data: &Path, net: &Net) -> anyhow::Result<Vec<u8>> {
    let mut from = ZipArchive::new(File::open(data.join("mlp.pt2"))?)?;
    let mut to = ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for index in 0..from.len() {
        let mut entry = from.by_index(index)?;
        let name = entry.name()?.into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        let weight = |at: usize| bytes(&net.weights[at]);
        let content = match name.rsplit('/').next().unwrap_or_default() {
            "weight_0" => weight(0)?,
            "weight_1" => weight(1)?,
            "weight_4" => weight(2)?,
            "weight_5" => weight(3)?,
            "model.json" => changed(&content, change_graph)?,
            "model_weights_config.json" => changed(&content, change_weights)?,
            _ => content,
        };
        to.start_file(name, stored)?;
        to.write_all(&content)?;
    }
    Ok(to.finish()?.into_inner())
}

fn changed(content: &[u8], change: fn(&mut Value)) -> anyhow::Result<Vec<u8>> {
    let mut document = serde_json::from_slice(content)?;
    change(&mut document);
    Ok(serde_json::to_vec(&document)?)
}

/// The values whose sizes are others, each with its last ones.
const SIZES: [(&str, &[usize]); 8] = [
    ("p_hidden_weight", &[HIDDEN, INPUT]),
    ("p_hidden_bias", &[HIDDEN]),
    ("p_head_weight", &[CLASSES, HIDDEN]),
    ("x", &[1, 28, 28]),
    ("flatten", &[INPUT]),
    ("linear", &[HIDDEN]),
    ("relu", &[HIDDEN]),
    ("p_head_bias", &[CLASSES]),
];

fn change_graph(document: &mut Value) {
    let is_left_out = |text: &str| {
        ["inner", "linear_1", "tanh"]
            .iter()
            .any(|it| text.contains(it))
    };
    let module = &mut document["graph_module"];
    let leave_out = |list: &mut Value| {
        if let Some(list) = list.as_array_mut() {
            list.retain(|it| !is_left_out(&it.to_string()));
        }
    };
    leave_out(&mut module["signature"]["input_specs"]);
    let graph = &mut module["graph"];
    leave_out(&mut graph["inputs"]);
    if let Some(nodes) = graph["nodes"].as_array_mut() {
        nodes.retain(|node| !["linear_1", "tanh"].contains(&node["name"].as_str().unwrap_or("")));
        if let Some(head) = nodes.last_mut() {
            head["inputs"][0]["arg"]["as_tensor"]["name"] = "relu".into();
        }
    }
    if let Some(values) = graph["tensor_values"].as_object_mut() {
        values.retain(|name, _| !is_left_out(name));
    }
    for (name, sizes) in SIZES {
        resize(&mut graph["tensor_values"][name], sizes);
    }
}

fn change_weights(document: &mut Value) {
    let config = &mut document["config"];
    if let Some(config) = config.as_object_mut() {
        config.retain(|name, _| !name.starts_with("inner"));
    }
    for (name, sizes) in SIZES {
        if let Some(name) = name.strip_prefix("p_") {
            resize(&mut config[name.replace('_', ".")]["tensor_meta"], sizes);
        }
    }
}

/// The last sizes of a tensor, and the strides of all.
fn resize(meta: &mut Value, sizes: &[usize]) {
    let Some(all) = meta["sizes"].as_array_mut() else {
        return;
    };
    let start = all.len() - sizes.len();
    for (size, new) in all[start..].iter_mut().zip(sizes) {
        *size = serde_json::json!({ "as_int": new });
    }
    let mut stride = 1;
    let count = all.len();
    for at in (0..count).rev() {
        meta["strides"][at] = serde_json::json!({ "as_int": stride });
        stride *= meta["sizes"][at]["as_int"].as_u64().unwrap_or(1);
    }
}
