//! The document that says what a job computes. It is stored, hashed into the receipt and handed to
//! the workers as it is, so its serde form is part of the contract with clients.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use crate::{digest::Sha256, id::DatasetVersionId, replay::PIECE_STEPS_MAX, strict::Tagged};

/// Most epochs of one training job.
pub const EPOCHS_MAX: u32 = 10_000;
/// Most rows of one optimizer step or inference batch.
pub const BATCH_SIZE_MAX: u32 = 65_536;
/// Most optimizer steps between two checkpoints.
pub const SEGMENT_STEPS_MAX: u32 = 100_000;
/// Most input tensors of one program.
pub const INPUTS_MAX: usize = 64;
/// Longest name of an input or tensor, in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Seeds stay exact as JSON numbers (RFC 8785 prints numbers as IEEE 754 doubles).
pub const SEED_MAX: u64 = (1 << 53) - 1;

/// What a job computes.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum JobSpec {
    /// Trains a program's parameters.
    Training(TrainingSpec),
    /// Runs a program over rows of input.
    Inference(InferenceSpec),
}

impl<'de> Deserialize<'de> for JobSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spec = Tagged::read(deserializer, "kind")?;
        match spec.tag() {
            "training" => spec.into_variant().map(Self::Training),
            "inference" => spec.into_variant().map(Self::Inference),
            _ => Err(spec.unknown(&["training", "inference"])),
        }
    }
}

/// One tensor of a safetensors file: a blob, or a file of a dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TensorRef {
    /// The file's SHA-256: of a blob, or as the manifest of the dataset's version says it.
    pub blob: Sha256,
    /// The version of a dataset that the file is of; absent for a blob. A job reads files of one version at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, nullable = false, example = "dsv_01h455vb4pex5vsknk084sn02q")]
    pub dataset_version: Option<DatasetVersionId>,
    /// The tensor's name in it.
    pub tensor: String,
}

/// A training job: program and data in, trained weights and metrics out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainingSpec {
    /// The `.pt2` archive, exported in train mode (training IR).
    pub program: Sha256,
    /// Start weights: a safetensors blob by parameter and buffer name. Absent: the archive's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<Sha256>,
    /// The tensor for each user input of the program, by input name. First dimension: rows.
    pub inputs: BTreeMap<String, TensorRef>,
    /// What the output should become.
    pub target: TensorRef,
    /// Which output of the program the loss reads.
    #[serde(default)]
    pub output: u32,
    /// What is minimised.
    pub loss: Loss,
    /// How parameters move.
    pub optimizer: Optimizer,
    /// How the learning rate moves.
    #[serde(default)]
    pub schedule: Schedule,
    /// Passes over all rows.
    pub epochs: u32,
    /// Rows of one optimizer step. The last step of an epoch takes what is left.
    pub batch_size: u32,
    /// Seeds row order and random operators.
    pub seed: u64,
    /// Optimizer steps between two checkpoints. A retry resumes at the last one; an audit replays from one to the next, so
    /// tier `sampled` allows at most 10.
    #[serde(default = "default_segment_steps")]
    pub segment_steps: u32,
}

const fn default_segment_steps() -> u32 {
    PIECE_STEPS_MAX
}

/// A batch inference job: program and rows in, output tensors out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InferenceSpec {
    /// The `.pt2` archive.
    pub program: Sha256,
    /// Weights: a safetensors blob by parameter and buffer name. Absent: the archive's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<Sha256>,
    /// The tensor for each user input of the program, by input name. First dimension: rows.
    pub inputs: BTreeMap<String, TensorRef>,
    /// Rows of one run of the program.
    pub batch_size: u32,
}

/// What training minimises, averaged over the rows of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Cross-entropy of logits, classes in the last dimension, against int64 class indices.
    CrossEntropy,
    /// Mean squared error against a target of the output's shape.
    Mse,
}

/// How parameters move; the update formulas are PyTorch's.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Optimizer {
    /// Stochastic gradient descent.
    Sgd {
        /// Step size.
        learning_rate: f64,
        /// Share of the last step that is kept.
        #[serde(default)]
        momentum: f64,
        /// L2 penalty, added to the gradient.
        #[serde(default)]
        weight_decay: f64,
        /// Nesterov's momentum.
        #[serde(default)]
        nesterov: bool,
    },
    /// Adam, with the L2 penalty added to the gradient.
    Adam(AdamOptions),
    /// Adam with decoupled weight decay.
    Adamw(AdamOptions),
}

