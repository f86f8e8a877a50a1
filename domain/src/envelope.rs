//! Envelope encryption of dataset files at rest.
//!
//! A root key of the operator wraps one key per seller, which wraps one data key per dataset version, from which one key per part of
//! a file is derived. Whoever loses the wrapped data key has lost the version: that is how one is deleted.
//!
//! A part is sealed in chunks by the STREAM construction ("Online Authenticated-Encryption and its Nonce-Reuse
//! Misuse-Resistance", Hoang, Reyhanitabar, Rogaway, Vizár, CRYPTO 2015) over AES-256-GCM: the number of a chunk and whether it is the
//! last one are its nonce, so that chunks can be read alone, and cannot be swapped, dropped or cut off.

use std::{fmt, ops::Range};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, RandomizedNonceKey, Tag, UnboundKey},
    hkdf::{HKDF_SHA256, Salt},
    rand,
};
use zeroize::Zeroizing;

use crate::id::{DatasetFileId, DatasetVersionId};

/// Bytes of a chunk before it is sealed; the last one of a part may have fewer.
pub const CHUNK_BYTES: u64 = 64 << 10;
/// Bytes that sealing adds to a chunk.
pub const TAG_BYTES: u64 = TAG_LEN as u64;
const TAG_LEN: usize = 16;
/// Bytes of every key.
pub const KEY_BYTES: usize = 32;
/// Bytes of a key that another one has wrapped: nonce, key, tag.
pub const WRAPPED_BYTES: usize = NONCE_LEN + KEY_BYTES + TAG_LEN;
/// Bytes of what makes each try at a part a key of its own.
pub const PART_SALT_BYTES: usize = 16;

const PART_CONTEXT: &[u8] = b"comptoir dataset part v1";

/// The bytes were not sealed with this key, for this place, or not like this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the sealed bytes are damaged, or belong elsewhere")]
pub struct Damaged;

/// A key that wraps keys, or from which keys of parts are derived. Wiped when it goes.
#[derive(Clone)]
pub struct Key(Zeroizing<[u8; KEY_BYTES]>);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

impl Key {
    /// A fresh one, at random.
    #[must_use]
    pub fn generate() -> Self {
        Self(Zeroizing::new(random()))
    }

    /// The key with these bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Its bytes, for whoever may hold them.
    #[must_use]
    pub fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// Wraps a key for one purpose: it opens with the same `context` only.
    #[must_use]
    pub fn wrap(&self, context: &str, inner: &Self) -> [u8; WRAPPED_BYTES] {
        let mut sealed = inner.0.to_vec();
        let nonce = self
            .wrapping()
            .seal_in_place_append_tag(Aad::from(context), &mut sealed)
            .expect("a few bytes are not too many to seal");
        let mut wrapped = [0; WRAPPED_BYTES];
        let (head, tail) = wrapped.split_at_mut(NONCE_LEN);
        head.copy_from_slice(nonce.as_ref());
        tail.copy_from_slice(&sealed);
        wrapped
    }

    /// The key that [`Self::wrap`] wrapped.
    ///
    /// # Errors
    /// When another key, or another context, wrapped it.
    pub fn unwrap(&self, context: &str, wrapped: &[u8; WRAPPED_BYTES]) -> Result<Self, Damaged> {
        let (nonce, sealed) = wrapped.split_at(NONCE_LEN);
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Damaged)?;
        let mut sealed = Zeroizing::new(sealed.to_vec());
        let opened = self
            .wrapping()
            .open_in_place(nonce, Aad::from(context), &mut sealed)
            .map_err(|_| Damaged)?;
        let bytes = <[u8; KEY_BYTES]>::try_from(&*opened).map_err(|_| Damaged)?;
        Ok(Self::from_bytes(bytes))
    }

    fn wrapping(&self) -> RandomizedNonceKey {
        RandomizedNonceKey::new(&AES_256_GCM, self.0.as_slice())
            .expect("a key has the cipher's length")
    }
}

/// A part of a file, and how often it was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The version that the file belongs to.
    pub version: DatasetVersionId,
    /// The file.
    pub file: DatasetFileId,
    /// How many bytes the whole file has.
    pub file_bytes: u64,
    /// Which part, from 0.
    pub number: u32,
    /// Drawn anew for each try: a part that is sent twice is never sealed twice under one key.
    pub salt: [u8; PART_SALT_BYTES],
}

/// Seals and opens the chunks of one part.
pub struct PartKey(LessSafeKey);

impl fmt::Debug for PartKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PartKey(…)")
    }
}

/// Which chunk of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Which, from 0.
    pub number: u64,
    /// Does the part end with it?
    pub is_last: bool,
}

impl Chunk {
    fn nonce(self) -> Nonce {
        let mut nonce = [0; NONCE_LEN];
        nonce[0] = u8::from(self.is_last);
        nonce[NONCE_LEN - 8..].copy_from_slice(&self.number.to_be_bytes());
        Nonce::assume_unique_for_key(nonce)
    }
}

