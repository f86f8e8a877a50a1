//! Reads `.pt2` archives: a zip with the graph as JSON and raw tensor bytes. Nothing in one is ever executed.
//!
//! Every limit is checked before what it limits is read, and a file is judged by what it contains, never by its name. Sample
//! inputs (a pickle) and extra files may be present and are never opened.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read, Seek, SeekFrom},
};

use serde::Deserialize;
use zip::{
    CompressionMethod, ZipArchive,
    read::{ArchiveOffset, Config},
    result::ZipError,
};

use crate::tensors::are_booleans;

use super::{
    InvalidProgram, Program,
    graph::{ExportedProgram, ScalarType, SchemaVersion},
    stored::{InvalidTensor, PayloadConfig, StoredTensor, TENSORS_MAX, check_overlaps},
};

/// Bytes of an archive.
pub const ARCHIVE_BYTES_MAX: u64 = 4 << 30;
/// Files in an archive.
pub const ENTRIES_MAX: u64 = 25_000;
/// Bytes of all files together, inflated.
pub const INFLATED_BYTES_MAX: u64 = 8 << 30;
/// Bytes of one payload.
pub const PAYLOAD_BYTES_MAX: u64 = 4 << 30;
/// Bytes of the graph.
pub const MODEL_JSON_BYTES_MAX: u64 = 32 << 20;
/// Bytes of each tensor configuration.
pub const CONFIG_BYTES_MAX: u64 = 16 << 20;
/// Bytes of each of the archive's own small files.
pub const NOTE_BYTES_MAX: u64 = 256;
/// Longest path in an archive.
pub const PATH_BYTES_MAX: usize = 512;
/// Deepest nesting of JSON.
pub const JSON_DEPTH_MAX: usize = 64;
/// The schema this reader knows; minor versions only add.
pub const SCHEMA_MAJOR: u32 = 8;

const MODEL: &str = "models/model.json";
const WEIGHTS: &str = "data/weights";
const CONSTANTS: &str = "data/constants";
const WEIGHTS_CONFIG: &str = "data/weights/model_weights_config.json";
const CONSTANTS_CONFIG: &str = "data/constants/model_constants_config.json";

