//! Where leaf files come from: a file, a folder, or any server that publishes them. Whoever serves it, a file counts only
//! when its SHA-256 is the one that the chain names.

use std::{fmt, path::Path, str::FromStr, time::Duration};

use anyhow::{Context as _, bail, ensure};
use comptoir_audit::Hash;
use url::Url;

/// How long a file may take until its first byte, and how long it may pause.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A file or a URL, in which `{id}` is the number of the batch and `{data_hash}` the SHA-256 of its file, in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafSource {
    place: String,
}

impl FromStr for LeafSource {
    type Err = std::convert::Infallible;

    fn from_str(place: &str) -> Result<Self, Self::Err> {
        Ok(Self {
            place: place.to_owned(),
        })
    }
}

impl fmt::Display for LeafSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place)
    }
}

impl LeafSource {
    /// The files of a service: it publishes each under the number of its batch.
    #[must_use]
    pub fn service(url: &Url) -> Self {
        Self {
            place: format!(
                "{}/v1/batches/{{id}}/leaves",
                url.as_str().trim_end_matches('/')
            ),
        }
    }

    /// Does it name one file, whatever the batch?
    #[must_use]
    pub fn is_single(&self) -> bool {
        !self.place.contains('{')
    }

    /// The place of one batch's file.
    #[must_use]
    pub fn place(&self, id: u64, data_hash: Option<Hash>) -> String {
        let hash = data_hash.map(|hash| hash.digits()).unwrap_or_default();
        self.place
            .replace("{id}", &id.to_string())
            .replace("{data_hash}", &hash)
    }

    /// Reads the file of a batch, whatever is in it.
    ///
    /// # Errors
    /// When it is not there, cannot be read, or is longer than `limit`.
    pub async fn read(
        &self,
        id: u64,
        data_hash: Option<Hash>,
        limit: u64,
    ) -> anyhow::Result<Vec<u8>> {
        let place = self.place(id, data_hash);
        let read = if place.starts_with("http://") || place.starts_with("https://") {
            fetch(&place, limit).await
        } else {
            open(Path::new(&place), limit).await
        };
        read.with_context(|| format!("read {place}"))
    }
}

async fn open(path: &Path, limit: u64) -> anyhow::Result<Vec<u8>> {
    let length = tokio::fs::metadata(path).await?.len();
    ensure!(length <= limit, "it has {length} bytes, more than {limit}");
    Ok(tokio::fs::read(path).await?)
}

async fn fetch(url: &str, limit: u64) -> anyhow::Result<Vec<u8>> {
    let client = reqwest::Client::builder()
        .connect_timeout(TIMEOUT)
        .read_timeout(TIMEOUT)
        .build()?;
    let mut reply = client.get(url).send().await?;
    if !reply.status().is_success() {
        bail!("the server answers {}", reply.status());
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = reply.chunk().await? {
        ensure!(
            bytes.len() as u64 + chunk.len() as u64 <= limit,
            "it has more than {limit} bytes"
        );
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_names_the_file_of_each_batch() {
        let service = LeafSource::service(&"http://127.0.0.1:8080/".parse().unwrap());
        assert_eq!(
            service.place(7, None),
            "http://127.0.0.1:8080/v1/batches/7/leaves"
        );
        assert!(!service.is_single());
        let store: LeafSource = "/mirror/{data_hash}.jsonl".parse().unwrap();
        let place = store.place(7, Some(Hash([0xab; 32])));
        assert_eq!(place, format!("/mirror/{}.jsonl", "ab".repeat(32)));
        let file: LeafSource = "leaves.jsonl".parse().unwrap();
        assert!(file.is_single());
    }
}
