//! Leaf files: where they are looked for, and where a copy is kept.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use comptoir_audit::{Hash, Limits, hash::sha256};

use crate::audit::source::LeafSource;

/// Where leaf files are looked for and kept.
#[derive(Debug, Clone)]
pub struct Files {
    /// In this order.
    pub sources: Vec<LeafSource>,
    /// Copies of what was found: what an escape needs if the operator goes.
    pub keep: Option<PathBuf>,
    /// The longest that is read.
    pub limits: Limits,
}

impl Files {
    /// The leaf file that a hash names, wherever it is; kept for later.
    ///
    /// # Errors
    /// When nobody has it; says what each source said.
    pub async fn read(&self, id: u64, data_hash: Hash) -> Result<Vec<u8>, String> {
        let kept = self
            .keep
            .as_ref()
            .map(|folder| folder.join(format!("{}.jsonl", data_hash.digits())));
        if let Some(kept) = &kept
            && let Ok(bytes) = tokio::fs::read(kept).await
            && sha256(&bytes) == data_hash
        {
            return Ok(bytes);
        }
        let mut told = Vec::new();
        for source in &self.sources {
            match source.read(id, Some(data_hash), self.limits.bytes).await {
                Ok(bytes) if sha256(&bytes) == data_hash => {
                    if let Some(kept) = &kept
                        && let Err(error) = keep(kept, &bytes).await
                    {
                        tracing::warn!(error = format!("{error:#}"), "a leaf file was not kept");
                    }
                    return Ok(bytes);
                }
                Ok(bytes) => told.push(format!(
                    "{} has another file, {}",
                    source.place(id, Some(data_hash)),
                    sha256(&bytes)
                )),
                Err(error) => told.push(format!("{error:#}")),
            }
        }
        Err(told.join("; "))
    }
}

/// Writes a file in one step: whoever reads it finds all of it or nothing.
async fn keep(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let unfinished = path.with_extension("part");
    tokio::fs::write(&unfinished, bytes)
        .await
        .with_context(|| format!("write {}", unfinished.display()))?;
    tokio::fs::rename(&unfinished, path)
        .await
        .with_context(|| format!("write {}", path.display()))
}
