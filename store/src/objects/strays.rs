//! What the store holds and nobody refers to: parts whose client hung up, or whose service died, before they were noted, and files of uploads that
//! never ended.

use std::{
    fs, io,
    path::{Path as Folder, PathBuf},
    time::SystemTime,
};

use comptoir_domain::{envelope::PART_SALT_BYTES, id::DatasetFileId};
use futures::{Stream, TryStreamExt as _, future::ready};
use object_store::{ObjectMeta, ObjectStoreExt as _, path::Path};
use time::OffsetDateTime;
use uuid::Uuid;

use super::Objects;

/// Parts that are looked up at once.
const AT_ONCE: usize = 500;

/// The object of a part.
#[derive(Debug, Clone)]
pub struct StoredPart {
    /// Of which file.
    pub file: DatasetFileId,
    /// Which part.
    pub number: i32,
    /// What makes it this upload's, and no other's.
    pub salt: [u8; PART_SALT_BYTES],
    place: Path,
}

impl StoredPart {
    /// `None` of what no part is called.
    fn read(place: Path) -> Option<Self> {
        let names: Vec<_> = place.parts().collect();
        let [_, _, file, name] = &names[..] else {
            return None;
        };
        let (number, salt) = name.as_ref().split_once('-')?;
        let salt = alloy_primitives::hex::decode(salt).ok()?;
        Some(Self {
            file: DatasetFileId(Uuid::try_parse(file.as_ref()).ok()?),
            number: number.parse().ok()?,
            salt: salt.try_into().ok()?,
            place,
        })
    }
}

fn is_before(object: &ObjectMeta, then: OffsetDateTime) -> bool {
    object.last_modified.timestamp() < then.unix_timestamp()
}

impl Objects {
    /// All parts that were written before then, some at a time.
    pub fn parts_before(
        &self,
        then: OffsetDateTime,
    ) -> impl Stream<Item = Result<Vec<StoredPart>, object_store::Error>> + Send {
        let listed = self.0.list(Some(&Path::from("datasets")));
        listed
            .try_filter(move |it| ready(is_before(it, then)))
            .try_filter_map(|it| ready(Ok(StoredPart::read(it.location))))
            .try_chunks(AT_ONCE)
            .map_err(|error| error.1)
    }

    /// Removes the object of a part that nobody refers to.
    pub async fn remove_stray(&self, part: &StoredPart) -> Result<(), object_store::Error> {
        self.remove(&part.place).await
    }

    async fn remove(&self, object: &Path) -> Result<(), object_store::Error> {
        match self.0.delete(object).await {
            Err(object_store::Error::NotFound { .. }) | Ok(()) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes what uploads left that began before then and never ended; says how many. S3 keeps these where nobody lists them, and removes them by a
    /// rule of the bucket.
    pub async fn remove_unfinished(
        &self,
        then: OffsetDateTime,
    ) -> Result<usize, object_store::Error> {
        let incoming = self.0.list(Some(&Path::from("incoming")));
        let left: Vec<_> = incoming
            .try_filter(|it| ready(is_before(it, then)))
            .map_ok(|it| it.location)
            .try_collect()
            .await?;
        let mut removed = left.len();
        for object in &left {
            self.remove(object).await?;
        }
        if let Some(folder) = self.1.clone() {
            let staged = tokio::task::spawn_blocking(move || remove_staged(&folder, then.into()));
            let staged = staged.await.map_err(io::Error::other).flatten();
            let staged = staged.map_err(|error| object_store::Error::Generic {
                store: "LocalFileSystem",
                source: error.into(),
            })?;
            removed = removed.saturating_add(staged);
        }
        Ok(removed)
    }
}

/// A local store writes `name#1`, or another number, before it is `name`, and lists none of them.
fn remove_staged(root: &Folder, then: SystemTime) -> io::Result<usize> {
    let (mut folders, mut removed) = (vec![PathBuf::from(root)], 0_usize);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() && is_staged(&entry.path()) {
                match entry.metadata().and_then(|it| it.modified()) {
                    Ok(modified) if modified < then => {
                        fs::remove_file(entry.path())?;
                        removed = removed.saturating_add(1);
                    }
                    Ok(_) => {}
                    // It was finished in this moment.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
    Ok(removed)
}

fn is_staged(path: &Folder) -> bool {
    let name = path.file_name().and_then(|it| it.to_str());
    let number = name
        .and_then(|it| it.rsplit_once('#'))
        .map(|(_, number)| number);
    number.is_some_and(|it| !it.is_empty() && it.bytes().all(|it| it.is_ascii_digit()))
}
