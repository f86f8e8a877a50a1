//! Job files: the specification as the API takes it, in which a blob may also be `@path`, a file
//! beside the job file that is uploaded first.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::Value;

use super::{blobs, datasets, http::Api};
use crate::args::SpecArgs;

/// What is to be computed: the job file, with the file of a dataset that is named beside it.
///
/// # Errors
/// As [`load`]; or when there is no such file of a dataset.
pub async fn of(api: &Api, args: &SpecArgs) -> anyhow::Result<Value> {
    let mut spec = load(api, &args.spec).await?;
    if let (Some(dataset), Some(path)) = (&args.dataset, &args.path) {
        let (version, sha256) = datasets::find_file(api, (dataset, args.number), path).await?;
        read_from(&mut spec, &version, &sha256.to_string());
    }
    Ok(spec)
}

/// Every tensor that names no file is read from this one.
fn read_from(spec: &mut Value, version: &str, sha256: &str) {
    let read = |tensor: &mut Value| {
        if tensor.is_object() && tensor["blob"].is_null() {
            tensor["blob"] = sha256.into();
            tensor["dataset_version"] = version.into();
        }
    };
    if let Some(inputs) = spec["inputs"].as_object_mut() {
        inputs.values_mut().for_each(read);
    }
    if let Some(target) = spec.get_mut("target") {
        read(target);
    }
}

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
    fn tensors_that_name_no_file_are_read_from_the_dataset() {
        let mut spec = json!({"inputs": {"x": {"tensor": "a"}, "y": {"blob": "00", "tensor": "b"}}, "target": {"tensor": "c"}});
        read_from(&mut spec, "dsv_1", "ff");
        let of_dataset =
            |tensor: &str| json!({"blob": "ff", "dataset_version": "dsv_1", "tensor": tensor});
        assert_eq!(spec["inputs"]["x"], of_dataset("a"));
        assert_eq!(spec["inputs"]["y"], json!({"blob": "00", "tensor": "b"}));
        assert_eq!(spec["target"], of_dataset("c"));
        let mut inference = json!({"inputs": {"x": {"tensor": "a"}}});
        read_from(&mut inference, "dsv_1", "ff");
        assert!(inference.get("target").is_none());
    }

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
