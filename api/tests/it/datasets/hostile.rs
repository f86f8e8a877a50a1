//! Files that are not what they say, and files that are meant to hurt whoever reads them.

use std::sync::Arc;

use axum::http::StatusCode;
use comptoir_domain::dataset::RECORD_BYTES_MAX;
use parquet::{
    basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel},
    data_type::Int64Type,
    file::{
        metadata::{
            ColumnChunkMetaDataBuilder, FileMetaData, ParquetMetaData, ParquetMetaDataReader,
            ParquetMetaDataWriter, RowGroupMetaData,
        },
        properties::WriterProperties,
        writer::SerializedFileWriter,
    },
    schema::parser::parse_message_type,
};
use serde_json::json;
use sqlx::PgPool;

use super::{dataset, draft, fill, get, published, submit};
use crate::{harness::TestApp, market::example};

/// A table of three rows and one column.
fn parquet() -> Vec<u8> {
    table_of("REQUIRED INT64 n", None)
}

/// A table of three values in one column, at these levels.
fn table_of(column: &str, levels: Option<(&[i16], &[i16])>) -> Vec<u8> {
    let schema = Arc::new(parse_message_type(&format!("message m {{ {column}; }}")).unwrap());
    let properties = WriterProperties::builder()
        .set_compression(Compression::UNCOMPRESSED)
        .build();
    let mut bytes = Vec::new();
    let mut file = SerializedFileWriter::new(&mut bytes, schema, properties.into()).unwrap();
    let mut group = file.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column
        .typed::<Int64Type>()
        .write_batch(&[1, 2, 3], levels.map(|it| it.0), levels.map(|it| it.1))
        .unwrap();
    column.close().unwrap();
    group.close().unwrap();
    file.close().unwrap();
    bytes
}

/// The same pages under other metadata.
fn with_metadata(change: impl Fn(&ParquetMetaData) -> ParquetMetaData) -> Vec<u8> {
    under(&parquet(), change)
}

fn under(good: &[u8], change: impl Fn(&ParquetMetaData) -> ParquetMetaData) -> Vec<u8> {
    let metadata = ParquetMetaDataReader::new()
        .parse_and_finish(&bytes::Bytes::copy_from_slice(good))
        .unwrap();
    let length = u32::from_le_bytes(*good[good.len() - 8..].first_chunk().unwrap()) as usize;
    let mut bytes = good[..good.len() - 8 - length].to_vec();
    let mut tail = Vec::new();
    ParquetMetaDataWriter::new(&mut tail, &change(&metadata))
        .finish()
        .unwrap();
    bytes.extend(tail);
    bytes
}

fn of_rows(metadata: &ParquetMetaData, group: RowGroupMetaData, rows: i64) -> ParquetMetaData {
    let file = metadata.file_metadata();
    let file = FileMetaData::new(
        file.version(),
        rows,
        None,
        None,
        file.schema_descr_ptr(),
        None,
    );
    ParquetMetaData::new(file, vec![group])
}

/// Pages of any codec: nobody decompresses them.
fn compressed(codec: Compression) -> Vec<u8> {
    of_column(|column| column.set_compression(codec))
}

/// The page begins with the last byte of the file.
fn cut_head() -> Vec<u8> {
    let at = |offset: usize| {
        of_column(|column| {
            column
                .set_dictionary_page_offset(None)
                .set_data_page_offset(i64::try_from(offset).unwrap())
                .set_total_compressed_size(1)
        })
    };
    // Both offsets take two bytes.
    let bytes = at(100).len();
    let cut = at(bytes - 1);
    assert_eq!(cut.len(), bytes);
    cut
}

fn of_column(change: impl Fn(ColumnChunkMetaDataBuilder) -> ColumnChunkMetaDataBuilder) -> Vec<u8> {
    with_metadata(|metadata| {
        let group = metadata.row_group(0).clone();
        let column = change(group.column(0).clone().into_builder());
        let group = group
            .into_builder()
            .set_column_metadata(vec![column.build().unwrap()]);
        of_rows(metadata, group.build().unwrap(), 3)
    })
}

/// Three values that are said to be a billion rows of lists.
fn lying_lists() -> Vec<u8> {
    let lists = table_of("REPEATED INT64 n", Some((&[1, 1, 1], &[0, 0, 0])));
    under(&lists, of_a_billion)
}

fn lying_group() -> Vec<u8> {
    with_metadata(of_a_billion)
}

