//! The file that a child reads, as it sees it.

use std::{
    io::{self, Read},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use parquet::{
    errors::{ParquetError, Result as ParquetResult},
    file::reader::{ChunkReader, Length},
};

use crate::message::READ_BYTES_MAX;

/// Bytes that are fetched first after a jump; each fetch that goes on doubles them.
const FIRST_READ_BYTES: usize = 16 << 10;

/// Fills a buffer of at most [`READ_BYTES_MAX`] with what the file has from there on.
type Fetch = dyn FnMut(u64, &mut [u8]) -> io::Result<()> + Send;

/// Where its bytes come from, and how long the file is. Clones share it.
#[derive(Clone)]
pub struct Source {
    fetch: Arc<Mutex<Fetch>>,
    has_failed: Arc<AtomicBool>,
    bytes: u64,
}

impl Source {
    /// A file of so many bytes, which come from there.
    pub fn new(
        bytes: u64,
        fetch: impl FnMut(u64, &mut [u8]) -> io::Result<()> + Send + 'static,
    ) -> Self {
        Self {
            fetch: Arc::new(Mutex::new(fetch)),
            has_failed: Arc::default(),
            bytes,
        }
    }

    /// How long it is.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Were bytes not given that were asked for? Any other failure to read is the file's own.
    pub fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Relaxed)
    }

    /// A range, which must be within the file.
    pub fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let read = self.fetch(at, into);
        if read.is_err() {
            self.has_failed.store(true, Ordering::Relaxed);
        }
        read
    }

    fn fetch(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let mut fetch = self.fetch.lock().unwrap_or_else(PoisonError::into_inner);
        let mut at = at;
        for piece in into.chunks_mut(READ_BYTES_MAX as usize) {
            fetch(at, piece)?;
            at = at.saturating_add(piece.len() as u64);
        }
        Ok(())
    }

    /// The bytes from here to the end.
    pub fn from(&self, at: u64) -> Reading {
        Reading {
            source: self.clone(),
            at,
            ahead: Vec::new(),
            used: 0,
            step: FIRST_READ_BYTES,
        }
    }
}

/// Reads a file on, with what is read ahead.
pub struct Reading {
    source: Source,
    /// Where the next fetch begins.
    at: u64,
    ahead: Vec<u8>,
    used: usize,
    step: usize,
}

impl Read for Reading {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.used == self.ahead.len() {
            let left = self.source.bytes.saturating_sub(self.at);
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(self.step);
            self.ahead.resize(count, 0);
            self.used = 0;
            if count == 0 {
                return Ok(0);
            }
            self.source.read(self.at, &mut self.ahead)?;
            self.at = self.at.saturating_add(count as u64);
            self.step = self.step.saturating_mul(2).min(READ_BYTES_MAX as usize);
        }
        let left = &self.ahead[self.used..];
        let count = left.len().min(into.len());
        into[..count].copy_from_slice(&left[..count]);
        self.used = self.used.saturating_add(count);
        Ok(count)
    }
}

impl Length for Source {
    fn len(&self) -> u64 {
        self.bytes
    }
}

impl ChunkReader for Source {
    type T = Reading;

    fn get_read(&self, start: u64) -> ParquetResult<Reading> {
        Ok(self.from(start))
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        let end = start.checked_add(length as u64);
        if end.is_none_or(|end| end > self.bytes) {
            return Err(ParquetError::EOF("the file ends before that".to_owned()));
        }
        let mut bytes = vec![0; length];
        self.read(start, &mut bytes)?;
        Ok(bytes.into())
    }
}
