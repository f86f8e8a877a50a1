//! What calls of a version take and give, read from its program and what its manifest says of it.

use comptoir_domain::{
    fit::{ProgramFacts, RowShape},
    model::{Given, Manifest, Outcome},
};
use serde::Serialize;
use utoipa::ToSchema;

/// An input or output of a call: a tensor whose first dimension is the rows.
#[derive(Serialize, ToSchema)]
struct Port {
    /// Its name in the program.
    name: String,
    /// As safetensors files name it.
    dtype: String,
    /// Dimensions of one row.
    row: Vec<u64>,
}

/// A version that takes texts, one for each row.
#[derive(Serialize, ToSchema)]
struct TextPort {
    /// Tokens of a text at most, those that are put around it included.
    tokens_max: u64,
}

/// A version that writes texts.
#[derive(Serialize, ToSchema)]
struct WritingPort {
    /// Tokens that a text may have, those of its prompt included.
    context: u32,
    /// Does it answer conversations, beside going on with prompts?
    chats: bool,
}

/// What each row becomes.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ResultPort {
    /// A vector.
    Embedding {
        /// How many numbers it has.
        dimensions: u64,
        /// Has it a length of 1?
        normalised: bool,
    },
    /// Numbers of classes.
    Classes {
        /// How many there are.
        classes: u64,
        /// How many are given, largest first; `null`: all, in their order.
        #[schema(required = true)]
        top_k: Option<u32>,
        /// Are they probabilities?
        probabilities: bool,
        /// Has the manifest names of them?
        labelled: bool,
    },
}

/// What `infer` takes and gives, read from its archive.
#[derive(Serialize, ToSchema)]
pub(super) struct CallSchema {
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    /// The fewest rows of one call.
    rows_min: u64,
    /// The most.
    rows_max: u64,
    /// Multiply-adds of one row.
    #[schema(value_type = String, pattern = "^(0|[1-9][0-9]*)$")]
    madds_per_row: String,
    /// Where it takes texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    text: Option<TextPort>,
    /// Where it writes texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    writing: Option<WritingPort>,
    /// What is made of an output.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    result: Option<ResultPort>,
}

impl From<&RowShape> for Port {
    fn from(shape: &RowShape) -> Self {
        Self {
            name: shape.name.clone(),
            dtype: shape.dtype.clone(),
            row: shape.row.clone(),
        }
    }
}

impl CallSchema {
    pub(super) fn new(manifest: &Manifest, infer: &ProgramFacts) -> Self {
        let (text, result) = (manifest.text.as_ref(), manifest.result.as_ref());
        let tokens_max = text.and_then(|it| it.tokens_max(infer));
        Self {
            inputs: infer.inputs.iter().map(Port::from).collect(),
            outputs: infer.outputs.iter().map(Port::from).collect(),
            rows_min: infer.batch_min,
            rows_max: infer.batch_max,
            madds_per_row: infer.madds_per_row.to_string(),
            text: tokens_max.map(|tokens_max| TextPort { tokens_max }),
            writing: manifest.generation.as_ref().map(|it| WritingPort {
                context: it.context,
                chats: it.chat.is_some(),
            }),
            result: result.and_then(|it| ResultPort::new(it, manifest, infer)),
        }
    }
}

impl ResultPort {
    fn new(outcome: &Outcome, manifest: &Manifest, infer: &ProgramFacts) -> Option<Self> {
        let labels = manifest.labels.as_ref();
        Some(match outcome.given(infer, labels)? {
            Given::Embedding { dimensions } => Self::Embedding {
                dimensions,
                normalised: outcome.normalise,
            },
            Given::Classes { classes, top_k } => Self::Classes {
                classes,
                top_k,
                probabilities: outcome.softmax,
                labelled: labels.is_some_and(|it| it.output == outcome.output),
            },
        })
    }
}