fn of_a_billion(metadata: &ParquetMetaData) -> ParquetMetaData {
    {
        let group = metadata
            .row_group(0)
            .clone()
            .into_builder()
            .set_num_rows(1_000_000_000);
        of_rows(metadata, group.build().unwrap(), 1_000_000_000)
    }
}

fn bomb() -> Vec<u8> {
    of_column(|column| column.set_total_uncompressed_size(1 << 40))
}

fn outside() -> Vec<u8> {
    of_column(|column| column.set_data_page_offset(i64::MAX - 1))
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_is_in_a_file_is_found_by_reading_it(db: PgPool) {
    let app = TestApp::new(db).await;
    let seller = app.session().await;
    let tensors = example("test.safetensors");
    let lines = b"{\"a\":1,\"b\":null}\n{\"a\":\"x\",\"b\":[1]}\n";
    let files = [
        ("t.parquet", parquet()),
        ("t.safetensors", tensors),
        ("t.jsonl", lines.to_vec()),
        ("t.txt", b"\0\xff".to_vec()),
    ];
    let files: Vec<_> = files
        .iter()
        .map(|(path, bytes)| (*path, &bytes[..]))
        .collect();
    let (_, _, paths) = published(&app, &seller, &files).await;
    let facts = async |place: usize| get(&app, &seller, &paths[place]).await.json["facts"].clone();
    assert_eq!(
        facts(0).await,
        json!({ "rows": 3, "columns": [{ "name": "n", "type": "int64" }] })
    );
    assert!(!facts(1).await["columns"].as_array().unwrap().is_empty());
    assert_eq!(
        facts(2).await,
        json!({ "rows": 2, "columns": [{ "name": "a", "type": "mixed" }, { "name": "b", "type": "array" }] })
    );
    assert_eq!(facts(3).await, json!(null));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn tables_of_any_codec_and_of_lists_are_read(db: PgPool) {
    let app = TestApp::new(db).await;
    let seller = app.session().await;
    let codecs = [
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::BROTLI(BrotliLevel::default()),
        Compression::LZ4_RAW,
        Compression::ZSTD(ZstdLevel::default()),
    ];
    let mut files: Vec<_> = codecs.map(compressed).to_vec();
    files.push(table_of("REPEATED INT64 n", Some((&[1, 1, 1], &[0, 0, 1]))));
    let names: Vec<_> = (0..files.len())
        .map(|place| format!("{place}.parquet"))
        .collect();
    let files: Vec<_> = names
        .iter()
        .zip(&files)
        .map(|(name, bytes)| (&name[..], &bytes[..]))
        .collect();
    let (_, _, paths) = published(&app, &seller, &files).await;
    for (path, rows) in paths.iter().zip([3, 3, 3, 3, 3, 2]) {
        let facts = get(&app, &seller, path).await.json["facts"].clone();
        assert_eq!(facts["rows"], rows, "{facts}");
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_is_not_what_it_says_is_refused_file_by_file(db: PgPool) {
    let app = TestApp::new(db).await;
    let seller = app.session().await;
    let record = usize::try_from(RECORD_BYTES_MAX).unwrap();
    let columns = "a,".repeat(1_000_000);
    let mut cut = parquet();
    cut.drain(..10);
    let header = |length: u64, json: &str| [&length.to_le_bytes()[..], json.as_bytes()].concat();
    let overlap = r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#;
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("zero.csv", b"a,b\n1,\0\n".to_vec(), "NUL"),
        ("ragged.csv", b"a,b\n1\n".to_vec(), "fields"),
        ("latin.csv", b"a\n\xe9\n".to_vec(), "UTF-8"),
        (
            "wide.csv",
            format!("{columns}x\n").into_bytes(),
            "more than",
        ),
        (
            "long.csv",
            [b"a\n\"".to_vec(), vec![b'x'; 3 * record], b"\"\n".to_vec()].concat(),
            "more than",
        ),
        ("twice.csv", b"a,a\n1,2\n".to_vec(), "one name"),
        (
            "long.jsonl",
            [
                b"{\"a\":\"".to_vec(),
                vec![b'x'; 3 * record],
                b"\"}\n".to_vec(),
            ]
            .concat(),
            "more than",
        ),
        ("array.jsonl", b"[1]\n".to_vec(), "no JSON object"),
        (
            "deep.jsonl",
            format!("{{\"a\":{}1{}}}\n", "[".repeat(500), "]".repeat(500)).into_bytes(),
            "recursion",
        ),
        ("zero.jsonl", b"{\"a\\u0000\":1}\n".to_vec(), "do not show"),
        (
            "turned.csv",
            "a\u{202e}b\n1\n".as_bytes().to_vec(),
            "do not show",
        ),
        ("half.jsonl", b"{\"a\":1}\n{\"a\"".to_vec(), "line 2"),
        (
            "pickle.safetensors",
            b"\x80\x04\x95\x0a\x00\x00\x00\x00\x00\x00\x00}q\x00.".to_vec(),
            "header",
        ),
        (
            "zip.safetensors",
            b"PK\x03\x04\x00\x00\x00\x00\x00\x00\x00\x00".to_vec(),
            "header",
        ),
        ("endless.safetensors", header(u64::MAX, "{}"), "header"),
        ("short.safetensors", header(100, "{}"), "shorter"),
        (
            "overlap.safetensors",
            [header(overlap.len() as u64, overlap), vec![0; 3]].concat(),
            "overlap",
        ),
        ("cut.parquet", cut, "missing"),
        (
            "none.parquet",
            b"not parquet at all".to_vec(),
            "not a Parquet file",
        ),
        (
            "huge.parquet",
            b"PAR1\xff\xff\xff\x7fPAR1".to_vec(),
            "metadata",
        ),
        ("group.parquet", lying_group(), "other rows"),
        ("lists.parquet", lying_lists(), "other rows"),
        ("head.parquet", cut_head(), "ends early"),
        ("bomb.parquet", bomb(), "grows"),
        ("outside.parquet", outside(), "outside"),
    ];
    let dataset = dataset(&app, &seller).await;
    let version = draft(&app, &seller, &dataset).await;
    let files: Vec<_> = cases
        .iter()
        .map(|(path, bytes, _)| (*path, &bytes[..]))
        // The mark that spreadsheets begin their files with is no part of a name.
        .chain([("good.csv", "\u{feff}a\n1\n".as_bytes())])
        .collect();
    fill(&app, &seller, &version, &files).await;
    let refused = submit(&app, &seller, &version).await;
    assert_eq!(refused.text("/state"), "refused");
    let refusals = refused.json["refusals"].as_array().unwrap();
    for (path, _, reason) in &cases {
        let found = refusals.iter().find(|it| it["path"] == *path);
        let found = found.unwrap_or_else(|| panic!("{path} was not refused"))["reason"]
            .as_str()
            .unwrap();
        assert!(found.contains(reason), "{path}: {found}");
        assert!(!found.contains("ends the reader"), "{path}: {found}");
    }
    assert_eq!(
        refusals.len(),
        cases.len(),
        "the good one is not among them"
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn other_bytes_than_announced_are_refused_by_their_digest(db: PgPool) {
    let app = TestApp::new(db).await;
    let seller = app.session().await;
    let dataset = dataset(&app, &seller).await;
    let version = draft(&app, &seller, &dataset).await;
    let files = super::announce(&app, &seller, &version, &[("a.txt", b"these")]).await;
    super::put(&app, &seller, &files[0], 0, b"those")
        .await
        .expect(StatusCode::NO_CONTENT);
    let refused = submit(&app, &seller, &version).await;
    assert_eq!(refused.text("/state"), "refused");
    assert!(refused.text("/refusals/0/reason").contains("digest"));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_card_shows_all_that_it_says_of_a_dataset_as_of_a_model(db: PgPool) {
    let app = TestApp::new(db).await;
    let owner = app.session().await;
    for place in ["/v1/datasets", "/v1/models"] {
        for (field, value, pointer) in [
            ("title", json!("\u{202e}gpj.exe"), "/title"),
            ("title", json!("\u{200b}"), "/title"),
            ("tags", json!(["a\u{200b}"]), "/tags/0"),
            ("description", json!("see\n\u{202e}gpj.exe"), "/description"),
            ("provenance", json!("\u{2066}x"), "/provenance"),
        ] {
            let mut card = json!({ "name": "plain", "title": "Plain", "licence": "MIT" });
            card[field] = value;
            let refused = app.post(place, &card).by(&owner).send().await;
            let refused =
                refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
            assert_eq!(refused.text("/errors/0/pointer"), pointer, "{place}");
        }
        let card = json!({ "name": "plain", "title": "ספרות 🚀", "licence": "MIT", "description": "one\n\ttwo" });
        let made = app.post(place, &card).by(&owner).send().await;
        made.expect(StatusCode::CREATED);
    }
}
