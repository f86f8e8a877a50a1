//! Files that are no program or no tensors: they are kept as the bytes that they are, told apart by content, and no job is
//! priced on them.

use std::io::{Cursor, Write as _};

use axum::http::StatusCode;
use comptoir_domain::digest::Sha256;
use serde_json::{Value, json};
use sqlx::PgPool;
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

use super::{assert_refused, rows, somebody};
use crate::{
    harness::TestApp,
    market::{example, quote, training, upload},
};

/// A file that nothing can run or read, and what it is taken for.
struct File {
    name: &'static str,
    bytes: fn() -> Vec<u8>,
    /// What is told of it where it looks like a program: a piece of the text.
    told: Option<&'static str>,
}

const fn file(name: &'static str, bytes: fn() -> Vec<u8>) -> File {
    File {
        name,
        bytes,
        told: None,
    }
}

const fn archive(name: &'static str, bytes: fn() -> Vec<u8>, told: &'static str) -> File {
    File {
        name,
        bytes,
        told: Some(told),
    }
}

/// The catalogue of uploads.
const FILES: &[File] = &[
    file("nothing", Vec::new),
    file("seven bytes", || vec![0; 7]),
    file("a header beyond the file", || headed(1_000, b"{}")),
    file("a header of 2^64-1 bytes", || headed(u64::MAX, b"{}")),
    file("a header of 100 MB", || headed(100_000_000, b"{}")),
    file("no object", || tensors("[]", 0)),
    file("a pickle as tensors", || {
        b"\x00\x00\x00\x00\x00\x00\x00\x80ctorch".to_vec()
    }),
    file("offsets that overlap", || {
        tensors(
            r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#,
            6,
        )
    }),
    file("offsets with a gap", || {
        tensors(
            r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[5,9]}}"#,
            9,
        )
    }),
    file("offsets that run backwards", || {
        tensors(
            r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[4,0]}}"#,
            4,
        )
    }),
    file("bytes that are not the shape's", || {
        tensors(
            r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,4]}}"#,
            4,
        )
    }),
    file("a shape beyond every number", || {
        tensors(
            r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,0]}}"#,
            0,
        )
    }),
    file("a negative shape", || {
        tensors(
            r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#,
            4,
        )
    }),
    file("a type that nobody has", || {
        tensors(
            r#"{"a":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}"#,
            8,
        )
    }),
    file("one name twice", || {
        tensors(
            r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"a":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}"#,
            4,
        )
    }),
    file("a long name", || named(&"a".repeat(1 << 20))),
    file("a name with a control character", || named("a\\u0000b")),
    file("a name that is reserved", || {
        tensors(
            r#"{"__metadata__":{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}}"#,
            2,
        )
    }),
    file("100,000 tensors", || {
        let one = |n: u32| format!(r#""t{n}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#);
        let all: Vec<_> = (0..100_000).map(one).collect();
        tensors(&format!("{{{}}}", all.join(",")), 0)
    }),
    file("a header of nothing but depth", || {
        tensors(&format!("{{\"a\":{}", "[".repeat(100_000)), 0)
    }),
    file("a header of nothing but numbers", || {
        tensors(&format!("{{\"a\":[{}0]}}", "0,".repeat(2_000_000)), 0)
    }),
    file("a boolean that is none", || {
        tensors(
            r#"{"a":{"dtype":"BOOL","shape":[-0],"data_offsets":[0,1]}}"#,
            1,
        )
    }),
    file("GGUF", || b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0".to_vec()),
    file("an image", || b"\x89PNG\r\n\x1a\n".to_vec()),
    file("a script", || b"#!/bin/sh\nrm -rf /\n".to_vec()),
    file("a formula", || b"=cmd|' /C calc'!A0\n".to_vec()),
    file("a gzip bomb", || {
        // Ten zero bytes after the head of a gzip file: nobody inflates it.
        [b"\x1f\x8b\x08\0\0\0\0\0\0\x03".as_slice(), &[0; 10]].concat()
    }),
    archive("a pickle", || b"\x80\x02cos\nsystem\n".to_vec(), "pickle"),
    archive(
        "a pickle in a zip",
        || zipped(&[("model/data.pkl", b"\x80\x02")]),
        "pickle",
    ),
    archive(
        "TorchScript",
        || {
            zipped(&[
                ("net/code/__torch__.py", b"import os"),
                ("net/constants.pkl", b""),
            ])
        },
        "TorchScript",
    ),
    archive(
        "compiled code",
        || zipped(&[("net/data/aotinductor/model/lib.so", b"\x7fELF")]),
        "AOTInductor",
    ),
    archive(
        "a path out of the archive",
        || zipped(&[("net/../../etc/passwd", b"x")]),
        "path",
    ),
    archive(
        "an absolute path",
        || zipped(&[("/etc/passwd", b"x")]),
        "path",
    ),
    archive(
        "a graph that inflates to 64 MiB",
        || zipped(&[("net/models/model.json", &vec![b' '; 64 << 20])]),
        "larger",
    ),
    archive(
        "an archive with tensors behind it",
        || {
            let tail = tensors(
                r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#,
                0,
            );
            let mut both = zipped(&[("net/archive_format", b"pt2")]);
            both.extend_from_slice(&tail);
            both
        },
        "consistent",
    ),
    archive(
        "half an archive",
        || {
            let mut half = example("mlp.pt2");
            half.truncate(half.len() / 2);
            half
        },
        "consistent",
    ),
];

fn headed(length: u64, rest: &[u8]) -> Vec<u8> {
    [length.to_le_bytes().as_slice(), rest].concat()
}

fn tensors(head: &str, data: usize) -> Vec<u8> {
    let mut bytes = headed(head.len() as u64, head.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn named(name: &str) -> Vec<u8> {
    tensors(
        &format!(r#"{{"{name}":{{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}}}"#),
        2,
    )
}

fn zipped(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
    for (name, content) in files {
        zip.start_file(*name, options).unwrap();
        zip.write_all(content).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_file_that_is_neither_program_nor_tensors_makes_no_job(db: PgPool) {
    let app = TestApp::new(db).await;
    let (session, _) = somebody(&app).await;
    let good = training(&app, &session, "mlp.pt2").await;
    for File { name, bytes, told } in FILES {
        let bytes = bytes();
        let kept = upload(&app, &session, &bytes).await;
        assert!(
            [StatusCode::CREATED, StatusCode::OK].contains(&kept.status),
            "{name}: {:?}",
            kept.json
        );
        assert_eq!(kept.text("/kind"), "other", "{name}");
        let detail = kept.json["detail"].as_str();
        match told {
            Some(piece) => assert!(detail.unwrap().contains(piece), "{name}: {detail:?}"),
            None => assert_eq!(detail, None, "{name}"),
        }
        let digest = json!(Sha256::of(&bytes));
        let input = good["inputs"].as_object().unwrap().keys().next().unwrap();
        let before = rows(&app).await;
        for place in [
            "/program".to_owned(),
            "/weights".to_owned(),
            "/target/blob".to_owned(),
            format!("/inputs/{input}/blob"),
        ] {
            let mut spec = good.clone();
            if place == "/weights" {
                spec["weights"] = Value::Null;
            }
            *spec.pointer_mut(&place).unwrap() = digest.clone();
            let reply = quote(&app, &session, &spec, "none").await;
            assert_refused(&reply, &[422], &format!("{name} as {place}"));
        }
        assert_eq!(rows(&app).await, before, "{name}: nothing was written");
    }
}
