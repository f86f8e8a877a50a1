//! Job files: the specification as the API takes it, in which a blob may also be `@path`, a file
//! beside the job file that is uploaded first.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::Value;

use super::{blobs, http::Api};

/// Reads a job file and uploads what it names by path.
///
/// # Errors
/// When a file is missing or an upload fails.
pub async fn load(api: &Api, path: &Path) -> anyhow::Result<Value> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let mut spec: Value =
        serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    for file in files(&spec) {
        let digest = blobs::upload(api, &folder.join(&file)).await?;
        replace(
            &mut spec,
            &format!("@{}", file.display()),
            &digest.to_string(),
        );
    }
    Ok(spec)
}

/// Every file that is named, each once.
fn files(value: &Value) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = match value {
        Value::String(text) => text
            .strip_prefix('@')
            .map(PathBuf::from)
            .into_iter()
            .collect(),
        Value::Array(items) => items.iter().flat_map(files).collect(),
        Value::Object(fields) => fields.values().flat_map(files).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => Vec::new(),
    };
    found.sort();
    found.dedup();
    found
}

fn replace(value: &mut Value, from: &str, to: &str) {
    match value {
        Value::String(text) if text == from => to.clone_into(text),
        Value::Array(items) => items.iter_mut().for_each(|item| replace(item, from, to)),
        Value::Object(fields) => fields
            .values_mut()
            .for_each(|field| replace(field, from, to)),
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_named_file_is_uploaded_once() {
        let mut spec = json!({"program": "@a.pt2", "inputs": {"x": {"blob": "@b", "tensor": "@b"}}, "list": ["@a.pt2"]});
        assert_eq!(files(&spec), [PathBuf::from("a.pt2"), PathBuf::from("b")]);
        replace(&mut spec, "@a.pt2", "00");
        assert_eq!(
            (&spec["program"], &spec["list"][0]),
            (&json!("00"), &json!("00"))
        );
    }
}
