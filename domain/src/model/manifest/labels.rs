//! What the classes of an output are called.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{misfit, output};
use crate::fit::{Misfit, ProgramFacts};

/// Labels of one output.
pub const LABELS_MAX: usize = 10_000;
/// Characters of a label.
pub const LABEL_CHARS_MAX: usize = 200;

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

impl Labels {
    pub(super) fn misfits(&self, infer: &ProgramFacts) -> Vec<Misfit> {
        let mut misfits = Vec::new();
        match output(infer, &self.output) {
            Err(detail) => misfits.push(misfit("/labels/output", detail)),
            Ok(output) => {
                let (names, classes) = (self.names.len(), output.row.last().unwrap_or(&0));
                if u64::try_from(names).ok() != Some(*classes) {
                    let detail = format!("{names} names for {classes} classes");
                    misfits.push(misfit("/labels/names", detail));
                }
            }
        }
        if self.names.len() > LABELS_MAX {
            let detail = format!("expected {LABELS_MAX} at most");
            misfits.push(misfit("/labels/names", detail));
        }
        for (place, name) in self.names.iter().enumerate().take(LABELS_MAX) {
            if !crate::name::is_name(name, LABEL_CHARS_MAX) {
                let detail = format!("expected 1 to {LABEL_CHARS_MAX} characters, none of control");
                misfits.push(misfit(format!("/labels/names/{place}"), detail));
            }
        }
        misfits
    }
}
