//! Files of datasets, as the child behind its walls reads them before their version is published.

use std::{
    cell::Cell,
    panic,
    sync::{Arc, Once},
};

use comptoir_checker::child::read_at_hand;
use comptoir_domain::dataset::{Facts, Format};
use parquet::{
    basic::Compression,
    data_type::Int64Type,
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};

use crate::seeds::Seed;

/// What the first byte of an input chooses among.
const FORMATS: [Format; 4] = [
    Format::Safetensors,
    Format::Csv,
    Format::Parquet,
    Format::JsonLines,
];

thread_local! {
    static MAY_STUMBLE: Cell<bool> = const { Cell::new(false) };
}

/// Reads a file; `None` where the reader of others stumbles over it: that ends the child, and the file is refused.
fn read(format: Format, bytes: &[u8]) -> Option<Result<Option<Facts>, String>> {
    static QUIET: Once = Once::new();
    // libFuzzer takes every panic for a find, caught or not.
    QUIET.call_once(|| {
        let loud = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !MAY_STUMBLE.get() {
                loud(panic);
            }
        }));
    });
    MAY_STUMBLE.set(format == Format::Parquet);
    let read = panic::catch_unwind(|| read_at_hand(format, bytes));
    let stumbled = MAY_STUMBLE.replace(false);
    match read {
        Ok(read) => Some(read),
        Err(_) if stumbled => None,
        Err(panic) => panic::resume_unwind(panic),
    }
}

/// A format, and a file of it.
pub fn file(input: &[u8]) -> bool {
    let Some((choice, bytes)) = input.split_first() else {
        return false;
    };
    let format = FORMATS[usize::from(*choice) % FORMATS.len()];
    let Some(read_once) = read(format, bytes) else {
        return false;
    };
    let found = match read_once {
        Ok(found) => found.expect("each of these formats has facts"),
        Err(reason) => {
            assert!(!reason.trim().is_empty(), "who is refused is told why");
            return false;
        }
    };
    found.check().expect("no more is found than may be");
    let told = serde_json::to_vec(&found).expect("facts serialise");
    let heard: Facts = serde_json::from_slice(&told).expect("what was told is understood");
    assert_eq!(heard, found);
    let again = read(format, bytes);
    assert_eq!(again, Some(Ok(Some(found))), "the same again");
    true
}

/// Files that are read.
pub fn files() -> Vec<Seed> {
    let tensors = br#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let length = (tensors.len() as u64).to_le_bytes();
    let tensors = [&length[..], tensors, &[0; 4]].concat();
    let seed = |name: &str, format: u8, bytes: &[u8]| Seed::new(name, [&[format], bytes].concat());
    vec![
        seed("tensors", 0, &tensors),
        seed("table", 1, b"name,number\na,1\n\"b\nc\",2\n"),
        seed("columns", 2, &parquet("REQUIRED INT64 n", None)),
        seed(
            "lists",
            2,
            &parquet("REPEATED INT64 n", Some((&[1, 1, 1], &[0, 1, 0]))),
        ),
        seed(
            "lines",
            3,
            b"{\"a\":1,\"b\":[{}]}\n{\"a\":null,\"c\":\"x\"}\n",
        ),
    ]
}

/// Three values in one column, at these levels.
fn parquet(column: &str, levels: Option<(&[i16], &[i16])>) -> Vec<u8> {
    let schema = parse_message_type(&format!("message m {{ {column}; }}")).expect("a schema");
    let properties = WriterProperties::builder()
        .set_compression(Compression::UNCOMPRESSED)
        .build();
    let mut bytes = Vec::new();
    let file = SerializedFileWriter::new(&mut bytes, Arc::new(schema), properties.into());
    let mut file = file.expect("a file");
    let mut group = file.next_row_group().expect("a group");
    let mut column = group.next_column().expect("a column").expect("one");
    column
        .typed::<Int64Type>()
        .write_batch(&[1, 2, 3], levels.map(|it| it.0), levels.map(|it| it.1))
        .expect("three values");
    column.close().expect("a column");
    group.close().expect("a group");
    file.close().expect("a file");
    bytes
}
