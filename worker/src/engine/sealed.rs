//! Files of datasets: on disk as they were sealed, opened a chunk at a time in the memory of the process that computes.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use comptoir_domain::{
    envelope::{self, Chunk, PartKey},
    id::{DatasetFileId, DatasetVersionId},
};
use comptoir_wire::dataset::{DataKey, SealedFile};

/// The file of the scratch folder that has the sealed parts of a dataset's file, one behind the other.
#[must_use]
pub fn name(file: DatasetFileId) -> PathBuf {
    format!("sealed-{file}").into()
}

/// Reads a sealed file as what it was.
pub struct SealedReader {
    sealed: File,
    key: DataKey,
    version: DatasetVersionId,
    file: SealedFile,
    at: u64,
    /// The key of the part that was read last.
    part: Option<(u32, PartKey)>,
    /// The chunk that was opened last: where it begins, and its bytes.
    opened: Option<(u64, Vec<u8>)>,
}

impl SealedReader {
    /// Opens a file of the scratch folder.
    pub fn open(
        folder: &Path,
        (version, key): (DatasetVersionId, DataKey),
        file: SealedFile,
    ) -> io::Result<Self> {
        Ok(Self {
            sealed: File::open(folder.join(name(file.file_id)))?,
            key,
            version,
            file,
            at: 0,
            part: None,
            opened: None,
        })
    }

    /// Bytes of the file, opened.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.file.bytes
    }

    /// The bytes from where it stands to the end of their chunk.
    fn rest(&mut self) -> io::Result<&[u8]> {
        let is_at = |(start, bytes): &(u64, Vec<u8>)| {
            (*start..*start + bytes.len() as u64).contains(&self.at)
        };
        if !self.opened.as_ref().is_some_and(is_at) {
            self.opened = Some(self.chunk()?);
        }
        let (start, bytes) = self.opened.as_ref().ok_or(io::ErrorKind::InvalidData)?;
        let within = usize::try_from(self.at - start).map_err(io::Error::other)?;
        bytes
            .get(within..)
            .ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Opens the chunk where it stands.
    fn chunk(&mut self) -> io::Result<(u64, Vec<u8>)> {
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, envelope::Damaged);
        let part_bytes = u64::from(self.file.part_bytes);
        let number = u32::try_from(self.at / part_bytes).map_err(io::Error::other)?;
        let length = self.file.part_length(number).ok_or_else(damaged)?;
        let within = self.at % part_bytes;
        let span = envelope::span(length, &(within..within + 1));
        let place = span.sealed.start + self.file.sealed_start(number);
        let size =
            usize::try_from(span.sealed.end - span.sealed.start).map_err(io::Error::other)?;
        let mut sealed = vec![0; size];
        self.sealed.seek(SeekFrom::Start(place))?;
        self.sealed.read_exact(&mut sealed)?;
        let chunk = Chunk {
            number: span.chunks.start,
            is_last: span.chunks.start + 1 == envelope::chunks(length),
        };
        let start = self.at - span.skipped;
        let opened = self.part_key(number)?.open(chunk, &mut sealed);
        let opened = opened.map_err(|_| damaged())?.len();
        sealed.truncate(opened);
        Ok((start, sealed))
    }

    fn part_key(&mut self, number: u32) -> io::Result<&PartKey> {
        if self.part.as_ref().is_none_or(|(part, _)| *part != number) {
            let part = self.file.part(self.version, number);
            let part = part.ok_or(io::ErrorKind::InvalidData)?;
            self.part = Some((number, PartKey::derive(&self.key.0, &part)));
        }
        let key = self.part.as_ref().map(|(_, key)| key);
        key.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

impl Read for SealedReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.file.bytes || buffer.is_empty() {
            return Ok(0);
        }
        let rest = self.rest()?;
        let read = rest.len().min(buffer.len());
        buffer[..read].copy_from_slice(&rest[..read]);
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for SealedReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.file.bytes.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use comptoir_domain::{
        digest::Sha256,
        envelope::{CHUNK_BYTES, Key},
    };
    use comptoir_wire::encoded::Base64;

    use super::*;

    /// A file of three parts, sealed into a folder.
    fn sealed(
        folder: &Path,
        bytes: &[u8],
        part_bytes: u32,
    ) -> (DatasetVersionId, DataKey, SealedFile) {
        let (version, key) = (DatasetVersionId::generate(), Key::generate());
        let parts = bytes.chunks(usize::try_from(part_bytes).unwrap());
        let file = SealedFile {
            file_id: DatasetFileId::generate(),
            sha256: Sha256::of(bytes),
            bytes: bytes.len() as u64,
            part_bytes,
            salts: parts
                .clone()
                .map(|_| Base64(envelope::part_salt()))
                .collect(),
        };
        let mut whole = Vec::new();
        for (number, part) in parts.enumerate() {
            let place = file.part(version, u32::try_from(number).unwrap()).unwrap();
            let part_key = PartKey::derive(&key, &place);
            let chunks = part.chunks(usize::try_from(CHUNK_BYTES).unwrap());
            let last = chunks.len() - 1;
            for (number, chunk) in chunks.enumerate() {
                let mut chunk = chunk.to_vec();
                let at = Chunk {
                    number: number as u64,
                    is_last: number == last,
                };
                let tag = part_key.seal(at, &mut chunk);
                whole.extend_from_slice(&chunk);
                whole.extend_from_slice(&tag);
            }
        }
        std::fs::write(folder.join(name(file.file_id)), whole).unwrap();
        (version, DataKey(key), file)
    }

    #[test]
    fn any_bytes_of_a_sealed_file_are_read_wherever_it_stands() {
        let folder = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..300_000_u32).map(|at| (at % 251) as u8).collect();
        let (version, key, file) = sealed(folder.path(), &bytes, 131_072);
        let mut reader = SealedReader::open(folder.path(), (version, key), file).unwrap();
        assert_eq!(reader.length(), 300_000);
        for (start, length) in [
            (0, 300_000),
            (65_535, 2),
            (131_071, 70_000),
            (299_999, 1),
            (7, 0),
        ] {
            let mut read = vec![0; length];
            reader.seek(SeekFrom::Start(start as u64)).unwrap();
            reader.read_exact(&mut read).unwrap();
            assert_eq!(read, bytes[start..start + length], "{start}");
        }
        assert_eq!(reader.seek(SeekFrom::End(0)).unwrap(), 300_000);
        assert_eq!(reader.read(&mut [0; 8]).unwrap(), 0, "nothing is behind it");
    }

    #[test]
    fn what_was_changed_on_disk_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let (version, key, file) = sealed(folder.path(), &vec![7; 100_000], 65_536);
        let place = folder.path().join(name(file.file_id));
        let mut changed = std::fs::read(&place).unwrap();
        changed[70_000] ^= 1;
        std::fs::write(&place, changed).unwrap();
        let mut reader = SealedReader::open(folder.path(), (version, key), file).unwrap();
        let mut first = vec![0; 65_536];
        reader.read_exact(&mut first).unwrap();
        assert_eq!(first, vec![7; 65_536]);
        let error = reader.read(&mut first).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
