//! Real archives, and the means to take one apart and put it together differently.

use std::io::{Cursor, Read, Write};

use comptoir_domain::program::{Archive, ArchiveError, Program};
use serde_json::Value;
use zip::{CompressionMethod, ZipArchive, ZipWriter, write::SimpleFileOptions};

macro_rules! archives {
    ($($name:ident = $path:literal;)+) => { $(pub const $name: &[u8] = include_bytes!($path);)+ };
}

archives! {
    MLP = "../../../examples/digits/mlp.pt2";
    CONVNET = "../../../examples/digits/convnet.pt2";
    ENCODER = "../../../examples/digits/encoder.pt2";
    MEMORY = "../../fixtures/memory.pt2";
}

/// An archive of `domain/fixtures`.
pub fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(format!(
        "{}/fixtures/{name}.pt2",
        env!("CARGO_MANIFEST_DIR")
    ))
    .expect("a well-formed archive")
}

pub fn open(bytes: &[u8]) -> Result<Archive<Cursor<&[u8]>>, ArchiveError> {
    Archive::open(Cursor::new(bytes))
}

pub fn program(bytes: &[u8]) -> Program {
    open(bytes)
        .unwrap_or_else(|error| panic!("{} bytes: {error:?}", bytes.len()))
        .into_program()
}

pub fn refusal(bytes: &[u8]) -> ArchiveError {
    match open(bytes) {
        Ok(_) => panic!("it should be refused"),
        Err(error) => error,
    }
}

/// The files of an archive, in order.
pub type Files = Vec<(String, Vec<u8>)>;

pub fn unpack(bytes: &[u8]) -> Files {
    let mut zip = ZipArchive::new(Cursor::new(bytes)).expect("a well-formed archive");
    let files = zip.len();
    let read = |index| {
        let mut entry = zip.by_index(index).expect("a well-formed archive");
        let mut bytes = Vec::new();
        entry
            .read_to_end(&mut bytes)
            .expect("a well-formed archive");
        (
            entry.name().expect("a well-formed archive").into_owned(),
            bytes,
        )
    };
    (0..files).map(read).collect()
}

pub fn pack(files: &Files, compression: CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(compression);
    for (name, bytes) in files {
        zip.start_file(name.as_str(), options)
            .expect("a well-formed archive");
        zip.write_all(bytes).expect("a well-formed archive");
    }
    zip.finish().expect("a well-formed archive").into_inner()
}

/// The archive with one file changed.
pub fn edit(bytes: &[u8], path: &str, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut files = unpack(bytes);
    let file = files
        .iter_mut()
        .find(|(name, _)| name.ends_with(path))
        .expect("a well-formed archive");
    change(&mut file.1);
    pack(&files, CompressionMethod::Stored)
}

/// The archive with one of its JSON files changed.
pub fn edit_json(bytes: &[u8], path: &str, change: impl FnOnce(&mut Value)) -> Vec<u8> {
    edit(bytes, path, |file| {
        let mut json = serde_json::from_slice(file).expect("a well-formed archive");
        change(&mut json);
        *file = serde_json::to_vec(&json).expect("a well-formed archive");
    })
}

/// The archive with one more file.
pub fn with_file(bytes: &[u8], name: &str, content: &[u8]) -> Vec<u8> {
    let mut files = unpack(bytes);
    files.push((name.to_owned(), content.to_vec()));
    pack(&files, CompressionMethod::Stored)
}

/// Replaces every occurrence of some bytes by as many others, in the raw zip.
pub fn patch(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut patched = bytes.to_vec();
    let places: Vec<_> = (0..=bytes.len() - from.len())
        .filter(|at| bytes[*at..].starts_with(from))
        .collect();
    assert!(!places.is_empty());
    for at in places {
        patched[at..at + to.len()].copy_from_slice(to);
    }
    patched
}
