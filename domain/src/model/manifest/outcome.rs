//! What is made of an output of `infer`, declared as data. `comptoir-text` makes it, bit by bit the same on every machine.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Labels, TextInput, misfit, output};
use crate::fit::{Misfit, ProgramFacts, RowShape};

/// Classes that may be asked for.
pub const TOP_K_MAX: u32 = 10_000;
/// The element type of numbers that something is made of.
const DTYPE: &str = "F32";

/// What is made of an output, in the order of the fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ModelResult)]
pub struct Outcome {
    /// The output of `infer`.
    pub output: String,
    /// How the rows of all tokens of a text become one. Left out: there is one row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub pooling: Option<Pooling>,
    /// Is the vector scaled to a length of 1 (L2)?
    #[serde(default, skip_serializing_if = "is_no")]
    #[schema(default = false)]
    pub normalise: bool,
    /// Do the numbers become probabilities?
    #[serde(default, skip_serializing_if = "is_no")]
    #[schema(default = false)]
    pub softmax: bool,
    /// How many of the largest are given, with their places and labels. Left out: all, in their order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 10_000, nullable = false)]
    pub top_k: Option<NonZeroU32>,
}

/// How the rows of a text's tokens become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ModelPooling)]
pub enum Pooling {
    /// Their mean, of those that are tokens of the text.
    Mean,
    /// The first one.
    Cls,
    /// The last one that is a token of the text.
    Last,
}

/// What a row of a call becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Given {
    /// A vector.
    Embedding {
        /// How many numbers it has.
        dimensions: u64,
    },
    /// A number for each class.
    Classes {
        /// How many there are.
        classes: u64,
        /// How many of them are given, largest first; `None`: all, in their order.
        top_k: Option<u32>,
    },
}

impl Outcome {
    /// What a row of a call becomes; `None` where it does not fit the program.
    #[must_use]
    pub fn given(&self, infer: &ProgramFacts, labels: Option<&Labels>) -> Option<Given> {
        let width = *output(infer, &self.output).ok()?.row.last()?;
        let are_classes = self.softmax
            || self.top_k.is_some()
            || labels.is_some_and(|it| it.output == self.output);
        Some(if are_classes {
            Given::Classes {
                classes: width,
                top_k: self.top_k.map(NonZeroU32::get),
            }
        } else {
            Given::Embedding { dimensions: width }
        })
    }

    pub(super) fn misfits(
        &self,
        infer: &ProgramFacts,
        (text, labels): (Option<&TextInput>, Option<&Labels>),
    ) -> Vec<Misfit> {
        let mut misfits = Vec::new();
        if self.normalise && (self.softmax || self.top_k.is_some()) {
            let detail = "a vector of length 1 has neither probabilities nor classes";
            misfits.push(misfit("/result/normalise", detail));
        }
        match output(infer, &self.output) {
            Err(detail) => misfits.push(misfit("/result/output", detail)),
            Ok(output) => misfits.extend(self.shape_misfits(infer, text, output)),
        }
        if let Some(labels) = labels
            && (self.softmax || self.top_k.is_some())
            && labels.output != self.output
        {
            let detail = format!("`result` is made of the classes of `{}`", self.output);
            misfits.push(misfit("/labels/output", detail));
        }
        misfits
    }

    fn shape_misfits(
        &self,
        infer: &ProgramFacts,
        text: Option<&TextInput>,
        output: &RowShape,
    ) -> Vec<Misfit> {
        let mut misfits = Vec::new();
        let RowShape { dtype, row, .. } = output;
        if dtype != DTYPE {
            let detail = format!("it holds {dtype}; expected {DTYPE}");
            misfits.push(misfit("/result/output", detail));
        }
        let width = match (self.pooling, &row[..]) {
            (None, [width]) if *width > 0 => *width,
            (None, _) => {
                let detail = format!("a row has the shape {row:?}; without pooling expected [n]");
                misfits.push(misfit("/result/output", detail));
                return misfits;
            }
            (Some(_), _) if text.is_none() => {
                let detail = "it is of tokens, and the version takes no texts";
                misfits.push(misfit("/result/pooling", detail));
                return misfits;
            }
            (Some(_), [tokens, width])
                if *width > 0 && text.and_then(|it| it.tokens_max(infer)) == Some(*tokens) =>
            {
                *width
            }
            (Some(_), _) => {
                let detail = format!("a row has the shape {row:?}; expected [n, m] for n tokens");
                misfits.push(misfit("/result/pooling", detail));
                return misfits;
            }
        };
        let top_k = self.top_k.map_or(0, NonZeroU32::get);
        if u64::from(top_k) > width.min(u64::from(TOP_K_MAX)) {
            let detail = format!("there are {width} classes, and {TOP_K_MAX} are given at most");
            misfits.push(misfit("/result/top_k", detail));
        }
        misfits
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes it so")]
const fn is_no(it: &bool) -> bool {
    !*it
}