/// Why a file is not a program.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("read the archive")]
    Io(#[from] io::Error),
    #[error("not a `.pt2` archive: expected the zip file that torch.export.save writes")]
    NotAnArchive,
    #[error("the file is a pickle, which can run code; export the model with torch.export.save")]
    Pickle,
    #[error(
        "the file is a TorchScript archive, which carries code; export the model with torch.export.save"
    )]
    TorchScript,
    #[error(
        "the archive carries compiled AOTInductor code; export the model with torch.export.save"
    )]
    AotInductor,
    #[error("{what} is larger than {max} bytes")]
    TooLarge { what: String, max: u64 },
    #[error("the archive has more than {max} {what}")]
    TooMany { what: &'static str, max: u64 },
    #[error("the zip file is not consistent: {0}")]
    Inconsistent(&'static str),
    #[error("the zip file is not consistent")]
    Zip(#[from] ZipError),
    #[error("the path {0:?} is not one that torch.export writes")]
    Path(String),
    #[error("`{0}` is missing")]
    Missing(&'static str),
    #[error("`{path}` says {found:?}; only {expected:?} is read")]
    Unreadable {
        path: &'static str,
        found: String,
        expected: &'static str,
    },
    #[error("schema version {0} of the graph is not known; version {SCHEMA_MAJOR} is")]
    SchemaVersion(u32),
    #[error("`{0}` is nested deeper than {JSON_DEPTH_MAX} levels")]
    TooDeep(&'static str),
    #[error("`{path}` is not what torch.export writes: {source}")]
    Json {
        path: &'static str,
        source: serde_json::Error,
    },
    #[error("stored tensor `{name}`: {reason}")]
    Tensor { name: String, reason: InvalidTensor },
    #[error(transparent)]
    Program(#[from] InvalidProgram),
}

/// An opened archive: the checked program, and access to its payloads.
pub struct Archive<R> {
    zip: ZipArchive<R>,
    root: String,
    program: Program,
    /// Payloads that hold booleans.
    booleans: BTreeSet<String>,
}

impl<R: Read + Seek> Archive<R> {
    /// Reads and checks everything but the payload bytes.
    pub fn open(mut reader: R) -> Result<Self, ArchiveError> {
        check_envelope(&mut reader)?;
        // PyTorch writes both end records. Told to detect where the archive starts, the zip reader trusts the directory's size
        // alone and stumbles when the first entry is as long as the second record; an archive starts at 0 anyway.
        let config = Config {
            archive_offset: ArchiveOffset::Known(0),
        };
        let mut zip = ZipArchive::with_config(config, reader)?;
        let mut listing = Listing::of(&mut zip)?;
        listing.check_notes(&mut zip)?;
        let exported = listing.graph(&mut zip)?;
        let tensors = listing.tensors(&mut zip)?;
        let program = Program::check(exported, tensors)?;
        let booleans = program
            .tensors
            .values()
            .filter(|tensor| tensor.dtype == ScalarType::Bool);
        let booleans = booleans.map(|tensor| tensor.payload.clone()).collect();
        Ok(Self {
            booleans,
            zip,
            root: listing.root,
            program,
        })
    }

    /// The program.
    pub const fn program(&self) -> &Program {
        &self.program
    }

    /// The program alone, for whoever needs no bytes.
    #[must_use]
    pub fn into_program(self) -> Program {
        self.program
    }

    /// The bytes of a payload that a [`StoredTensor`] names; their checksum is verified, and that booleans are booleans.
    pub fn payload(&mut self, payload: &str) -> Result<Vec<u8>, ArchiveError> {
        let path = format!("{}/{payload}", self.root);
        let bytes = read_entry(&mut self.zip, &path)?;
        if self.booleans.contains(payload) && !are_booleans(&bytes) {
            return Err(ArchiveError::Tensor {
                name: payload.to_owned(),
                reason: InvalidTensor::Boolean,
            });
        }
        Ok(bytes)
    }
}

/// What stands in the zip's directory, by path below the root folder.
struct Listing {
    root: String,
    bytes: BTreeMap<String, u64>,
}

impl Listing {
    fn of<R: Read + Seek>(zip: &mut ZipArchive<R>) -> Result<Self, ArchiveError> {
        if zip.offset() != 0 || !zip.comment().is_empty() {
            return Err(ArchiveError::Inconsistent(
                "bytes before the first or behind the last record",
            ));
        }
        let mut listing = Self {
            root: String::new(),
            bytes: BTreeMap::new(),
        };
        let (mut total, metadata) = (0_u64, zip.metadata());
        for index in 0..zip.len() {
            let entry = metadata.entry(index)?;
            let name = entry.name()?;
            let (root, path) = split_root(&name)?;
            refuse_code(path)?;
            let max = expected_bytes_max(path)
                .ok_or_else(|| ArchiveError::Path(name.escape_debug().to_string()))?;
            if listing.root.is_empty() {
                root.clone_into(&mut listing.root);
            }
            if root != listing.root || !entry.is_file() {
                return Err(ArchiveError::Path(name.escape_debug().to_string()));
            }
            if entry.encrypted() {
                return Err(ArchiveError::Inconsistent("an encrypted file"));
            }
            if !matches!(
                entry.compression(),
                CompressionMethod::Stored | CompressionMethod::Deflated
            ) {
                return Err(ArchiveError::Inconsistent(
                    "a compression other than none or deflate",
                ));
            }
            if entry.size() > max {
                return Err(ArchiveError::TooLarge {
                    what: format!("`{path}`"),
                    max,
                });
            }
            total = total.saturating_add(entry.size());
            if total > INFLATED_BYTES_MAX {
                return Err(ArchiveError::TooLarge {
                    what: "the inflated archive".to_owned(),
                    max: INFLATED_BYTES_MAX,
                });
            }
            listing.bytes.insert(path.to_owned(), entry.size());
        }
        zip.validate_header_consistency()?;
        Ok(listing)
    }

    /// The small files that say what kind of archive this is.
    fn check_notes<R: Read + Seek>(&mut self, zip: &mut ZipArchive<R>) -> Result<(), ArchiveError> {
        for (path, expected) in [
            ("archive_format", "pt2"),
            ("archive_version", "0"),
            ("byteorder", "little"),
        ] {
            let found = self.read(zip, path)?;
            if found != expected.as_bytes() {
                let found = String::from_utf8_lossy(&found).into_owned();
                return Err(ArchiveError::Unreadable {
                    path,
                    found,
                    expected,
                });
            }
        }
        Ok(())
    }

    fn graph<R: Read + Seek>(
        &self,
        zip: &mut ZipArchive<R>,
    ) -> Result<ExportedProgram, ArchiveError> {
        #[derive(Deserialize)]
        struct Versioned {
            schema_version: SchemaVersion,
        }

        let json = self.read(zip, MODEL)?;
        // The version first: a document of another major may well look different.
        let version: Versioned = parse(MODEL, &json)?;
        if version.schema_version.major != SCHEMA_MAJOR {
            return Err(ArchiveError::SchemaVersion(version.schema_version.major));
        }
        parse(MODEL, &json)
    }

    fn tensors<R: Read + Seek>(
        &self,
        zip: &mut ZipArchive<R>,
    ) -> Result<BTreeMap<String, StoredTensor>, ArchiveError> {
        let mut tensors = BTreeMap::new();
        for (config, folder) in [(WEIGHTS_CONFIG, WEIGHTS), (CONSTANTS_CONFIG, CONSTANTS)] {
            let json = self.read(zip, config)?;
            let parsed: PayloadConfig = parse(config, &json)?;
            if tensors.len() + parsed.config.len() > TENSORS_MAX {
                return Err(ArchiveError::TooMany {
                    what: "tensors",
                    max: TENSORS_MAX as u64,
                });
            }
            for (name, meta) in parsed.config {
                let bytes_of = |payload: &str| self.bytes.get(payload).copied();
                let tensor =
                    StoredTensor::check(&name, folder, meta, bytes_of).map_err(|reason| {
                        ArchiveError::Tensor {
                            name: name.clone(),
                            reason,
                        }
                    })?;
                if tensors.contains_key(&name) {
                    return Err(ArchiveError::Tensor {
                        name,
                        reason: InvalidTensor::Repeated,
                    });
                }
                tensors.insert(name, tensor);
            }
        }
        check_overlaps(&tensors).map_err(|(name, reason)| ArchiveError::Tensor { name, reason })?;
        Ok(tensors)
    }

    fn read<R: Read + Seek>(
        &self,
        zip: &mut ZipArchive<R>,
        path: &'static str,
    ) -> Result<Vec<u8>, ArchiveError> {
        if !self.bytes.contains_key(path) {
            return Err(ArchiveError::Missing(path));
        }
        read_entry(zip, &format!("{}/{path}", self.root))
    }
}

/// What can be said of a file before its directory is read: its size, its kind, and how long the directory claims to be.
fn check_envelope<R: Read + Seek>(reader: &mut R) -> Result<(), ArchiveError> {
    const END: usize = 22;
    const LOCATOR: usize = 20;
    const END_64: usize = 56;

    let length = reader.seek(SeekFrom::End(0))?;
    if length > ARCHIVE_BYTES_MAX {
        return Err(ArchiveError::TooLarge {
            what: "the archive".to_owned(),
            max: ARCHIVE_BYTES_MAX,
        });
    }
    let head: [u8; 4] = read_at(reader, length, 0)?;
    match head {
        [b'P', b'K', 3, 4] => {}
        [0x80, 2..=5, ..] => return Err(ArchiveError::Pickle),
        _ => return Err(ArchiveError::NotAnArchive),
    }
    // No comment: then the end record is where every reader looks first, and all readers see the same directory.
    let end_at = length
        .checked_sub(END as u64)
        .ok_or(ArchiveError::NotAnArchive)?;
    let end: [u8; END] = read_at(reader, length, end_at)?;
    if !end.starts_with(b"PK\x05\x06") || end[20..] != [0, 0] {
        return Err(ArchiveError::Inconsistent(
            "it does not end with its directory",
        ));
    }
    let mut entries = u64::from(u16::from_le_bytes([end[10], end[11]]));
    let locator_at = end_at.saturating_sub(LOCATOR as u64);
    let locator: [u8; LOCATOR] = read_at(reader, length, locator_at)?;
    if locator.starts_with(b"PK\x06\x07") {
        let end_64_at = u64::from_le_bytes(locator[8..16].try_into().expect("8 bytes"));
        let end_64: [u8; END_64] = read_at(reader, length, end_64_at)?;
        if !end_64.starts_with(b"PK\x06\x06")
            || end_64_at.saturating_add(END_64 as u64) != locator_at
        {
            return Err(ArchiveError::Inconsistent(
                "its 64-bit directory is not where it should be",
            ));
        }
        entries = u64::from_le_bytes(end_64[32..40].try_into().expect("8 bytes"));
    }
    if entries > ENTRIES_MAX {
        return Err(ArchiveError::TooMany {
            what: "files",
            max: ENTRIES_MAX,
        });
    }
    Ok(())
}

fn read_at<R: Read + Seek, const N: usize>(
    reader: &mut R,
    length: u64,
    at: u64,
) -> Result<[u8; N], ArchiveError> {
    if at.saturating_add(N as u64) > length {
        return Err(ArchiveError::NotAnArchive);
    }
    let mut bytes = [0; N];
    reader.seek(SeekFrom::Start(at))?;
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Reads no more than the directory promised, which was compared with the file's limit.
fn read_entry<R: Read + Seek>(
    zip: &mut ZipArchive<R>,
    path: &str,
) -> Result<Vec<u8>, ArchiveError> {
    let mut entry = zip.by_name(path)?;
    let promised = entry.size();
    let mut bytes = Vec::new();
    // One byte more than promised, so that a lie shows; the checksum is compared at the true end.
    entry
        .by_ref()
        .take(promised.saturating_add(1))
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 != promised {
        return Err(ArchiveError::Inconsistent(
            "a file is not as long as the directory says",
        ));
    }
    Ok(bytes)
}

/// Splits `mlp/models/model.json` after the root folder, and refuses whatever could mean another place.
fn split_root(name: &str) -> Result<(&str, &str), ArchiveError> {
    let refused = || ArchiveError::Path(name.escape_debug().to_string());
    let is_odd = |c: char| c.is_control() || c == '\\' || c == ':';
    if name.len() > PATH_BYTES_MAX || name.contains(is_odd) {
        return Err(refused());
    }
    if name
        .split('/')
        .any(|part| part.is_empty() || part == "." || part == "..")
    {
        return Err(refused());
    }
    name.split_once('/').ok_or_else(refused)
}

/// Says what an archive of another kind is, since its owner will ask.
fn refuse_code(path: &str) -> Result<(), ArchiveError> {
    if path.starts_with("data/aotinductor/") {
        return Err(ArchiveError::AotInductor);
    }
    if path.starts_with("code/") || path == "constants.pkl" {
        return Err(ArchiveError::TorchScript);
    }
    if path == "data.pkl" {
        return Err(ArchiveError::Pickle);
    }
    Ok(())
}

/// How large a file may be, by what it is for; `None` for what torch.export does not write.
fn expected_bytes_max(path: &str) -> Option<u64> {
    match path {
        MODEL => Some(MODEL_JSON_BYTES_MAX),
        WEIGHTS_CONFIG | CONSTANTS_CONFIG => Some(CONFIG_BYTES_MAX),
        "archive_format"
        | "archive_version"
        | "byteorder"
        | ".data/version"
        | ".data/serialization_id"
        | "version" => Some(NOTE_BYTES_MAX),
        _ => {
            let (folder, file) = path.rsplit_once('/')?;
            let is_numbered = |prefix: &str| {
                file.strip_prefix(prefix)
                    .is_some_and(|n| n.parse::<u32>().is_ok())
            };
            let is_known = match folder {
                WEIGHTS => is_numbered("weight_"),
                CONSTANTS => is_numbered("tensor_") || is_numbered("custom_obj_"),
                "data/sample_inputs" => true,
                _ => folder == "extra" || folder.starts_with("extra/"),
            };
            is_known.then_some(PAYLOAD_BYTES_MAX)
        }
    }
}

fn parse<'a, T: Deserialize<'a>>(path: &'static str, json: &'a [u8]) -> Result<T, ArchiveError> {
    if depth(json) > JSON_DEPTH_MAX {
        return Err(ArchiveError::TooDeep(path));
    }
    serde_json::from_slice(json).map_err(|source| ArchiveError::Json { path, source })
}

/// The deepest nesting of a JSON text, by counting brackets outside of strings.
fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}