impl<'de> Deserialize<'de> for Optimizer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Sgd {
            learning_rate: f64,
            #[serde(default)]
            momentum: f64,
            #[serde(default)]
            weight_decay: f64,
            #[serde(default)]
            nesterov: bool,
        }
        let optimizer = Tagged::read(deserializer, "type")?;
        match optimizer.tag() {
            "sgd" => optimizer.into_variant().map(|it: Sgd| Self::Sgd {
                learning_rate: it.learning_rate,
                momentum: it.momentum,
                weight_decay: it.weight_decay,
                nesterov: it.nesterov,
            }),
            "adam" => optimizer.into_variant().map(Self::Adam),
            "adamw" => optimizer.into_variant().map(Self::Adamw),
            _ => Err(optimizer.unknown(&["sgd", "adam", "adamw"])),
        }
    }
}

/// Options of Adam and AdamW.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AdamOptions {
    /// Step size.
    pub learning_rate: f64,
    /// Decay of the first moment.
    #[serde(default = "default_beta1")]
    pub beta1: f64,
    /// Decay of the second moment.
    #[serde(default = "default_beta2")]
    pub beta2: f64,
    /// Added to the denominator.
    #[serde(default = "default_epsilon")]
    pub epsilon: f64,
    /// Weight decay.
    #[serde(default)]
    pub weight_decay: f64,
}

const fn default_beta1() -> f64 {
    0.9
}
const fn default_beta2() -> f64 {
    0.999
}
const fn default_epsilon() -> f64 {
    1e-8
}

/// How the learning rate moves, by epoch or by optimizer step.
#[derive(Debug, Clone, PartialEq, Default, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// It does not.
    #[default]
    Constant,
    /// Multiplied by `gamma` every `every_epochs` epochs.
    Step {
        /// Epochs between two drops.
        every_epochs: u32,
        /// The factor.
        gamma: f64,
    },
    /// Half a cosine, from the learning rate to `min_learning_rate`, over all steps.
    Cosine {
        /// Where it ends.
        #[serde(default)]
        min_learning_rate: f64,
    },
    /// Rises linearly from 0 over `steps` optimizer steps, then stays.
    LinearWarmup {
        /// Steps of the rise.
        steps: u32,
    },
}

impl<'de> Deserialize<'de> for Schedule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Constant {}
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Step {
            every_epochs: u32,
            gamma: f64,
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Cosine {
            #[serde(default)]
            min_learning_rate: f64,
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct LinearWarmup {
            steps: u32,
        }
        let schedule = Tagged::read(deserializer, "type")?;
        match schedule.tag() {
            "constant" => schedule.into_variant().map(|Constant {}| Self::Constant),
            "step" => schedule.into_variant().map(|it: Step| Self::Step {
                every_epochs: it.every_epochs,
                gamma: it.gamma,
            }),
            "cosine" => schedule.into_variant().map(|it: Cosine| Self::Cosine {
                min_learning_rate: it.min_learning_rate,
            }),
            "linear_warmup" => schedule
                .into_variant()
                .map(|it: LinearWarmup| Self::LinearWarmup { steps: it.steps }),
            _ => Err(schedule.unknown(&["constant", "step", "cosine", "linear_warmup"])),
        }
    }
}

/// One field of a specification is not what it must be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{pointer}: {detail}")]
pub struct InvalidSpec {
    /// RFC 6901 pointer into the specification.
    pub pointer: String,
    /// What it must be.
    pub detail: &'static str,
}

impl JobSpec {
    /// The `.pt2` archive that runs.
    #[must_use]
    pub const fn program(&self) -> Sha256 {
        match self {
            Self::Training(spec) => spec.program,
            Self::Inference(spec) => spec.program,
        }
    }

    /// The weights that replace the archive's own.
    #[must_use]
    pub const fn weights(&self) -> Option<Sha256> {
        match self {
            Self::Training(spec) => spec.weights,
            Self::Inference(spec) => spec.weights,
        }
    }

    /// The user inputs.
    #[must_use]
    pub const fn inputs(&self) -> &BTreeMap<String, TensorRef> {
        match self {
            Self::Training(spec) => &spec.inputs,
            Self::Inference(spec) => &spec.inputs,
        }
    }

