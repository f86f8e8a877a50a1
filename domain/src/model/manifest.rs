//! What a version of a model consists of. Nothing of it ever changes, and its digest names all of it.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    digest::Sha256,
    fit::{self, Misfit, ProgramFacts},
    tensors::TensorsHeader,
};

/// Labels of one output.
pub const LABELS_MAX: usize = 10_000;
/// Characters of a label.
pub const LABEL_CHARS_MAX: usize = 200;
/// Reasons that one refusal gives.
pub const MISFITS_MAX: usize = 100;

/// What a version of a model consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ModelManifest)]
pub struct Manifest {
    /// Its programs.
    pub programs: Programs,
    /// What all its programs compute with: a safetensors blob by parameter and buffer name. Absent: what the one archive holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, nullable = false)]
    pub weights: Option<Sha256>,
    /// What an output means, where it tells classes apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub labels: Option<Labels>,
}

/// `.pt2` archives by what they are for. They share the names of what they store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ModelPrograms)]
pub struct Programs {
    /// Answers calls.
    #[schema(value_type = String)]
    pub infer: Sha256,
    /// Goes on learning, in jobs of who may read the version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, nullable = false)]
    pub train: Option<Sha256>,
}

/// What the classes of an output are called, in the order of its last dimension.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ModelLabels)]
pub struct Labels {
    /// The output of `infer`.
    pub output: String,
    /// Their names.
    #[schema(min_items = 1, max_items = 10_000)]
    pub names: Vec<String>,
}

/// One of the programs of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// Answers calls.
    Infer,
    /// Goes on learning.
    Train,
}

impl Program {
    /// Its name in the manifest.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Infer => "infer",
            Self::Train => "train",
        }
    }
}

impl Programs {
    /// Those that there are.
    pub fn iter(&self) -> impl Iterator<Item = (Program, Sha256)> {
        let train = self.train.map(|sha256| (Program::Train, sha256));
        std::iter::once((Program::Infer, self.infer)).chain(train)
    }
}

/// What was read of the blobs that a manifest names.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// What is known of each program.
    pub programs: &'a BTreeMap<Sha256, Arc<ProgramFacts>>,
    /// The head of the weights, where the manifest names some.
    pub weights: Option<&'a TensorsHeader>,
}

impl Manifest {
    /// What a training job made: its program, which goes on learning, with what it learned.
    #[must_use]
    pub const fn trained(program: Sha256, weights: Sha256) -> Self {
        Self {
            programs: Programs {
                infer: program,
                train: Some(program),
            },
            weights: Some(weights),
            labels: None,
        }
    }

    /// What names the version, everything in it included: the SHA-256 of its canonical form (RFC 8785).
    #[must_use]
    pub fn digest(&self) -> Sha256 {
        Sha256::of_document(self).expect("digests and texts have a JSON form")
    }

    /// Every blob that it names, once.
    #[must_use]
    pub fn blobs(&self) -> Vec<Sha256> {
        let programs = self.programs.iter().map(|(_, sha256)| sha256);
        let mut blobs: Vec<_> = programs.chain(self.weights).collect();
        blobs.sort_unstable();
        blobs.dedup();
        blobs
    }

    /// What does not fit together: JSON pointers into the manifest and reasons, [`MISFITS_MAX`] at most.
    #[must_use]
    pub fn misfits(&self, parts: Parts<'_>) -> Vec<Misfit> {
        let mut misfits = Vec::new();
        let mut refuse = |pointer: &str, detail: String| {
            misfits.push(Misfit {
                pointer: pointer.to_owned(),
                detail,
            });
        };
        let facts = |sha256: &Sha256| parts.programs.get(sha256);
        for (role, sha256) in self.programs.iter() {
            let Some(program) = facts(&sha256) else {
                continue;
            };
            if role == Program::Train && !program.is_trainable {
                let why =
                    "the program was not exported as training IR, or has no parameter to learn";
                refuse("/programs/train", why.to_owned());
            }
            for detail in parts
                .weights
                .iter()
                .flat_map(|it| fit::weights(program, it))
            {
                refuse("/weights", format!("for `{}`: {detail}", role.as_str()));
            }
        }
        if self.weights.is_none()
            && self
                .programs
                .train
                .is_some_and(|it| it != self.programs.infer)
        {
            refuse(
                "/weights",
                "programs of two archives share one file of weights; name it".to_owned(),
            );
        }
        if let (Some(labels), Some(infer)) = (&self.labels, facts(&self.programs.infer)) {
            for (pointer, detail) in labels.refusals(infer) {
                refuse(&pointer, detail);
            }
        }
        misfits.truncate(MISFITS_MAX);
        misfits
    }
}

impl Labels {
    fn refusals(&self, program: &ProgramFacts) -> Vec<(String, String)> {
        let mut refusals = Vec::new();
        let mut refuse = |pointer: &str, why: String| refusals.push((pointer.to_owned(), why));
        match program.outputs.iter().find(|it| it.name == self.output) {
            None => {
                let names: Vec<_> = program.outputs.iter().map(|it| it.name.as_str()).collect();
                let names = names.join("`, `");
                refuse(
                    "/labels/output",
                    format!("`infer` has no such output; it has `{names}`"),
                );
            }
            Some(output) => {
                let classes = output.row.last().copied().unwrap_or_default();
                if u64::try_from(self.names.len()).ok() != Some(classes) {
                    let count = self.names.len();
                    refuse(
                        "/labels/names",
                        format!("{count} names for {classes} classes"),
                    );
                }
            }
        }
        if self.names.len() > LABELS_MAX {
            refuse("/labels/names", format!("expected {LABELS_MAX} at most"));
        }
        for (place, name) in self.names.iter().enumerate().take(LABELS_MAX) {
            if !crate::name::is_name(name, LABEL_CHARS_MAX) {
                let why = format!("expected 1 to {LABEL_CHARS_MAX} characters, none of control");
                refuse(&format!("/labels/names/{place}"), why);
            }
        }
        refusals
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fit::{RowShape, Weight},
        program::graph::ScalarType,
        tensors::TensorInfo,
    };

