//! Files of a dataset that an attempt's job reads: `POST /v1/attempts/{id}/dataset` says what opens them, and
//! `GET /v1/attempts/{id}/dataset/{file}/parts/{part}` gives the sealed bytes. How they are sealed is in [`comptoir_domain::envelope`].
//!
//! The key is for the process that computes, and for nothing that outlives the lease; what it opens belongs on no disk.

use std::fmt;

use comptoir_domain::{
    dataset::part_length,
    digest::Sha256,
    envelope::{self, KEY_BYTES, Key, PART_SALT_BYTES, Part},
    id::{DatasetFileId, DatasetVersionId},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

use crate::encoded::Base64;

/// Bytes of a part at most.
pub const PART_BYTES_MAX: u32 = 64 << 20;

/// What opens the files of a dataset that a job reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SealedDataset {
    /// The version that they are of.
    #[schema(value_type = String, example = "dsv_01h455vb4pex5vsknk084sn02q")]
    pub version_id: DatasetVersionId,
    /// The version's data key: 32 bytes in base64.
    #[schema(value_type = String, format = Byte)]
    pub key: DataKey,
    /// The files that the job names, each once.
    pub files: Vec<SealedFile>,
}

/// A file of a dataset at rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SealedFile {
    /// Which.
    #[schema(value_type = String, example = "dsf_01h455vb4pex5vsknk084sn02q")]
    pub file_id: DatasetFileId,
    /// The digest that the job names it by.
    pub sha256: Sha256,
    /// Its bytes, opened.
    pub bytes: u64,
    /// Bytes of each part but the last, opened.
    pub part_bytes: u32,
    /// The salt of each part, in order: 16 bytes in base64.
    #[schema(value_type = Vec<String>)]
    pub salts: Vec<Base64<PART_SALT_BYTES>>,
}

impl SealedFile {
    /// How many bytes a part has, opened; `None` where the file has no such part.
    #[must_use]
    pub const fn part_length(&self, part: u32) -> Option<u64> {
        part_length(self.bytes, self.part_bytes, part)
    }

    /// Where a part is, and what it is sealed to; `None` where the file has no such part.
    #[must_use]
    pub fn part(&self, version: DatasetVersionId, number: u32) -> Option<Part> {
        let salt = self.salts.get(usize::try_from(number).ok()?)?;
        Some(Part {
            version,
            file: self.file_id,
            file_bytes: self.bytes,
            number,
            salt: salt.0,
        })
    }

    /// Where a part begins when sealed parts are put one behind the other.
    #[must_use]
    pub fn sealed_start(&self, part: u32) -> u64 {
        u64::from(part).saturating_mul(envelope::sealed_bytes(self.part_bytes.into()))
    }

    /// Is it what a file can be: as many salts as parts, of a size that a part may have?
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.bytes > 0
            && self.part_bytes > 0
            && self.part_bytes <= PART_BYTES_MAX
            && (self.part_bytes as u64).is_multiple_of(envelope::CHUNK_BYTES)
            && self.bytes.div_ceil(self.part_bytes as u64) == self.salts.len() as u64
    }
}

/// A version's data key on its way to whom it is for. It shows itself in no log.
#[derive(Clone)]
pub struct DataKey(pub Key);

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(…)")
    }
}

impl PartialEq for DataKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.bytes() == other.0.bytes()
    }
}

impl Eq for DataKey {}

impl Serialize for DataKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Base64(*self.0.bytes()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for DataKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Base64::<KEY_BYTES>::deserialize(deserializer).map(|key| Self(Key::from_bytes(key.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: u64, salts: usize) -> SealedFile {
        SealedFile {
            file_id: DatasetFileId::generate(),
            sha256: Sha256::of(b""),
            bytes,
            part_bytes: 65_536,
            salts: vec![Base64([0; PART_SALT_BYTES]); salts],
        }
    }

    #[test]
    fn a_file_has_a_salt_for_each_of_its_parts() {
        assert!(file(65_537, 2).is_whole() && file(65_536, 1).is_whole());
        assert!(!file(65_537, 1).is_whole() && !file(65_536, 2).is_whole());
        assert!(!file(0, 0).is_whole());
        let odd = SealedFile {
            part_bytes: 1_000,
            ..file(1_000, 1)
        };
        assert!(!odd.is_whole());
    }

    #[test]
    fn a_key_survives_its_way_and_shows_itself_in_no_log() {
        let key = DataKey(Key::generate());
        let text = serde_json::to_string(&key).unwrap();
        assert_eq!(serde_json::from_str::<DataKey>(&text).unwrap(), key);
        assert_eq!(format!("{key:?}"), "DataKey(…)");
    }
}
