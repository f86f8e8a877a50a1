//! Inputs to begin with: what the readers accept, made here, and what once went wrong, kept in `fuzz/seeds`.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process,
};

use crate::Target;

/// Names a folder: a program of libFuzzer's then writes its seeds there, says how long an input may be, and ends.
pub const FOLDER_VARIABLE: &str = "COMPTOIR_FUZZ_SEEDS";

/// The repository, seen from this crate.
pub(crate) const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// An input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    /// What it is, for messages and as the name of a file.
    pub name: String,
    /// The input.
    pub bytes: Vec<u8>,
}

impl Seed {
    pub(crate) fn new(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            name: name.into(),
            bytes: bytes.into(),
        }
    }
}

/// Does what [`FOLDER_VARIABLE`] asks for; what libFuzzer's programs begin with.
///
/// # Panics
/// Where there is no such target, or the folder cannot be written.
pub fn write_if_asked(target: &str) {
    let Some(folder) = env::var_os(FOLDER_VARIABLE).map(PathBuf::from) else {
        return;
    };
    let target = Target::named(target).expect("libFuzzer's programs name targets");
    fs::create_dir_all(&folder).expect("the folder can be made");
    for seed in target.seeds() {
        let path = folder.join(&seed.name);
        fs::write(path, &seed.bytes).expect("the folder can be written");
    }
    println!("{}", target.input_bytes_max);
    process::exit(0);
}

/// What is kept for a target, by name. A target need not have anything.
///
/// # Panics
/// Where the folder cannot be read.
pub(crate) fn kept(target: &str) -> Vec<Seed> {
    let folder = Path::new(ROOT).join("fuzz/seeds").join(target);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => panic!("{}: {error}", folder.display()),
    };
    let mut seeds: Vec<_> = entries
        .map(|entry| {
            let path = entry.expect("the checkout can be read").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let bytes = fs::read(&path).expect("the checkout can be read");
            Seed::new(name, bytes)
        })
        .collect();
    seeds.sort_by(|one, other| one.name.cmp(&other.name));
    seeds
}

/// Archives of the checkout that are no longer than this, by name.
pub(crate) fn archives(bytes_max: usize) -> Vec<Seed> {
    let mut seeds = Vec::new();
    for folder in ["domain/fixtures", "examples/digits"] {
        let entries = fs::read_dir(Path::new(ROOT).join(folder)).expect("the checkout has it");
        for entry in entries {
            let path = entry.expect("the checkout can be read").path();
            if path.extension().is_some_and(|it| it == "pt2") {
                let bytes = fs::read(&path).expect("the checkout can be read");
                let name = path.file_stem().unwrap_or_default().to_string_lossy();
                seeds.push(Seed::new(name, bytes));
            }
        }
    }
    seeds.retain(|it| it.bytes.len() <= bytes_max);
    seeds.sort_by(|one, other| one.name.cmp(&other.name));
    seeds
}
