//! Jobs on files of datasets: what is computed is what the plain file gives, and the plain bytes are never on a disk.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use comptoir_domain::{
    amount::Amount,
    bill::DataPrice,
    job::{JobSpec, JobState, Tier},
};
use comptoir_store::dataset_inputs::QuotedData;
use sqlx::PgPool;

use crate::{
    harness::{Bench, account, example, inference, now, training},
    sealing::{self, Sealed, Terms},
};

/// The digits as a dataset that everybody may compute on, and what a job is quoted for it.
async fn offered(bench: &Bench) -> (Sealed, QuotedData) {
    let seller = account(&bench.owner, 0x5e).await;
    let bytes = example("train.safetensors");
    let sealed = sealing::publish(&bench.owner, &bench.state, seller, &bytes, now()).await;
    assert!(sealed.parts > 1, "a file of several parts");
    let terms = Terms {
        price: 10,
        platform_ppm: 0,
        output_bytes_max: 1 << 30,
        is_released_by_seller: false,
    };
    let offer = sealing::offer(&bench.owner, bench.asset, &sealed, terms, now()).await;
    let price = DataPrice {
        offer,
        number: 1,
        price: Amount::from_base(10).unwrap(),
        platform_ppm: 0,
    };
    let quoted = QuotedData {
        version: sealed.version,
        price: Some(price),
    };
    (sealed, quoted)
}

/// The same job, with its tensors from a dataset's file.
fn reading(dataset: &Sealed, mut spec: JobSpec) -> JobSpec {
    let (inputs, target) = match &mut spec {
        JobSpec::Training(it) => (&mut it.inputs, Some(&mut it.target)),
        JobSpec::Inference(it) => (&mut it.inputs, None),
    };
    for tensor in inputs.values_mut().chain(target) {
        tensor.blob = dataset.sha256;
        tensor.dataset_version = Some(dataset.version);
    }
    spec
}

/// Is some of the plain bytes in a file below this folder? Objects of the service are elsewhere.
fn holds(folder: &Path, needle: &[u8]) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries.flatten().any(|entry| {
        let path = entry.path();
        if path.is_dir() {
            return holds(&path, needle);
        }
        let bytes = std::fs::read(path).unwrap_or_default();
        bytes.windows(needle.len()).any(|it| it == needle)
    })
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_job_on_a_sealed_file_gives_the_bytes_that_the_plain_file_gives(db: PgPool) {
    let bench = Bench::new(db).await;
    let (dataset, data) = offered(&bench).await;
    let worker = bench.worker("w", 0xa1).await;
    for plain in [training(2), inference()] {
        let sealed = reading(&dataset, plain.clone());
        let job = bench.submit_on(&sealed, Tier::None, data).await;
        let on_sealed = bench.ends(job, JobState::Completed).await;
        let job = bench.submit(&plain).await;
        let on_plain = bench.ends(job, JobState::Completed).await;
        assert_eq!(on_sealed.outputs, on_plain.outputs);
        assert_eq!(on_sealed.outputs.len(), 1);
        let paid = |job: &comptoir_store::jobs::Job| job.charge.unwrap().amount.base();
        // What one job leaves of a base unit, the next begins with.
        let work = paid(&on_sealed) - 10;
        assert!(work.abs_diff(paid(&on_plain)) <= 1, "{work}");
    }
    worker.stop().await.unwrap();
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn the_plain_bytes_are_never_on_the_disk_of_a_worker(db: PgPool) {
    let bench = Bench::new(db).await;
    let (dataset, data) = offered(&bench).await;
    let worker = bench.worker("w", 0xa1).await;
    let spec = reading(&dataset, training(40));
    let job = bench.submit_on(&spec, Tier::None, data).await;
    let bytes = example("train.safetensors");
    // A row of the images, from the middle of the file: nothing else has these bytes.
    let needle = bytes[bytes.len() / 2..][..4_096].to_vec();
    assert!(needle.iter().any(|it| *it != 0));
    let (folder, name) = (bench.folder("w"), format!("sealed-{}", dataset.file));
    let (over, seen) = (AtomicBool::new(false), AtomicBool::new(false));
    let look = async {
        let mut sealed = false;
        while !over.load(Ordering::Relaxed) {
            let (folder, needle, name) = (folder.clone(), needle.clone(), name.clone());
            let look = move || (holds(&folder, &needle), has_file(&folder, &name));
            let (plain, found) = tokio::task::spawn_blocking(look).await.unwrap();
            sealed |= found;
            seen.fetch_or(plain, Ordering::Relaxed);
        }
        sealed
    };
    let wait = async {
        bench.ends(job, JobState::Completed).await;
        over.store(true, Ordering::Relaxed);
    };
    let (sealed, ()) = tokio::join!(look, wait);
    assert!(sealed, "the sealed file was there to be looked at");
    assert!(
        !seen.load(Ordering::Relaxed),
        "plain bytes were on the disk"
    );
    worker.stop().await.unwrap();
    assert!(!has_file(&folder, &name), "nothing of it is kept");
}

/// Is a file of this name below this folder?
fn has_file(folder: &Path, name: &str) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries
        .flatten()
        .any(|entry| entry.file_name() == name || has_file(&entry.path(), name))
}
