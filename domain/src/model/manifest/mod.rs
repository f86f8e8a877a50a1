//! What a version of a model consists of. Nothing of it ever changes, and its digest names all of it.

mod generator;
mod labels;
mod outcome;
mod text;

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    digest::Sha256,
    fit::{self, Misfit, ProgramFacts, RowShape},
    tensors::TensorsHeader,
};

pub use generator::{CHAT_SPECIALS_MAX, Chat, ENDS_MAX, Generator};
pub use labels::{LABEL_CHARS_MAX, LABELS_MAX, Labels};
pub use outcome::{Given, Outcome, Pooling, TOP_K_MAX};
pub use text::{TEXT_TOKENS_MAX, TextInput, Vocabulary, ZEROS_MAX};

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
    /// How texts become inputs. Absent: it takes tensors alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub text: Option<TextInput>,
    /// What is made of an output. Absent: it gives tensors alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub result: Option<Outcome>,
    /// How texts are written. Absent: it writes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub generation: Option<Generator>,
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
    /// Writes texts, a token at a time: `generation` says how.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, nullable = false)]
    pub generate: Option<Sha256>,
}

/// One of the programs of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// Answers calls.
    Infer,
    /// Goes on learning.
    Train,
    /// Writes texts.
    Generate,
}

impl Program {
    /// Its name in the manifest.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Infer => "infer",
            Self::Train => "train",
            Self::Generate => "generate",
        }
    }
}

impl Programs {
    /// Those that there are.
    pub fn iter(&self) -> impl Iterator<Item = (Program, Sha256)> {
        let train = self.train.map(|sha256| (Program::Train, sha256));
        let generate = self.generate.map(|sha256| (Program::Generate, sha256));
        let infer = std::iter::once((Program::Infer, self.infer));
        infer.chain(train).chain(generate)
    }
}

/// What was read of the blobs that a manifest names.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// What is known of each program.
    pub programs: &'a BTreeMap<Sha256, Arc<ProgramFacts>>,
    /// The head of the weights, where the manifest names some.
    pub weights: Option<&'a TensorsHeader>,
    /// The tokenizer, where the manifest names one.
    pub vocabulary: Option<Vocabulary>,
}

impl Manifest {
    /// What a training job made: its program, which goes on learning, with what it learned.
    #[must_use]
    pub const fn trained(program: Sha256, weights: Sha256) -> Self {
        Self {
            programs: Programs {
                infer: program,
                train: Some(program),
                generate: None,
            },
            weights: Some(weights),
            labels: None,
            text: None,
            result: None,
            generation: None,
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
        let tokenizer = self.text.iter().map(|it| it.tokenizer);
        let mut blobs: Vec<_> = programs.chain(self.weights).chain(tokenizer).collect();
        blobs.sort_unstable();
        blobs.dedup();
        blobs
    }

    /// The blobs that whoever answers calls needs.
    #[must_use]
    pub fn hosted(&self) -> Vec<Sha256> {
        let Programs {
            infer, generate, ..
        } = self.programs;
        let others = [generate, self.weights].into_iter().flatten();
        std::iter::once(infer).chain(others).collect()
    }

    /// What does not fit together: JSON pointers into the manifest and reasons, [`MISFITS_MAX`] at most.
    #[must_use]
    pub fn misfits(&self, parts: Parts<'_>) -> Vec<Misfit> {
        let mut misfits = self.program_misfits(parts);
        misfits.extend(self.generation_misfits(parts));
        if let Some(infer) = parts.programs.get(&self.programs.infer) {
            let (text, labels) = (self.text.as_ref(), self.labels.as_ref());
            misfits.extend(labels.iter().flat_map(|it| it.misfits(infer)));
            misfits.extend(
                text.iter()
                    .flat_map(|it| it.misfits(infer, parts.vocabulary)),
            );
            let result = self.result.iter();
            misfits.extend(result.flat_map(|it| it.misfits(infer, (text, labels))));
        }
        misfits.truncate(MISFITS_MAX);
        misfits
    }

    fn program_misfits(&self, parts: Parts<'_>) -> Vec<Misfit> {
        let mut misfits = Vec::new();
        for (role, sha256) in self.programs.iter() {
            let Some(program) = parts.programs.get(&sha256) else {
                continue;
            };
            if role == Program::Train && !program.is_trainable {
                let why =
                    "the program was not exported as training IR, or has no parameter to learn";
                misfits.push(misfit("/programs/train", why));
            }
            for detail in parts
                .weights
                .iter()
                .flat_map(|it| fit::weights(program, it))
            {
                let detail = format!("for `{}`: {detail}", role.as_str());
                misfits.push(misfit("/weights", detail));
            }
        }
        let mut archives = self.programs.iter().map(|(_, sha256)| sha256);
        if self.weights.is_none() && archives.any(|it| it != self.programs.infer) {
            let why = "programs of two archives share one file of weights; name it";
            misfits.push(misfit("/weights", why));
        }
        misfits
    }
}

fn misfit(pointer: impl Into<String>, detail: impl Into<String>) -> Misfit {
    Misfit {
        pointer: pointer.into(),
        detail: detail.into(),
    }
}

/// An output of a program; else why it has none of that name.
fn output<'a>(infer: &'a ProgramFacts, name: &str) -> Result<&'a RowShape, String> {
    let found = infer.outputs.iter().find(|it| it.name == name);
    found.ok_or_else(|| {
        let names: Vec<_> = infer.outputs.iter().map(|it| it.name.as_str()).collect();
        let names = names.join("`, `");
        format!("`infer` has no such output; it has `{names}`")
    })
}

#[cfg(test)]
mod tests;
