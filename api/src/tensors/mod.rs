//! Tensors in bodies of calls: nested JSON arrays, or a safetensors file.

mod json;
mod safetensors;

use comptoir_domain::{fit::RowShape, program::graph::ScalarType, tensors::dtype_of};

pub(crate) use self::{
    json::{Nested, Sent, read_body, read_numbers},
    safetensors::{read_file, write_file},
};

/// What a body lacks: JSON pointers and reasons.
pub(crate) type Refusals = Vec<(String, String)>;

/// What an input must be.
#[derive(Debug, Clone)]
pub(crate) struct Port {
    pub name: String,
    pub dtype: ScalarType,
    pub row: Vec<u64>,
}

impl Port {
    /// The inputs or outputs of a program; `None` for an element type that has no name.
    pub(crate) fn all(shapes: &[RowShape]) -> Option<Vec<Self>> {
        let ports = shapes.iter().map(|it| {
            Some(Self {
                name: it.name.clone(),
                dtype: dtype_of(&it.dtype)?,
                row: it.row.clone(),
            })
        });
        ports.collect()
    }

    fn pointer(&self) -> String {
        format!("/inputs/{}", escape(&self.name))
    }
}

/// A name as a part of a JSON pointer (RFC 6901).
fn escape(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests;