    const INFER: Sha256 = Sha256([1; 32]);
    const TRAIN: Sha256 = Sha256([2; 32]);
    const WEIGHTS: Sha256 = Sha256([3; 32]);

    fn facts() -> ProgramFacts {
        let row = |name: &str, row: &[u64]| RowShape {
            name: name.to_owned(),
            dtype: "F32".to_owned(),
            row: row.to_vec(),
            row_bytes: row.iter().product::<u64>() * 4,
        };
        let weight = Weight {
            saved_as: "fc.weight".to_owned(),
            dtype: "F32".to_owned(),
            sizes: vec![3, 4],
            is_needed: true,
        };
        ProgramFacts {
            torch_version: "2.13.0".to_owned(),
            is_trainable: true,
            batch_min: 1,
            batch_max: u64::MAX,
            inputs: vec![row("x", &[4])],
            outputs: vec![row("logits", &[3])],
            weights: BTreeMap::from([("fc.weight".to_owned(), weight)]),
            madds_per_row: 12,
            stored_bytes: 48,
            learned_bytes: 48,
            value_bytes: vec![0, 12],
        }
    }

    fn head(shape: &[u64]) -> TensorsHeader {
        let info = TensorInfo {
            dtype: ScalarType::F32,
            shape: shape.to_vec(),
            bytes: 0..48,
        };
        TensorsHeader {
            tensors: BTreeMap::from([("fc.weight".to_owned(), info)]),
            data_start: 0,
            data_bytes: 48,
        }
    }

    fn manifest() -> Manifest {
        Manifest {
            programs: Programs {
                infer: INFER,
                train: Some(TRAIN),
            },
            weights: Some(WEIGHTS),
            labels: Some(Labels {
                output: "logits".to_owned(),
                names: ["a", "b", "c"].map(str::to_owned).to_vec(),
            }),
        }
    }

    fn pointers(
        manifest: &Manifest,
        train: ProgramFacts,
        head: Option<&TensorsHeader>,
    ) -> Vec<String> {
        let programs = BTreeMap::from([(INFER, Arc::new(facts())), (TRAIN, Arc::new(train))]);
        let parts = Parts {
            programs: &programs,
            weights: head,
        };
        let misfits = manifest.misfits(parts);
        misfits.into_iter().map(|it| it.pointer).collect()
    }

    #[test]
    fn programs_and_weights_fit_together_or_each_misfit_is_named() {
        let good = head(&[3, 4]);
        assert!(pointers(&manifest(), facts(), Some(&good)).is_empty());
        let wide = head(&[3, 5]);
        assert_eq!(pointers(&manifest(), facts(), Some(&wide)), ["/weights"; 2]);
        let fixed = ProgramFacts {
            is_trainable: false,
            ..facts()
        };
        assert_eq!(
            pointers(&manifest(), fixed, Some(&good)),
            ["/programs/train"]
        );
    }

    #[test]
    fn two_archives_share_one_file_of_weights() {
        let without = Manifest {
            weights: None,
            ..manifest()
        };
        assert_eq!(pointers(&without, facts(), None), ["/weights"]);
        let one = Manifest {
            programs: Programs {
                infer: INFER,
                train: Some(INFER),
            },
            ..without
        };
        assert!(pointers(&one, facts(), None).is_empty());
    }

    #[test]
    fn labels_name_each_class_of_an_output() {
        let labelled = |output: &str, names: &[&str]| Manifest {
            labels: Some(Labels {
                output: output.to_owned(),
                names: names.iter().map(|it| (*it).to_owned()).collect(),
            }),
            ..manifest()
        };
        let refused = |it: Manifest| pointers(&it, facts(), None);
        assert_eq!(
            refused(labelled("scores", &["a", "b", "c"])),
            ["/labels/output"]
        );
        assert_eq!(refused(labelled("logits", &["a", "b"])), ["/labels/names"]);
        assert_eq!(
            refused(labelled("logits", &["a", "b\n", ""])),
            ["/labels/names/1", "/labels/names/2"]
        );
    }

    #[test]
    fn what_names_a_version_changes_with_every_part_of_it() {
        let changed = [
            Manifest {
                weights: None,
                ..manifest()
            },
            Manifest {
                labels: None,
                ..manifest()
            },
            Manifest {
                programs: Programs {
                    infer: INFER,
                    train: None,
                },
                ..manifest()
            },
            Manifest {
                programs: Programs {
                    infer: TRAIN,
                    train: Some(TRAIN),
                },
                ..manifest()
            },
        ];
        for other in &changed {
            assert_ne!(other.digest(), manifest().digest());
        }
        let text = serde_json::to_string(&changed[2]).unwrap();
        assert!(!text.contains("null"), "what is absent is left out: {text}");
        assert_eq!(manifest().blobs(), [INFER, TRAIN, WEIGHTS]);
    }
}
