//! `.pt2` archives, as the service and the worker read them, and as a price and a check need them.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Cursor, Read as _, Write as _},
};

use comptoir_domain::{
    digest::Sha256,
    fit::{self, ProgramFacts, RowShape},
    job::{InferenceSpec, JobSpec, TensorRef, Tier},
    program::{Archive, Program, contiguous_bytes},
    tensors::{TensorInfo, TensorsHeader, dtype_of},
};
use zip::{
    CompressionMethod, ZipArchive, ZipWriter,
    read::{ArchiveOffset, Config},
    write::SimpleFileOptions,
};

use crate::seeds::{self, Seed};

/// Archives and graphs that are no longer than this begin a search; longer ones take their time at every step.
const ARCHIVE_BYTES_MAX: usize = 32 << 10;
const GRAPH_BYTES_MAX: usize = 20 << 10;
/// What separates the parts of a graph's input: no JSON has it.
const SEPARATOR: u8 = 0;
/// Payloads that an input may ask for, and bytes of each.
const PAYLOADS_MAX: usize = 64;
const PAYLOAD_BYTES_MAX: usize = 20 << 10;
const NOTES: [(&str, &[u8]); 3] = [
    ("archive_format", b"pt2"),
    ("archive_version", b"0"),
    ("byteorder", b"little"),
];
const DOCUMENTS: [&str; 3] = [
    "models/model.json",
    "data/weights/model_weights_config.json",
    "data/constants/model_constants_config.json",
];

/// A whole archive.
pub fn archive(input: &[u8]) -> bool {
    let Ok(mut archive) = Archive::open(Cursor::new(input)) else {
        return false;
    };
    let payloads = archive.program().tensors.values();
    let payloads: BTreeSet<_> = payloads.map(|it| it.payload.clone()).collect();
    for payload in payloads {
        // One that is damaged shows only now; whoever runs the program reads it all the same.
        drop(archive.payload(&payload));
    }
    check(&archive.into_program());
    true
}

/// The documents of an archive whose zip is in order: searches get behind its checksums.
pub fn graph(input: &[u8]) -> bool {
    let archive = Archive::open(Cursor::new(packed(input)));
    let program = archive.map(Archive::into_program);
    program.is_ok_and(|program| {
        check(&program);
        true
    })
}

/// An archive of the documents and payload sizes in an input.
fn packed(input: &[u8]) -> Vec<u8> {
    let mut parts = input.split(|byte| *byte == SEPARATOR);
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let mut write = |path: &str, content: &[u8]| {
        zip.start_file(format!("it/{path}"), options)
            .and_then(|()| Ok(zip.write_all(content)?))
            .expect("a vector takes all bytes");
    };
    for (path, content) in NOTES {
        write(path, content);
    }
    for path in DOCUMENTS {
        write(path, parts.next().unwrap_or_default());
    }
    let mut written = BTreeSet::new();
    let sizes = parts.next().unwrap_or_default();
    let sizes = sizes.split(|byte| *byte == b'\n').take(PAYLOADS_MAX);
    for line in sizes.filter_map(|line| str::from_utf8(line).ok()) {
        let Some((path, size)) = line.split_once(' ') else {
            continue;
        };
        let size = size.parse().unwrap_or(0).min(PAYLOAD_BYTES_MAX);
        let is_payload = path.starts_with("data/") && !DOCUMENTS.contains(&path);
        if is_payload && path.len() < 100 && written.insert(path) {
            write(path, &vec![0; size]);
        }
    }
    zip.finish().expect("a vector takes all bytes").into_inner()
}

/// What must hold for every program that was read.
fn check(program: &Program) {
    assert!(
        1 <= program.batch.min && program.batch.min <= program.batch.max,
        "{:?}",
        program.batch
    );
    for (name, tensor) in &program.tensors {
        assert!(
            contiguous_bytes(tensor.dtype, &tensor.sizes).is_some(),
            "{name} has a size"
        );
        assert!(program.saved_name(name).is_some(), "{name} is saved");
    }
    let Ok(facts) = ProgramFacts::of(program) else {
        return;
    };
    let kept = serde_json::to_string(&facts).expect("facts are kept as JSON");
    assert!(!kept.contains("\\u0000"), "Postgres keeps no NUL: {kept}");
    let read: ProgramFacts = serde_json::from_str(&kept).expect("what is kept is read again");
    assert_eq!(read, facts);
    fits_itself(&facts);
}

