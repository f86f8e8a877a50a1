//! The operator's root keys: what the keys of sellers are wrapped with. One is in use, the others open what they wrapped before.

use std::fmt::Write as _;

use aws_lc_rs::rand;

use crate::{
    envelope::{Damaged, KEY_BYTES, Key, WRAPPED_BYTES},
    id::{AccountId, DatasetVersionId},
};

/// Hexadecimal digits that name a key.
const ID_DIGITS: usize = 16;

/// The root keys of a deployment.
#[derive(Debug, Clone)]
pub struct RootKeys(Vec<(String, Key)>);

/// The text holds no root keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected lines of a key's name ({ID_DIGITS} hexadecimal digits), a space and the key (64 of them)"
)]
pub struct InvalidRootKeys;

/// Why a wrapped key does not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The key that wrapped it is not among the known ones.
    #[error("there is no root key {0}")]
    NoRootKey(String),
    /// Wrapped elsewhere, for somebody else, or changed since.
    #[error("open a wrapped key")]
    Damaged(#[from] Damaged),
}

/// A seller's key, as the database keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrappedTenantKey {
    /// Which root key wraps it.
    pub root_key: String,
    /// The key, wrapped.
    pub wrapped: [u8; WRAPPED_BYTES],
}

impl RootKeys {
    /// One fresh key.
    #[must_use]
    pub fn generate() -> Self {
        Self(vec![fresh()])
    }

    /// The same keys, behind a fresh one that is used from now on.
    #[must_use]
    pub fn rotated(mut self) -> Self {
        self.0.insert(0, fresh());
        self
    }

    /// Reads what [`Self::to_text`] wrote.
    ///
    /// # Errors
    /// When it is something else.
    pub fn parse(text: &str) -> Result<Self, InvalidRootKeys> {
        let keys: Vec<_> = text
            .lines()
            .map(parse_line)
            .collect::<Option<_>>()
            .ok_or(InvalidRootKeys)?;
        let names: std::collections::BTreeSet<_> = keys.iter().map(|(id, _)| id).collect();
        if keys.is_empty() || names.len() < keys.len() {
            return Err(InvalidRootKeys);
        }
        Ok(Self(keys))
    }

    /// A line per key, the one in use first.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for (id, key) in &self.0 {
            writeln!(text, "{id} {}", hex(key.bytes())).expect("a text takes all");
        }
        text
    }

    /// The name of the key in use.
    ///
    /// # Panics
    /// Never: there is one.
    #[must_use]
    pub fn current(&self) -> &str {
        &self.0.first().expect("there is always one").0
    }

    /// Wraps a seller's key with the root key in use.
    ///
    /// # Panics
    /// Never: there is a root key.
    #[must_use]
    pub fn wrap(&self, account: AccountId, key: &Key) -> WrappedTenantKey {
        let (id, root) = self.0.first().expect("there is always one");
        WrappedTenantKey {
            root_key: id.clone(),
            wrapped: root.wrap(&tenant_context(account), key),
        }
    }

    /// A seller's key.
    ///
    /// # Errors
    /// When its root key is not known, or it is not that seller's.
    pub fn open(&self, account: AccountId, wrapped: &WrappedTenantKey) -> Result<Key, OpenError> {
        let root = self.0.iter().find(|(id, _)| *id == wrapped.root_key);
        let (_, root) = root.ok_or_else(|| OpenError::NoRootKey(wrapped.root_key.clone()))?;
        Ok(root.unwrap(&tenant_context(account), &wrapped.wrapped)?)
    }
}

/// Wraps a version's data key with its seller's key.
#[must_use]
pub fn wrap_data_key(tenant: &Key, version: DatasetVersionId, key: &Key) -> [u8; WRAPPED_BYTES] {
    tenant.wrap(&version_context(version), key)
}

/// A version's data key.
///
/// # Errors
/// When it is another version's, or another seller's.
pub fn open_data_key(
    tenant: &Key,
    version: DatasetVersionId,
    wrapped: &[u8; WRAPPED_BYTES],
) -> Result<Key, Damaged> {
    tenant.unwrap(&version_context(version), wrapped)
}

fn tenant_context(account: AccountId) -> String {
    format!("comptoir tenant key v1 {account}")
}

fn version_context(version: DatasetVersionId) -> String {
    format!("comptoir data key v1 {version}")
}

fn fresh() -> (String, Key) {
    let mut id = [0; ID_DIGITS / 2];
    rand::fill(&mut id).expect("the system has randomness");
    (hex(&id), Key::generate())
}

fn hex(bytes: &[u8]) -> String {
    alloy_primitives::hex::encode(bytes)
}

fn parse_line(line: &str) -> Option<(String, Key)> {
    let (id, key) = line.split_once(' ')?;
    let is_name = id.len() == ID_DIGITS && id.bytes().all(|it| it.is_ascii_hexdigit());
    let mut bytes = [0; KEY_BYTES];
    alloy_primitives::hex::decode_to_slice(key, &mut bytes).ok()?;
    is_name.then(|| (id.to_owned(), Key::from_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sellers_key_opens_with_its_root_key_after_rotations_and_for_nobody_else() {
        let (seller, other) = (AccountId::generate(), AccountId::generate());
        let (roots, key) = (RootKeys::generate(), Key::generate());
        let wrapped = roots.wrap(seller, &key);
        let rotated = roots.clone().rotated().rotated();
        let opened = rotated
            .open(seller, &wrapped)
            .expect("an older key opens it");
        assert_eq!(opened.bytes(), key.bytes());
        assert_eq!(rotated.open(other, &wrapped).err(), Some(Damaged.into()));
        let unknown = OpenError::NoRootKey(roots.current().to_owned());
        assert_eq!(
            RootKeys::generate().open(seller, &wrapped).err(),
            Some(unknown)
        );
        assert_ne!(rotated.wrap(seller, &key).root_key, wrapped.root_key);
    }

    #[test]
    fn a_data_key_opens_for_its_version_alone() {
        let (tenant, key) = (Key::generate(), Key::generate());
        let (here, there) = (DatasetVersionId::generate(), DatasetVersionId::generate());
        let wrapped = wrap_data_key(&tenant, here, &key);
        assert_eq!(
            open_data_key(&tenant, here, &wrapped)
                .expect("it is its own")
                .bytes(),
            key.bytes()
        );
        assert!(open_data_key(&tenant, there, &wrapped).is_err());
        assert!(open_data_key(&Key::generate(), here, &wrapped).is_err());
    }

    #[test]
    fn keys_survive_their_file_and_other_files_are_none() {
        let keys = RootKeys::generate().rotated();
        let read = RootKeys::parse(&keys.to_text()).expect("it was written so");
        assert_eq!(read.to_text(), keys.to_text());
        let twice = format!("{0}{0}", RootKeys::generate().to_text());
        for bad in ["", "00", "0123456789abcdef 00", "g123456789abcdef", &twice] {
            assert_eq!(RootKeys::parse(bad).err(), Some(InvalidRootKeys), "{bad}");
        }
        assert!(!format!("{keys:?}").contains(&hex(keys.0[0].1.bytes())));
    }
}
