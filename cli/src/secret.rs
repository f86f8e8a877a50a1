//! Secrets of the embedded default, in files that only their owner may read.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use anyhow::Context as _;
use aws_lc_rs::rand;

/// 32 random bytes in hexadecimal: made at the first call, the same ever after.
///
/// # Errors
/// When the file cannot be read or written.
pub fn read_or_create(path: &Path) -> anyhow::Result<String> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let secret = random_hex()?;
            write(path, &secret)?;
            Ok(secret)
        }
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// Writes a file that only its owner may read.
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("write {}", path.display()))
}

/// Writes a file that only its owner may read, in place of one that others may be reading: they see the one or the other.
///
/// # Errors
/// When the file cannot be written.
pub fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let written = path.with_extension("new");
    write(&written, text)?;
    File::open(&written)
        .and_then(|file| file.sync_all())
        .and_then(|()| fs::rename(&written, path))
        .with_context(|| format!("replace {}", path.display()))
}

/// 32 random bytes in hexadecimal.
///
/// # Errors
/// When the system has no randomness to give.
pub fn random_hex() -> anyhow::Result<String> {
    let mut bytes = [0; 32];
    rand::fill(&mut bytes).context("draw random bytes")?;
    Ok(alloy::hex::encode(bytes))
}
