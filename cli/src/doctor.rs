//! What this machine has of what the services need.

use std::path::PathBuf;

use serde_json::json;

use crate::{
    embedded,
    exit::{Exit, coded},
    output::Output,
};

/// Looks for each program and says what is missing.
///
/// # Errors
/// When something is missing.
pub fn run(output: Output) -> anyhow::Result<()> {
    let checks = [
        ("Postgres", embedded::find_postgres()),
        ("Redis", embedded::find_redis()),
        ("anvil", embedded::find_anvil()),
        ("worker", crate::demo::find_worker(None)),
    ];
    let missing = checks.iter().filter(|(_, found)| found.is_err()).count();
    let rows: Vec<_> = checks
        .iter()
        .map(|(name, found)| row(name, found))
        .collect();
    output.list(&json!({ "data": rows }), &["needs", "found"]);
    if missing == 0 {
        Ok(())
    } else {
        Err(coded(
            Exit::Failure,
            format!("{missing} of {} are missing", checks.len()),
        ))
    }
}

fn row(name: &str, found: &anyhow::Result<PathBuf>) -> serde_json::Value {
    let found = match found {
        Ok(path) => path.display().to_string(),
        Err(error) => format!("{error:#}"),
    };
    json!({ "needs": name, "found": found })
}
