//! Reading files as what they say they are: with libraries of others, and within limits.

mod json_lines;
mod parquet;
mod table;
mod tensors;

use std::io;

use comptoir_domain::dataset::{Facts, Format, InvalidFacts};

use crate::source::Source;

/// Why a file is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It is not what it says it is.
    #[error("{0}")]
    Content(String),
    /// It says too much.
    #[error(transparent)]
    Facts(#[from] InvalidFacts),
    /// It could not be read: because of what it says of itself, unless the parent gave no bytes ([`Source::has_failed`]).
    #[error("read the file")]
    Io(#[from] io::Error),
}

/// Why a file is not accepted, in words.
struct Reason(String);

impl<T: std::fmt::Display> From<T> for Reason {
    fn from(reason: T) -> Self {
        Self(reason.to_string())
    }
}

impl Refusal {
    fn of(reason: impl Into<Reason>) -> Self {
        Self::Content(reason.into().0)
    }
}

/// Reads a file as this format.
pub fn read(format: Format, source: &Source) -> Result<Option<Facts>, Refusal> {
    let facts = match format {
        Format::Safetensors => tensors::read(source)?,
        Format::Csv => table::read(source)?,
        Format::Parquet => parquet::read(source)?,
        Format::JsonLines => json_lines::read(source)?,
        Format::Other => return Ok(None),
    };
    facts.check()?;
    Ok(Some(facts))
}
