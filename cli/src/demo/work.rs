//! The work: training and inference on the digits, and what the returned numbers are worth.

use std::{ops::ControlFlow, path::Path, time::Duration};

use anyhow::{Context as _, bail, ensure};
use comptoir_domain::{
    digest::Sha256,
    program::graph::ScalarType,
    tensors::{TensorView, Tensors},
};
use serde_json::{Value, json};

use super::people::Person;
use crate::client::{blobs, events, http::Api, idempotency_key};

/// The images are squares of so many pixels a side.
const SIDE: usize = 8;
/// How long the first checkpoint may take.
const CHECKPOINT_MAX: Duration = Duration::from_secs(90);

/// The example's blobs, uploaded.
pub struct Digits {
    /// The convolutional net.
    pub convnet: Sha256,
    /// Training split: `images`, `labels`.
    pub train: Sha256,
    /// Test split: `images`, `labels`.
    pub test: Sha256,
    labels: Vec<i64>,
    /// The rows of the test images.
    images: Vec<Vec<f32>>,
}

/// A job that ended well.
pub struct Done {
    /// The job as the API shows it.
    pub job: Value,
    /// Its first output.
    pub output: Sha256,
    /// Every event.
    pub events: Vec<events::Event>,
}

impl Done {
    /// The receipt of its charge.
    ///
    /// # Errors
    /// When it has none.
    pub fn receipt(&self) -> anyhow::Result<&str> {
        let id = self.job["receipt_id"].as_str();
        id.context("a completed job without a receipt")
    }
}

impl Digits {
    /// Uploads the example's files.
    ///
    /// # Errors
    /// When a file is missing or refused.
    pub async fn upload(api: &Api, folder: &Path) -> anyhow::Result<Self> {
        let test = folder.join("test.safetensors");
        let (labels, images) = examples(&std::fs::read(&test)?)?;
        Ok(Self {
            convnet: blobs::upload(api, &folder.join("convnet.pt2")).await?,
            train: blobs::upload(api, &folder.join("train.safetensors")).await?,
            test: blobs::upload(api, &test).await?,
            labels,
            images,
        })
    }

    /// A training job over the training split.
    #[must_use]
    pub fn training(&self, epochs: u32, segment_steps: u32) -> Value {
        json!({
            "kind": "training",
            "program": self.convnet,
            "inputs": { "x": { "blob": self.train, "tensor": "images" } },
            "target": { "blob": self.train, "tensor": "labels" },
            "loss": "cross_entropy",
            "optimizer": { "type": "adam", "learning_rate": 0.003 },
            "epochs": epochs, "batch_size": 32, "seed": 7, "segment_steps": segment_steps,
        })
    }

    /// The same as a job file, whose tensors are read from a file of a dataset.
    #[must_use]
    pub fn training_on_dataset(
        &self,
        program: &Path,
        (epochs, segment_steps): (u32, u32),
    ) -> Value {
        let mut spec = self.training(epochs, segment_steps);
        spec["program"] = format!("@{}", program.display()).into();
        spec["inputs"]["x"]["blob"] = Value::Null;
        spec["target"]["blob"] = Value::Null;
        spec
    }

    /// An inference job over the test split.
    #[must_use]
    pub fn inference(&self, weights: Sha256) -> Value {
        json!({
            "kind": "inference",
            "program": self.convnet,
            "weights": weights,
            "inputs": { "x": { "blob": self.test, "tensor": "images" } },
            "batch_size": 64,
        })
    }

    /// The test images as bodies of calls, and what each shows.
    #[must_use]
    pub fn bodies(&self) -> Vec<(String, i64)> {
        let images = self.images.iter().zip(&self.labels);
        let body = |image: &[f32]| {
            let rows: Vec<_> = image.chunks_exact(SIDE).collect();
            json!({ "inputs": { "x": [[rows]] } }).to_string()
        };
        images.map(|(image, label)| (body(image), *label)).collect()
    }

    /// The share of test images whose largest logit is their label.
    ///
    /// # Errors
    /// When the output is not one row of logits per image.
    pub fn accuracy(&self, output: &[u8]) -> anyhow::Result<f64> {
        let tensors = Tensors::read(output)?;
        let logits = tensors
            .iter()
            .next()
            .context("the output holds no tensor")?;
        let [rows, classes] = *logits.shape else {
            bail!("logits of shape {:?}", logits.shape)
        };
        ensure!(
            logits.dtype == ScalarType::F32,
            "logits are {:?}",
            logits.dtype
        );
        ensure!(
            usize::try_from(rows)? == self.labels.len(),
            "{rows} rows for {} images",
            self.labels.len()
        );
        let guesses = logits
            .data
            .chunks_exact(usize::try_from(classes)? * 4)
            .map(|row| largest(floats(row)));
        let right = guesses
            .zip(&self.labels)
            .filter(|(guess, label)| i64::try_from(*guess) == Ok(**label))
            .count();
        Ok(f64::from(u32::try_from(right)?) / f64::from(u32::try_from(self.labels.len())?))
    }
}

