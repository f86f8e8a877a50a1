//! JSON Lines: one object per line, in UTF-8. Columns are the fields of all lines.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _},
};

use comptoir_domain::dataset::{
    COLUMN_NAME_BYTES_MAX, COLUMNS_MAX, Column, Facts, RECORD_BYTES_MAX,
};
use serde_json::{Map, Value};

use super::Refusal;
use crate::source::Source;

/// Finds the fields of all lines, and counts these. Nesting is limited to 127 levels by the parser.
pub fn read(source: &Source) -> Result<Facts, Refusal> {
    let mut lines = BufReader::new(source.from(0));
    let (mut columns, mut rows) = (BTreeMap::<String, &'static str>::new(), 0_u64);
    let mut line = Vec::new();
    loop {
        line.clear();
        // A line that goes on and on is cut where it becomes too long, and is never whole in memory.
        let limit = RECORD_BYTES_MAX.saturating_add(1);
        let count = lines.by_ref().take(limit).read_until(b'\n', &mut line)?;
        if count == 0 {
            break;
        }
        rows = rows.saturating_add(1);
        if count as u64 > RECORD_BYTES_MAX {
            return Err(Refusal::of(format!(
                "line {rows} has more than {RECORD_BYTES_MAX} bytes"
            )));
        }
        let object: Map<String, Value> = serde_json::from_slice(&line)
            .map_err(|error| Refusal::of(format!("line {rows} is no JSON object: {error}")))?;
        for (name, value) in object {
            if name.len() > COLUMN_NAME_BYTES_MAX {
                return Err(Refusal::of(format!(
                    "a field of line {rows} has a name of more than {COLUMN_NAME_BYTES_MAX} bytes"
                )));
            }
            note(&mut columns, name, kind(&value));
        }
        if columns.len() > COLUMNS_MAX {
            return Err(Refusal::of(format!(
                "more than {COLUMNS_MAX} different fields"
            )));
        }
    }
    let columns = columns.into_iter().map(|(name, kind)| Column {
        name,
        kind: kind.to_owned(),
    });
    Ok(Facts {
        rows: Some(rows),
        columns: columns.collect(),
    })
}

/// A field that holds different things in different lines is `mixed`, unless all but one of these are `null`.
fn note(columns: &mut BTreeMap<String, &'static str>, name: String, kind: &'static str) {
    let known = columns.entry(name).or_insert(kind);
    *known = match (*known, kind) {
        (known, kind) if known == kind => known,
        ("null", kind) => kind,
        (known, "null") => known,
        _ => "mixed",
    };
}

const fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "text",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