impl PartKey {
    /// Derives the key of a part from its version's data key: HKDF-SHA256 (RFC 5869), bound to all that places the part.
    #[must_use]
    pub fn derive(data_key: &Key, part: &Part) -> Self {
        let place = [
            PART_CONTEXT,
            part.version.0.as_bytes(),
            part.file.0.as_bytes(),
            &part.file_bytes.to_be_bytes(),
            &part.number.to_be_bytes(),
        ];
        let root = Salt::new(HKDF_SHA256, &part.salt).extract(data_key.0.as_slice());
        let derived = root.expand(&place, &AES_256_GCM);
        let derived = derived.expect("one key is not too much to expand");
        Self(LessSafeKey::new(UnboundKey::from(derived)))
    }

    /// Seals a chunk in its place; its tag.
    #[must_use]
    pub fn seal(&self, chunk: Chunk, bytes: &mut [u8]) -> [u8; TAG_LEN] {
        let tag: Tag = self
            .0
            .seal_in_place_separate_tag(chunk.nonce(), Aad::empty(), bytes)
            .expect("a chunk is not too long to seal");
        let mut it = [0; TAG_LEN];
        it.copy_from_slice(tag.as_ref());
        it
    }

    /// Opens a sealed chunk in its place.
    ///
    /// # Errors
    /// When it is not that chunk of that part, as it was sealed.
    pub fn open<'b>(&self, chunk: Chunk, sealed: &'b mut [u8]) -> Result<&'b mut [u8], Damaged> {
        let opened = self.0.open_in_place(chunk.nonce(), Aad::empty(), sealed);
        opened.map_err(|_| Damaged)
    }
}

/// How many bytes a part of so many has when it is sealed.
#[must_use]
pub const fn sealed_bytes(bytes: u64) -> u64 {
    bytes.saturating_add(chunks(bytes).saturating_mul(TAG_BYTES))
}

/// How many chunks a part of so many bytes has.
#[must_use]
pub const fn chunks(bytes: u64) -> u64 {
    bytes.div_ceil(CHUNK_BYTES)
}

/// What must be read of a sealed part to have some of its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Which chunks.
    pub chunks: Range<u64>,
    /// Where they are in the sealed part.
    pub sealed: Range<u64>,
    /// How many bytes of the first chunk come before the ones that are wanted.
    pub skipped: u64,
}

/// What must be read of a sealed part of `bytes` to have those in `range`, which is not empty and ends within them.
#[must_use]
pub fn span(bytes: u64, range: &Range<u64>) -> Span {
    let first = range.start / CHUNK_BYTES;
    let end = chunks(range.end.min(bytes));
    let sealed_chunk = CHUNK_BYTES + TAG_BYTES;
    Span {
        chunks: first..end,
        sealed: first * sealed_chunk..sealed_bytes(bytes).min(end * sealed_chunk),
        skipped: range.start - first * CHUNK_BYTES,
    }
}