    /// `training` or `inference`.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Training(_) => "training",
            Self::Inference(_) => "inference",
        }
    }

    /// Every tensor that the job reads, and where the specification names it.
    pub fn tensors(&self) -> impl Iterator<Item = (String, &TensorRef)> {
        let target = match self {
            Self::Training(spec) => Some(("/target".to_owned(), &spec.target)),
            Self::Inference(_) => None,
        };
        let inputs = self.inputs().iter();
        let inputs = inputs.map(|(name, tensor)| (input_pointer(name), tensor));
        inputs.chain(target)
    }

    /// Every blob that the job reads, each once; files of datasets are none.
    #[must_use]
    pub fn blobs(&self) -> BTreeSet<Sha256> {
        let tensors = self.tensors().map(|(_, tensor)| tensor);
        let plain = tensors.filter(|it| it.dataset_version.is_none());
        plain
            .map(|tensor| tensor.blob)
            .chain([self.program()])
            .chain(self.weights())
            .collect()
    }

    /// The version of a dataset that the job reads, and which of its files, each once.
    #[must_use]
    pub fn dataset(&self) -> Option<(DatasetVersionId, BTreeSet<Sha256>)> {
        let named = || {
            let tensors = self.tensors();
            tensors.filter_map(|(_, it)| Some((it.dataset_version?, it.blob)))
        };
        let (version, _) = named().next()?;
        Some((version, named().map(|(_, file)| file).collect()))
    }

    /// Checks every number and name against its limits; shapes are checked against the program
    /// by whoever has it.
    ///
    /// # Errors
    /// The first field that breaks a rule.
    pub fn validate(&self) -> Result<(), InvalidSpec> {
        let inputs = self.inputs();
        require(
            "/inputs",
            "1 to 64 inputs",
            (1..=INPUTS_MAX).contains(&inputs.len()),
        )?;
        for (name, tensor) in inputs {
            let pointer = input_pointer(name);
            require(&pointer, "a name of 1 to 255 bytes", is_name(name))?;
            require(
                &format!("{pointer}/tensor"),
                "a name of 1 to 255 bytes",
                is_name(&tensor.tensor),
            )?;
        }
        self.validate_dataset()?;
        match self {
            Self::Inference(spec) => validate_batch_size(spec.batch_size),
            Self::Training(spec) => spec.validate(),
        }
    }

    /// One version, so that a job has one seller beside its workers; and no file that is a blob of the job too.
    fn validate_dataset(&self) -> Result<(), InvalidSpec> {
        let Some((version, files)) = self.dataset() else {
            return Ok(());
        };
        let blobs = self.blobs();
        for (pointer, tensor) in self.tensors() {
            require(
                &format!("{pointer}/dataset_version"),
                "a job reads files of one version at most",
                tensor.dataset_version.is_none_or(|it| it == version),
            )?;
            let is_both = files.contains(&tensor.blob) && blobs.contains(&tensor.blob);
            require(
                &format!("{pointer}/blob"),
                "a file is read as a blob, or of a dataset, not as both",
                !is_both,
            )?;
        }
        Ok(())
    }
}

fn input_pointer(name: &str) -> String {
    format!("/inputs/{}", name.replace('~', "~0").replace('/', "~1"))
}

impl TrainingSpec {
    fn validate(&self) -> Result<(), InvalidSpec> {
        validate_batch_size(self.batch_size)?;
        require(
            "/target/tensor",
            "a name of 1 to 255 bytes",
            is_name(&self.target.tensor),
        )?;
        require(
            "/epochs",
            "1 to 10000",
            (1..=EPOCHS_MAX).contains(&self.epochs),
        )?;
        require("/seed", "at most 2^53 - 1", self.seed <= SEED_MAX)?;
        let steps = (1..=SEGMENT_STEPS_MAX).contains(&self.segment_steps);
        require("/segment_steps", "1 to 100000", steps)?;
        self.optimizer.validate()?;
        match self.schedule {
            Schedule::Constant => Ok(()),
            Schedule::Step {
                every_epochs,
                gamma,
            } => {
                require("/schedule/every_epochs", "at least 1", every_epochs >= 1)?;
                require(
                    "/schedule/gamma",
                    "above 0 and at most 1",
                    gamma > 0.0 && gamma <= 1.0,
                )
            }
            Schedule::Cosine { min_learning_rate } => require(
                "/schedule/min_learning_rate",
                "0 to 1000",
                is_rate(min_learning_rate),
            ),
            Schedule::LinearWarmup { steps } => {
                require("/schedule/steps", "at least 1", steps >= 1)
            }
        }
    }
}

impl Optimizer {
    /// The step size before any schedule.
    #[must_use]
    pub const fn learning_rate(&self) -> f64 {
        match self {
            Self::Sgd { learning_rate, .. } => *learning_rate,
            Self::Adam(options) | Self::Adamw(options) => options.learning_rate,
        }
    }

