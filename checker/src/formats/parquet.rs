//! Parquet: the metadata, and the heads of all pages, which must say the same of rows and values. No page is ever decompressed here, so a bomb
//! does not go off, and nobody counts what a page has in it; one whose metadata claims to grow beyond measure is refused.

use comptoir_domain::dataset::{COLUMNS_MAX, Column, Facts};
use parquet::{
    basic::Compression,
    column::page::PageReader as _,
    errors::ParquetError,
    file::{
        metadata::{ColumnChunkMetaData, RowGroupMetaData},
        reader::FileReader as _,
        serialized_reader::{SerializedFileReader, SerializedPageReader},
    },
};
use std::sync::Arc;

use super::Refusal;
use crate::source::Source;

/// Bytes of the metadata at the end of a file.
const METADATA_BYTES_MAX: u32 = 16 << 20;
/// Bytes behind the metadata: its length, and four letters.
const TAIL_BYTES: u64 = 8;
/// Groups of rows.
const ROW_GROUPS_MAX: usize = 100_000;
/// Pages of all columns.
const PAGES_MAX: u64 = 10_000_000;
/// How many times larger a column may become when it is decompressed, beyond what is small anyway.
const GROWTH_MAX: i64 = 1000;
/// Bytes that are small anyway.
const SMALL_BYTES: i64 = 64 << 20;

/// Finds the columns of a table, and counts its rows.
pub fn read(source: &Source) -> Result<Facts, Refusal> {
    check_tail(source)?;
    let reader = SerializedFileReader::new(source.clone()).map_err(refusal)?;
    let metadata = reader.metadata();
    let descriptor = metadata.file_metadata().schema_descr();
    if !(1..=COLUMNS_MAX).contains(&descriptor.num_columns())
        || metadata.num_row_groups() > ROW_GROUPS_MAX
    {
        return Err(Refusal::of(format!(
            "expected 1 to {COLUMNS_MAX} columns in at most {ROW_GROUPS_MAX} groups of rows"
        )));
    }
    let (mut rows, mut pages) = (0_i64, 0_u64);
    for group in metadata.row_groups() {
        rows = rows
            .checked_add(group.num_rows())
            .filter(|_| group.num_rows() >= 0)
            .ok_or_else(lying)?;
        for column in group.columns() {
            check_column(source, group, column, &mut pages)?;
        }
    }
    if rows != metadata.file_metadata().num_rows() {
        return Err(lying());
    }
    let columns = descriptor.columns().iter().map(|column| Column {
        name: column.path().string(),
        kind: column.physical_type().to_string().to_lowercase(),
    });
    Ok(Facts {
        rows: u64::try_from(rows).ok(),
        columns: columns.collect(),
    })
}

/// Refuses metadata that would be too large before it is read.
fn check_tail(source: &Source) -> Result<(), Refusal> {
    let mut tail = [0; 8];
    let at = source
        .bytes()
        .checked_sub(TAIL_BYTES)
        .ok_or_else(|| Refusal::of("the file is too short"))?;
    source.read(at, &mut tail)?;
    let (length, magic) = tail.split_at(4);
    let length = length
        .first_chunk()
        .map_or(u32::MAX, |it| u32::from_le_bytes(*it));
    if magic != b"PAR1" {
        return Err(Refusal::of("not a Parquet file, or an encrypted one"));
    }
    if length > METADATA_BYTES_MAX {
        return Err(Refusal::of(format!(
            "more than {METADATA_BYTES_MAX} bytes of metadata"
        )));
    }
    Ok(())
}

/// The heads of a column's pages say how many values they hold; a column that repeats nothing has one for each row.
fn check_column(
    source: &Source,
    group: &RowGroupMetaData,
    column: &ColumnChunkMetaData,
    pages: &mut u64,
) -> Result<(), Refusal> {
    let (stored, grown) = (column.compressed_size(), column.uncompressed_size());
    let (first, dictionary) = (column.data_page_offset(), column.dictionary_page_offset());
    let start = dictionary.map_or(first, |at| at.min(first));
    let end = start
        .checked_add(stored)
        .and_then(|end| u64::try_from(end).ok());
    if start < 0
        || stored < 0
        || grown < 0
        || end.is_none_or(|end| end > source.bytes())
        || u64::try_from(first).ok() > end
        || column.file_path().is_some()
    {
        return Err(Refusal::of("a column is outside of the file"));
    }
    if grown > stored.saturating_mul(GROWTH_MAX).max(SMALL_BYTES) {
        return Err(Refusal::of(format!(
            "a column grows more than {GROWTH_MAX} times when it is decompressed"
        )));
    }
    let rows = usize::try_from(group.num_rows()).map_err(|_| lying())?;
    // Heads of pages are not compressed, and pages are skipped: no codec is needed, whichever it is.
    let plain = column.clone().into_builder();
    let plain = plain.set_compression(Compression::UNCOMPRESSED).build();
    let plain = plain.map_err(refusal)?;
    let mut reader =
        SerializedPageReader::new(Arc::new(source.clone()), &plain, rows, None).map_err(refusal)?;
    let mut values = 0_u64;
    while let Some(page) = reader.peek_next_page().map_err(refusal)? {
        *pages = pages.saturating_add(1);
        if *pages > PAGES_MAX {
            return Err(Refusal::of(format!("more than {PAGES_MAX} pages")));
        }
        if !page.is_dict {
            let more = page.num_levels.or(page.num_rows).ok_or_else(lying)?;
            values = values.saturating_add(more as u64);
        }
        reader.skip_next_page().map_err(refusal)?;
    }
    let told = u64::try_from(column.num_values()).map_err(|_| lying())?;
    // What repeats has a value at least for each row, if only that there is none.
    let repeats = column.column_descr().max_rep_level() > 0;
    let fits = if repeats {
        values >= rows as u64
    } else {
        values == rows as u64
    };
    if values != told || !fits {
        return Err(lying());
    }
    Ok(())
}

fn lying() -> Refusal {
    Refusal::of("the file has other rows than it says")
}

fn refusal(error: ParquetError) -> Refusal {
    match error {
        ParquetError::External(cause) => match cause.downcast::<std::io::Error>() {
            Ok(error) => Refusal::Io(*error),
            Err(cause) => Refusal::of(cause),
        },
        other => Refusal::of(other),
    }
}