/// What a new part is salted with.
#[must_use]
pub fn part_salt() -> [u8; PART_SALT_BYTES] {
    random()
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).expect("the system has randomness");
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A part as it lies in the store.
    fn sealed(key: &PartKey, bytes: &[u8]) -> Vec<u8> {
        let size = usize::try_from(CHUNK_BYTES).expect("small");
        let count = bytes.chunks(size).len();
        let mut whole = Vec::new();
        for (number, chunk) in bytes.chunks(size).enumerate() {
            let mut chunk = chunk.to_vec();
            let at = chunk_at(number, count);
            let tag = key.seal(at, &mut chunk);
            whole.extend(chunk);
            whole.extend(tag);
        }
        whole
    }

    fn chunk_at(number: usize, count: usize) -> Chunk {
        Chunk {
            number: number as u64,
            is_last: number + 1 == count,
        }
    }

    /// What a reader makes of a sealed part that should have so many bytes.
    fn opened(
        key: &PartKey,
        bytes: u64,
        range: Range<u64>,
        sealed: &[u8],
    ) -> Result<Vec<u8>, Damaged> {
        let span = span(bytes, &range);
        let place = |at: u64| usize::try_from(at).expect("small");
        let mut read = sealed
            .get(place(span.sealed.start)..place(span.sealed.end))
            .ok_or(Damaged)?
            .to_vec();
        let mut plain = Vec::new();
        let numbers = span.chunks.clone();
        for (number, chunk) in numbers.zip(read.chunks_mut(place(CHUNK_BYTES + TAG_BYTES))) {
            let is_last = number + 1 == chunks(bytes);
            plain.extend_from_slice(key.open(Chunk { number, is_last }, chunk)?);
        }
        let first = place(span.skipped);
        Ok(plain[first..first + place(range.end - range.start)].to_vec())
    }

    fn part() -> Part {
        Part {
            version: DatasetVersionId::generate(),
            file: DatasetFileId::generate(),
            file_bytes: 1_000_000,
            number: 3,
            salt: part_salt(),
        }
    }

    fn patterned(length: u64) -> Vec<u8> {
        (0..length).map(|at| (at % 251) as u8).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_range_of_a_part_opens_to_its_bytes(
            length in 1..3 * CHUNK_BYTES + 5, start in 0..3 * CHUNK_BYTES, more in 0..2 * CHUNK_BYTES,
        ) {
            let key = PartKey::derive(&Key::generate(), &part());
            let bytes = patterned(length);
            let sealed = sealed(&key, &bytes);
            prop_assert_eq!(sealed.len() as u64, sealed_bytes(length));
            let start = start % length;
            let end = (start + 1 + more).min(length);
            let wanted = bytes[usize::try_from(start).unwrap()..usize::try_from(end).unwrap()].to_vec();
            prop_assert_eq!(opened(&key, length, start..end, &sealed), Ok(wanted));
        }

        #[test]
        fn one_flipped_bit_anywhere_is_noticed(at in any::<prop::sample::Index>(), bit in 0..8_u8) {
            let key = PartKey::derive(&Key::generate(), &part());
            let length = 2 * CHUNK_BYTES + 9;
            let mut sealed = sealed(&key, &patterned(length));
            let at = at.index(sealed.len());
            sealed[at] ^= 1 << bit;
            prop_assert_eq!(opened(&key, length, 0..length, &sealed), Err(Damaged));
        }
    }

    #[test]
    fn swapped_repeated_dropped_and_cut_chunks_are_noticed() {
        let key = PartKey::derive(&Key::generate(), &part());
        let (length, whole) = (
            3 * CHUNK_BYTES,
            usize::try_from(CHUNK_BYTES + TAG_BYTES).unwrap(),
        );
        let good = sealed(&key, &patterned(length));
        let chunk = |number: usize| &good[number * whole..(number + 1) * whole];
        let swapped = [chunk(1), chunk(0), chunk(2)].concat();
        let repeated = [chunk(0), chunk(0), chunk(2)].concat();
        for bad in [swapped, repeated] {
            assert_eq!(opened(&key, length, 0..length, &bad), Err(Damaged));
        }
        // A reader that believes a false length sees it at the chunk that then is the last.
        let dropped = [chunk(0), chunk(1)].concat();
        assert_eq!(
            opened(&key, 2 * CHUNK_BYTES, 0..2 * CHUNK_BYTES, &dropped),
            Err(Damaged)
        );
        assert_eq!(opened(&key, length, 0..length, &dropped), Err(Damaged));
    }

    #[test]
    fn a_part_opens_in_its_place_alone() {
        let (data_key, here) = (Key::generate(), part());
        let bytes = patterned(10);
        let sealed = sealed(&PartKey::derive(&data_key, &here), &bytes);
        let open = |key: &Key, part: &Part| opened(&PartKey::derive(key, part), 10, 0..10, &sealed);
        assert_eq!(open(&data_key, &here), Ok(bytes));
        let elsewhere = [
            Part {
                version: DatasetVersionId::generate(),
                ..here
            },
            Part {
                file: DatasetFileId::generate(),
                ..here
            },
            Part {
                file_bytes: here.file_bytes + 1,
                ..here
            },
            Part {
                number: here.number + 1,
                ..here
            },
            Part {
                salt: part_salt(),
                ..here
            },
        ];
        for part in elsewhere {
            assert_eq!(open(&data_key, &part), Err(Damaged), "{part:?}");
        }
        assert_eq!(open(&Key::generate(), &here), Err(Damaged));
    }

    #[test]
    fn a_wrapped_key_opens_with_its_wrapper_in_its_context_alone() {
        let (root, inner) = (Key::generate(), Key::generate());
        let wrapped = root.wrap("tenant a", &inner);
        let opened = root
            .unwrap("tenant a", &wrapped)
            .expect("it was wrapped so");
        assert_eq!(opened.bytes(), inner.bytes());
        assert!(root.unwrap("tenant b", &wrapped).is_err());
        assert!(Key::generate().unwrap("tenant a", &wrapped).is_err());
        let mut flipped = wrapped;
        flipped[20] ^= 1;
        assert!(root.unwrap("tenant a", &flipped).is_err());
        assert_ne!(
            wrapped,
            root.wrap("tenant a", &inner),
            "each time another nonce"
        );
    }

    #[test]
    fn no_key_shows_itself_in_a_log() {
        let key = Key::from_bytes([7; KEY_BYTES]);
        assert_eq!(format!("{key:?}"), "Key(…)");
        assert_eq!(
            format!("{:?}", PartKey::derive(&key, &part())),
            "PartKey(…)"
        );
    }
}
