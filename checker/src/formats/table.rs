//! CSV: a line of names, then records of as many fields each, in UTF-8. Fields are text: what a spreadsheet would take for a formula stays
//! as it is, for the reader to beware of.

use std::{
    cell::Cell,
    io::{self, Read},
    rc::Rc,
};

use comptoir_domain::dataset::{COLUMNS_MAX, Column, Facts, RECORD_BYTES_MAX};
use csv::{ErrorKind, ReaderBuilder, StringRecord};

use super::Refusal;
use crate::source::Source;

/// Bytes that the reader may take before it has the record that they begin.
const BUFFER_BYTES: u64 = 64 << 10;

/// Counts the rows of a table.
pub fn read(source: &Source) -> Result<Facts, Refusal> {
    let taken = Rc::new(Cell::new(0));
    let bounded = Bounded {
        inner: source.from(0),
        taken: Rc::clone(&taken),
    };
    let buffer = usize::try_from(BUFFER_BYTES).expect("small");
    let mut reader = ReaderBuilder::new()
        .buffer_capacity(buffer)
        .from_reader(bounded);
    let names = reader.headers().map_err(refusal)?.clone();
    if names.is_empty() || names.len() > COLUMNS_MAX {
        return Err(Refusal::of(format!(
            "expected 1 to {COLUMNS_MAX} columns, found {}",
            names.len()
        )));
    }
    taken.set(0);
    let (mut rows, mut record) = (0_u64, StringRecord::new());
    while reader.read_record(&mut record).map_err(refusal)? {
        taken.set(0);
        rows = rows.saturating_add(1);
        if record.as_slice().contains('\0') {
            return Err(Refusal::of(format!("row {rows} has a NUL character")));
        }
    }
    let column = |name: &str| Column {
        name: name.to_owned(),
        kind: "text".to_owned(),
    };
    Ok(Facts {
        rows: Some(rows),
        columns: names.iter().map(column).collect(),
    })
}

/// Ends a record that is too long before it is in memory: its reader asks for more and more without having one.
struct Bounded<R> {
    inner: R,
    /// Bytes since the last whole record.
    taken: Rc<Cell<u64>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.taken.get() > RECORD_BYTES_MAX.saturating_add(BUFFER_BYTES) {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, TooLong));
        }
        let count = self.inner.read(into)?;
        self.taken
            .set(self.taken.get().saturating_add(count as u64));
        Ok(count)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("a record has more than {RECORD_BYTES_MAX} bytes")]
struct TooLong;

fn refusal(error: csv::Error) -> Refusal {
    let text = error.to_string();
    match error.into_kind() {
        ErrorKind::Io(error) if error.kind() == io::ErrorKind::FileTooLarge => Refusal::of(error),
        ErrorKind::Io(error) => Refusal::Io(error),
        _ => Refusal::of(text),
    }
}
