use std::io::{Read as _, Seek as _, SeekFrom};

use futures::stream;

use super::*;

fn store() -> (tempfile::TempDir, Objects) {
    let folder = tempfile::tempdir().unwrap();
    let objects = Objects::open(&Url::from_directory_path(folder.path()).unwrap()).unwrap();
    (folder, objects)
}

fn body(bytes: &[u8]) -> impl Stream<Item = Result<Bytes, io::Error>> + Send + use<> {
    let chunks: Vec<_> = bytes
        .chunks(1 << 20)
        .map(|it| Ok(Bytes::copy_from_slice(it)))
        .collect();
    stream::iter(chunks)
}

fn files(folder: &tempfile::TempDir) -> usize {
    let mut folders = vec![folder.path().to_owned()];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files += 1;
            }
        }
    }
    files
}

/// Two and a half parts, all different.
fn large() -> Vec<u8> {
    let numbers = (0_u32..).flat_map(u32::to_le_bytes);
    numbers.take(PART_BYTES / 2 * 5).collect()
}

#[tokio::test]
async fn bytes_are_found_under_their_digest_whatever_their_size() {
    let (folder, objects) = store();
    for bytes in [Vec::new(), b"small".to_vec(), large()] {
        let expected = Stored {
            sha256: Sha256::of(&bytes),
            bytes: bytes.len() as u64,
        };
        for announced in [None, Some(expected.sha256)] {
            let stored = objects
                .put_stream(body(&bytes), u64::MAX, announced)
                .await
                .unwrap();
            assert_eq!(stored, expected);
        }
        assert_eq!(
            objects
                .get_all(expected.sha256, expected.bytes)
                .await
                .unwrap(),
            bytes
        );
    }
    assert_eq!(
        files(&folder),
        3,
        "nothing is left beside the three objects"
    );
}

#[tokio::test]
async fn a_refused_upload_leaves_nothing() {
    let (folder, objects) = store();
    let bytes = large();
    let limit = bytes.len() as u64 - 1;
    let too_large = objects.put_stream(body(&bytes), limit, None).await;
    assert!(
        matches!(too_large, Err(PutError::TooLarge { .. })),
        "{too_large:?}"
    );
    let other = objects
        .put_stream(body(&bytes), u64::MAX, Some(Sha256::of(b"other")))
        .await;
    assert!(
        matches!(other, Err(PutError::DigestMismatch { actual }) if actual == Sha256::of(&bytes))
    );
    let broken = body(&bytes).chain(stream::iter([Err(io::Error::other("gone"))]));
    let broken = objects
        .put_stream(broken, u64::MAX, Some(Sha256::of(&bytes)))
        .await;
    assert!(matches!(broken, Err(PutError::Body(_))), "{broken:?}");
    // Taking an upload back happens in the background.
    tokio::time::timeout(std::time::Duration::from_secs(10), async {
        while files(&folder) > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert!(matches!(
        objects.get_all(Sha256::of(&bytes), u64::MAX).await,
        Err(GetError::Missing(_))
    ));
}

#[tokio::test]
async fn changed_bytes_are_noticed() {
    let (folder, objects) = store();
    let stored = objects.put(Bytes::from_static(b"weights")).await.unwrap();
    let path = folder.path().join(place(stored.sha256).to_string());
    std::fs::write(path, b"Weights").unwrap();
    let read = objects.get_all(stored.sha256, 100).await;
    assert!(matches!(read, Err(GetError::Corrupt { .. })), "{read:?}");
}

#[tokio::test]
async fn a_reader_seeks_like_a_file() {
    let (_folder, objects) = store();
    let bytes = large();
    let stored = objects.put(bytes.clone().into()).await.unwrap();
    let mut reader = objects.reader(stored.sha256, stored.bytes);
    let read = move || {
        let mut read = |to, count| {
            let at = reader.seek(to).unwrap();
            let mut into = vec![0; count];
            reader.read_exact(&mut into).unwrap();
            (at, into)
        };
        let end = read(SeekFrom::End(-22), 22);
        let start = read(SeekFrom::Start(0), 4);
        let far = read(SeekFrom::Current(1_500_000), 3_000_000);
        let rest = reader
            .seek(SeekFrom::End(0))
            .and_then(|_| reader.read(&mut [0; 8]));
        (end, start, far, rest.unwrap())
    };
    let (end, start, far, rest) = tokio::task::spawn_blocking(read).await.unwrap();
    assert_eq!(end, (stored.bytes - 22, bytes[bytes.len() - 22..].to_vec()));
    assert_eq!(start, (0, bytes[..4].to_vec()));
    assert_eq!(far, (1_500_004, bytes[1_500_004..4_500_004].to_vec()));
    assert_eq!(rest, 0);
}
