//! Results compared by their tensors, which are read from the object store.

use comptoir_domain::{
    deviation,
    digest::Sha256,
    verdict::{Agreement, Comparison, Deviation, Shown, compare},
};
use comptoir_store::{
    objects::{GetError, Objects},
    verdicts::{Case, ShownResult},
};
use tokio::{sync::Semaphore, task::spawn_blocking};

use crate::BLOB_BYTES_MAX;

/// Large outputs fill memory: one pair at a time in a process.
static ONE_AT_A_TIME: Semaphore = Semaphore::const_new(1);

/// Why two results were not compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// An output could not be read.
    #[error("read an output to compare")]
    Read(#[from] GetError),
    /// The comparison did not end.
    #[error("compare two outputs")]
    Ended(#[from] tokio::task::JoinError),
}

/// The agreement of each two results of the whole job, by their places, the lower first.
pub async fn all_pairs(
    objects: &Objects,
    case: &Case,
) -> Result<Vec<(usize, usize, Agreement)>, CompareError> {
    let mut pairs = Vec::new();
    let placed = case.results.iter().enumerate();
    let wholes: Vec<_> = placed
        .filter(|(_, result)| result.replay.is_none())
        .collect();
    for (index, (place, left)) in wholes.iter().enumerate() {
        for (other, right) in &wholes[index + 1..] {
            pairs.push((*place, *other, pair(objects, case, left, right).await?));
        }
    }
    Ok(pairs)
}

async fn pair(
    objects: &Objects,
    case: &Case,
    left: &ShownResult,
    right: &ShownResult,
) -> Result<Agreement, CompareError> {
    match compare(&case.spec, shown(left), shown(right)) {
        Comparison::Bitwise => Ok(Agreement::Bitwise),
        Comparison::Differs => Ok(Agreement::None(None)),
        Comparison::Tensors if !left.outputs.keys().eq(right.outputs.keys()) => {
            Ok(Agreement::None(None))
        }
        Comparison::Tensors => {
            let mut worst = Deviation::default();
            let differing = left
                .outputs
                .values()
                .zip(right.outputs.values())
                .filter(|(left, right)| left != right);
            for (left, right) in differing {
                worst = worst.worse(of_blobs(objects, *left, *right).await?);
            }
            Ok(Agreement::of(worst))
        }
    }
}

fn shown(result: &ShownResult) -> Shown<'_> {
    Shown {
        result: result.result,
        class: &result.class,
    }
}

async fn of_blobs(
    objects: &Objects,
    left: Sha256,
    right: Sha256,
) -> Result<Deviation, CompareError> {
    let _alone = ONE_AT_A_TIME.acquire().await.expect("nobody closes it");
    let left = objects.get_all(left, BLOB_BYTES_MAX).await?;
    let right = objects.get_all(right, BLOB_BYTES_MAX).await?;
    Ok(spawn_blocking(move || deviation::of_files(&left, &right)).await?)
}
