//! The manifest of a version: its files in canonical JSON, and the Merkle root that names it.
//!
//! A file is described by the JSON object `{bytes, facts, format, is_sample, path, sha256}` in the canonical form of RFC 8785. Its leaf is
//! `keccak256(keccak256("comptoir dataset file v1" ‖ 0x00 ‖ JSON))`: hashed twice, so that no leaf is an inner node, which is the hash of 64
//! bytes. The tree over the leaves is that of [`crate::settlement::merkle`].

use alloy_primitives::{B256, Keccak256, keccak256};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{COLUMN_NAME_BYTES_MAX, COLUMNS_MAX, FACTS_BYTES_MAX, FilePath, Format};
use crate::{digest::Sha256, name::is_shown, settlement::merkle::Tree};

const LEAF_TAG: &[u8] = b"comptoir dataset file v1\0";

/// What was found out about a file by reading it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// How many rows its table has; `null` for a file of tensors.
    #[schema(required = true)]
    pub rows: Option<u64>,
    /// The columns of its table, or its tensors.
    pub columns: Vec<Column>,
}

/// One column of a table, or one tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = DatasetColumn)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// What it holds, in the words of the format.
    #[serde(rename = "type")]
    pub kind: String,
}

/// Facts that say too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidFacts {
    #[error("more than {COLUMNS_MAX} columns")]
    Columns,
    #[error(
        "the name of a column is empty, longer than {COLUMN_NAME_BYTES_MAX} bytes, or has characters that do not show"
    )]
    Name,
    #[error("two columns have one name")]
    Repeated,
    #[error("what the columns are called and hold takes more than {FACTS_BYTES_MAX} bytes")]
    Bytes,
}

impl Facts {
    /// Facts within their limits.
    ///
    /// # Errors
    /// When they are not.
    pub fn check(&self) -> Result<(), InvalidFacts> {
        if self.columns.len() > COLUMNS_MAX {
            return Err(InvalidFacts::Columns);
        }
        let is_name = |name: &str| {
            (1..=COLUMN_NAME_BYTES_MAX).contains(&name.len()) && name.chars().all(is_shown)
        };
        if !self
            .columns
            .iter()
            .all(|it| is_name(&it.name) && is_name(&it.kind))
        {
            return Err(InvalidFacts::Name);
        }
        let names: std::collections::BTreeSet<_> = self.columns.iter().map(|it| &it.name).collect();
        if names.len() < self.columns.len() {
            return Err(InvalidFacts::Repeated);
        }
        if self.bytes() > FACTS_BYTES_MAX {
            return Err(InvalidFacts::Bytes);
        }
        Ok(())
    }

    /// Bytes of these facts as JSON.
    ///
    /// # Panics
    /// Never: they serialise.
    #[must_use]
    pub fn bytes(&self) -> usize {
        serde_json::to_vec(self).expect("facts serialise").len()
    }
}

/// What a manifest says of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ManifestFile {
    /// Where it is.
    #[schema(value_type = String)]
    pub path: FilePath,
    /// The SHA-256 of its bytes.
    #[schema(value_type = String)]
    pub sha256: Sha256,
    /// How many there are.
    pub bytes: u64,
    /// What it was read as.
    pub format: Format,
    /// May everybody who signed in read it while the dataset is listed?
    pub is_sample: bool,
    /// What was found; `null` where nothing was looked for.
    #[schema(required = true)]
    pub facts: Option<Facts>,
}

/// The leaf of a file.
///
/// # Panics
/// Never: a file serialises.
#[must_use]
pub fn leaf(file: &ManifestFile) -> B256 {
    let json = serde_jcs::to_vec(file).expect("a file serialises");
    let mut hash = Keccak256::new();
    hash.update(LEAF_TAG);
    hash.update(&json);
    keccak256(hash.finalize())
}

/// The root of a manifest, whatever the order of its files.
#[must_use]
pub fn root(files: &[ManifestFile]) -> B256 {
    let leaves: Vec<B256> = files.iter().map(leaf).collect();
    Tree::new(&leaves).root()
}

/// The manifest itself, in canonical JSON: its root, and its files by path.
///
/// # Panics
/// Never: it serialises.
#[must_use]
pub fn manifest(files: &mut [ManifestFile]) -> Vec<u8> {
    #[derive(Serialize)]
    struct Manifest<'f> {
        object: &'static str,
        root: B256,
        files: &'f [ManifestFile],
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let manifest = Manifest {
        object: "dataset_manifest",
        root: root(files),
        files,
    };
    serde_jcs::to_vec(&manifest).expect("a manifest serialises")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> ManifestFile {
        ManifestFile {
            path: path.parse().expect("a path"),
            sha256: Sha256([7; 32]),
            bytes: 12,
            format: Format::Csv,
            is_sample: false,
            facts: Some(Facts {
                rows: Some(1),
                columns: vec![Column {
                    name: "a".to_owned(),
                    kind: "text".to_owned(),
                }],
            }),
        }
    }

    #[test]
    fn the_root_is_that_of_the_documented_preimage() {
        let json = format!(
            r#"{{"bytes":12,"facts":{{"columns":[{{"name":"a","type":"text"}}],"rows":1}},"format":"csv","is_sample":false,"path":"a.csv","sha256":"{}"}}"#,
            "07".repeat(32)
        );
        let preimage = [b"comptoir dataset file v1\0", json.as_bytes()].concat();
        let expected = keccak256(keccak256(preimage));
        assert_eq!(root(&[file("a.csv")]), expected, "one leaf is the root");
    }

    #[test]
    fn the_root_knows_every_field_and_no_order() {
        let files = [file("a"), file("b"), file("c")];
        let mut turned = files.clone();
        turned.reverse();
        assert_eq!(root(&files), root(&turned));
        let changes: [fn(&mut ManifestFile); 6] = [
            |it| it.path = "d".parse().expect("a path"),
            |it| it.sha256.0[0] ^= 1,
            |it| it.bytes += 1,
            |it| it.format = Format::Other,
            |it| it.is_sample = true,
            |it| it.facts = None,
        ];
        for change in changes {
            let mut others = files.clone();
            change(&mut others[1]);
            assert_ne!(root(&files), root(&others));
        }
        assert_eq!(manifest(&mut turned), manifest(&mut files.clone()));
    }

    #[test]
    fn facts_have_limits() {
        let column = |name: &str| Column {
            name: name.to_owned(),
            kind: "text".to_owned(),
        };
        let check = |columns| {
            Facts {
                rows: None,
                columns,
            }
            .check()
        };
        assert_eq!(check(vec![column("a"), column("b")]), Ok(()));
        assert_eq!(
            check(vec![column("a"), column("a")]),
            Err(InvalidFacts::Repeated)
        );
        for bad in ["", "a\0b", &"a".repeat(256)] {
            assert_eq!(check(vec![column(bad)]), Err(InvalidFacts::Name));
        }
        let many = |count: usize| (0..count).map(|n| column(&n.to_string())).collect();
        assert_eq!(check(many(COLUMNS_MAX + 1)), Err(InvalidFacts::Columns));
        assert_eq!(check(many(COLUMNS_MAX)), Err(InvalidFacts::Bytes));
    }
}