/// Quotes and submits a job.
///
/// # Errors
/// When the service refuses.
pub async fn submit(client: &Person, spec: Value, tier: &str) -> anyhow::Result<Value> {
    let quote = client
        .api
        .post(
            "/v1/quotes",
            &json!({ "spec": spec, "tier": tier, "device": "cpu" }),
        )
        .await?;
    let body = json!({ "quote_id": quote["id"], "max_cost": quote["hold"]["amount"] });
    Ok(client
        .api
        .create("/v1/jobs", &idempotency_key(), &body)
        .await?)
}

/// Watches a job to its end, and refuses any end but completion.
///
/// # Errors
/// When it ended otherwise.
pub async fn complete(client: &Person, job: &Value) -> anyhow::Result<Done> {
    let id = job["id"].as_str().context("a job without an id")?;
    let mut seen = Vec::new();
    events::follow(&client.api, id, 0, |event| {
        seen.push(event.clone());
        ControlFlow::Continue(())
    })
    .await?;
    let gapless = seen
        .iter()
        .zip(1..)
        .all(|(event, number)| event.seq == number);
    ensure!(gapless, "the events of {id} have a gap");
    let job = client.api.get(&format!("/v1/jobs/{id}")).await?;
    ensure!(
        job["state"] == "completed",
        "{id} is {}: {}",
        job["state"],
        job["failure"]
    );
    let results = client.api.get(&format!("/v1/jobs/{id}/results")).await?;
    let output = results["data"][0]["sha256"]
        .as_str()
        .context("a job without outputs")?
        .parse()?;
    Ok(Done {
        job,
        output,
        events: seen,
    })
}

/// Waits until a checkpoint of the job is in, and says which owner's worker runs it.
///
/// # Errors
/// When the job ends first, or no owner has a busy worker.
pub async fn after_first_checkpoint(
    client: &Person,
    job: &Value,
    owners: &[Person; 2],
) -> anyhow::Result<usize> {
    let id = job["id"].as_str().context("a job without an id")?;
    let mut reached = false;
    let watching = events::follow(&client.api, id, 0, |event| {
        reached = event.kind == "checkpoint";
        if reached {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    tokio::time::timeout(CHECKPOINT_MAX, watching)
        .await
        .context("no checkpoint came")??;
    ensure!(reached, "{id} ended before its worker could be killed");
    for (place, owner) in owners.iter().enumerate() {
        if owner.api.get("/v1/workers").await?["data"][0]["state"] == "busy" {
            return Ok(place);
        }
    }
    bail!("{id} runs, and no worker is busy")
}

/// The loss of each epoch of one replica.
#[must_use]
pub fn losses(done: &Done) -> Vec<(u64, f64)> {
    let metrics = done
        .events
        .iter()
        .filter(|event| event.kind == "metrics" && event.data["replica"] == 0);
    metrics
        .filter_map(|event| {
            Some((
                event.data["epoch"].as_u64()?,
                event.data["values"]["loss"].as_f64()?,
            ))
        })
        .collect()
}

/// The labels and images of a split.
fn examples(test: &[u8]) -> anyhow::Result<(Vec<i64>, Vec<Vec<f32>>)> {
    let tensors = Tensors::read(test)?;
    let images: TensorView<'_> = tensors.tensor("images")?;
    let expected = (ScalarType::F32, [1, SIDE as u64, SIDE as u64]);
    ensure!(
        (images.dtype, &images.shape[1..]) == (expected.0, &expected.1[..]),
        "images are {:?} of shape {:?}",
        images.dtype,
        images.shape
    );
    let rows = images.data.chunks_exact(SIDE * SIDE * 4);
    let rows = rows.map(|row| floats(row).collect()).collect();
    let labels: TensorView<'_> = tensors.tensor("labels")?;
    ensure!(
        labels.dtype == ScalarType::I64,
        "labels are {:?}",
        labels.dtype
    );
    let label = |bytes: &[u8]| i64::from_le_bytes(bytes.try_into().expect("chunks of 8 bytes"));
    Ok((labels.data.chunks_exact(8).map(label).collect(), rows))
}

fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes
        .chunks_exact(4)
        .map(|it| f32::from_le_bytes(it.try_into().expect("chunks of 4 bytes")))
}

/// The place of the largest of some numbers.
pub fn largest<T: Into<f64>>(values: impl Iterator<Item = T>) -> usize {
    let values = values.map(Into::into).enumerate();
    let best = values.max_by(|(_, a), (_, b): &(usize, f64)| a.total_cmp(b));
    best.map_or(0, |(index, _)| index)
}