/// A job that gives a program what it asks for fits, or is too large.
fn fits_itself(facts: &ProgramFacts) {
    let rows = facts.batch_min;
    let file = Sha256::of(b"rows");
    let mut tensors = BTreeMap::new();
    for input in &facts.inputs {
        let Some(info) = info(input, rows) else {
            return;
        };
        tensors.insert(input.name.clone(), info);
    }
    let inputs = tensors.keys().map(|name| {
        let tensor = TensorRef {
            blob: file,
            dataset_version: None,
            tensor: name.clone(),
        };
        (name.clone(), tensor)
    });
    let spec = JobSpec::Inference(InferenceSpec {
        program: Sha256::of(b"program"),
        weights: None,
        inputs: inputs.collect(),
        batch_size: u32::try_from(rows).unwrap_or(u32::MAX),
    });
    let head = TensorsHeader {
        tensors,
        data_start: 8,
        data_bytes: 0,
    };
    let files = BTreeMap::from([(file, head)]);
    match fit::check(&spec, Tier::Sampled, facts, &files) {
        Ok(fit) => assert!(fit.min_memory_bytes > 0),
        Err(misfits) => {
            let too_large = |it: &fit::Misfit| {
                ["too large", "would be", "no rows"]
                    .iter()
                    .any(|why| it.detail.contains(why))
            };
            let batches = rows > u64::from(u32::MAX);
            let fits = batches || facts.inputs.is_empty() || misfits.iter().any(too_large);
            assert!(fits, "{misfits:?}");
        }
    }
}

fn info(input: &RowShape, rows: u64) -> Option<TensorInfo> {
    let dtype = dtype_of(&input.dtype).expect("facts name element types as files do");
    let shape: Vec<u64> = [&[rows], input.row.as_slice()].concat();
    let bytes = contiguous_bytes(dtype, &shape)?;
    Some(TensorInfo {
        dtype,
        shape,
        bytes: 8..bytes.checked_add(8)?,
    })
}

/// Archives that are read.
pub fn archives() -> Vec<Seed> {
    seeds::archives(ARCHIVE_BYTES_MAX)
}

/// The documents of archives that are read.
pub fn graphs() -> Vec<Seed> {
    let archives = seeds::archives(usize::MAX);
    archives
        .into_iter()
        .map(|seed| {
            let input = unpacked(&seed.bytes);
            Seed::new(seed.name, input)
        })
        .filter(|seed| seed.bytes.len() <= GRAPH_BYTES_MAX)
        .collect()
}

/// The documents and payload sizes of an archive, as an input.
fn unpacked(archive: &[u8]) -> Vec<u8> {
    let config = Config {
        archive_offset: ArchiveOffset::Known(0),
    };
    let zip = ZipArchive::with_config(config, Cursor::new(archive));
    let mut zip = zip.expect("fixtures are archives");
    let (mut documents, mut sizes) = (BTreeMap::new(), String::new());
    for index in 0..zip.len() {
        let mut entry = zip.by_index(index).expect("fixtures are archives");
        let name = entry.name().expect("fixtures are archives").into_owned();
        let (_, path) = name.split_once('/').expect("fixtures have a folder");
        if let Some(place) = DOCUMENTS.iter().position(|it| *it == path) {
            let mut content = Vec::new();
            entry
                .read_to_end(&mut content)
                .expect("fixtures are archives");
            documents.insert(place, without_notes(&content));
        } else if path.starts_with("data/weights/") || path.starts_with("data/constants/") {
            sizes = format!("{sizes}{path} {}\n", entry.size());
        }
    }
    let mut input = Vec::new();
    for document in documents.values() {
        input.extend_from_slice(document);
        input.push(SEPARATOR);
    }
    input.extend_from_slice(sizes.as_bytes());
    input
}

/// The document without what readers skip, and without spaces: every byte that is left says something.
fn without_notes(document: &[u8]) -> Vec<u8> {
    let mut json = serde_json::from_slice(document).expect("fixtures are JSON");
    forget(&mut json);
    serde_json::to_vec(&json).expect("JSON is written as it was read")
}

fn forget(json: &mut serde_json::Value) {
    match json {
        serde_json::Value::Object(fields) => {
            for name in ["metadata", "hint", "module_call_graph", "stack_trace"] {
                fields.remove(name);
            }
            fields.values_mut().for_each(forget);
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(forget),
        _ => {}
    }
}