    fn validate(&self) -> Result<(), InvalidSpec> {
        let rate = self.learning_rate();
        require(
            "/optimizer/learning_rate",
            "above 0, at most 1000",
            rate > 0.0 && is_rate(rate),
        )?;
        match self {
            Self::Sgd {
                momentum,
                weight_decay,
                nesterov,
                ..
            } => {
                require("/optimizer/momentum", "0 to below 1", is_share(*momentum))?;
                require(
                    "/optimizer/weight_decay",
                    "0 to 1000",
                    is_rate(*weight_decay),
                )?;
                let has_momentum = *momentum > 0.0 || !nesterov;
                require(
                    "/optimizer/nesterov",
                    "needs a momentum above 0",
                    has_momentum,
                )
            }
            Self::Adam(options) | Self::Adamw(options) => {
                require("/optimizer/beta1", "0 to below 1", is_share(options.beta1))?;
                require("/optimizer/beta2", "0 to below 1", is_share(options.beta2))?;
                let epsilon = options.epsilon > 0.0 && options.epsilon <= 1.0;
                require("/optimizer/epsilon", "above 0, at most 1", epsilon)?;
                require(
                    "/optimizer/weight_decay",
                    "0 to 1000",
                    is_rate(options.weight_decay),
                )
            }
        }
    }
}

fn validate_batch_size(batch_size: u32) -> Result<(), InvalidSpec> {
    require(
        "/batch_size",
        "1 to 65536",
        (1..=BATCH_SIZE_MAX).contains(&batch_size),
    )
}

fn require(pointer: &str, detail: &'static str, holds: bool) -> Result<(), InvalidSpec> {
    if holds {
        Ok(())
    } else {
        Err(InvalidSpec {
            pointer: pointer.to_owned(),
            detail,
        })
    }
}

const fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= NAME_BYTES_MAX
}

fn is_rate(rate: f64) -> bool {
    (0.0..=1000.0).contains(&rate)
}

fn is_share(share: f64) -> bool {
    (0.0..1.0).contains(&share)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn training() -> TrainingSpec {
        let blob = Sha256::of(b"data");
        TrainingSpec {
            program: Sha256::of(b"program"),
            weights: None,
            inputs: BTreeMap::from([(
                "x".into(),
                TensorRef {
                    blob,
                    dataset_version: None,
                    tensor: "images".into(),
                },
            )]),
            target: TensorRef {
                blob,
                dataset_version: None,
                tensor: "labels".into(),
            },
            output: 0,
            loss: Loss::CrossEntropy,
            optimizer: Optimizer::Sgd {
                learning_rate: 0.05,
                momentum: 0.9,
                weight_decay: 0.0,
                nesterov: false,
            },
            schedule: Schedule::Constant,
            epochs: 4,
            batch_size: 64,
            seed: 7,
            segment_steps: 10,
        }
    }

    #[test]
    fn a_blob_that_is_read_twice_is_listed_once() {
        assert_eq!(JobSpec::Training(training()).blobs().len(), 2);
    }

    #[test]
    fn a_field_out_of_bounds_is_named() {
        let pointer = |change: fn(&mut TrainingSpec)| {
            let mut spec = training();
            change(&mut spec);
            JobSpec::Training(spec).validate().unwrap_err().pointer
        };
        assert_eq!(JobSpec::Training(training()).validate(), Ok(()));
        assert_eq!(pointer(|it| it.epochs = 0), "/epochs");
        assert_eq!(pointer(|it| it.seed = 1 << 53), "/seed");
        assert_eq!(
            pointer(|it| it.batch_size = BATCH_SIZE_MAX + 1),
            "/batch_size"
        );
        assert_eq!(pointer(|it| it.inputs.clear()), "/inputs");
        assert_eq!(
            pointer(|it| it.optimizer = Optimizer::Adam(AdamOptions {
                learning_rate: f64::NAN,
                beta1: 0.9,
                beta2: 0.999,
                epsilon: 1e-8,
                weight_decay: 0.0
            })),
            "/optimizer/learning_rate"
        );
    }

    #[test]
    fn files_of_a_dataset_are_no_blobs_and_of_one_version() {
        let version = DatasetVersionId::generate();
        let mut spec = training();
        spec.target.dataset_version = Some(version);
        let both = JobSpec::Training(spec.clone());
        assert_eq!(both.validate().unwrap_err().pointer, "/inputs/x/blob");
        let images = spec.inputs.get_mut("x").unwrap();
        images.dataset_version = Some(DatasetVersionId::generate());
        let two = JobSpec::Training(spec.clone());
        let pointer = two.validate().unwrap_err().pointer;
        assert_eq!(pointer, "/target/dataset_version");
        spec.target.dataset_version = spec.inputs["x"].dataset_version;
        let one = JobSpec::Training(spec);
        assert_eq!(one.validate(), Ok(()));
        assert_eq!(one.blobs(), BTreeSet::from([one.program()]));
        let (_, files) = one.dataset().unwrap();
        assert_eq!(files, BTreeSet::from([Sha256::of(b"data")]));
    }

    #[test]
    fn an_unknown_field_is_refused() {
        let mut json = serde_json::to_value(JobSpec::Training(training())).unwrap();
        json["epoch"] = 4.into();
        assert!(serde_json::from_value::<JobSpec>(json).is_err());
    }
}
