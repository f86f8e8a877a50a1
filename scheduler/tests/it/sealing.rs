//! Datasets as their sellers publish them, and offers to compute on them, without the service that does it.

use bytes::Bytes;
use comptoir_domain::{
    dataset::{Format, ManifestFile},
    digest::Sha256,
    envelope::{Key, part_salt},
    id::{AccountId, DatasetFileId, DatasetId, DatasetVersionId, OfferId},
    root_keys::wrap_data_key,
};
use comptoir_scheduler::SchedulerState;
use comptoir_store::{
    data_keys,
    dataset_files::{self, File},
    dataset_versions,
};
use futures::stream;
use sqlx::PgPool;
use time::OffsetDateTime;

/// Bytes of each part but the last: small, so that there are several.
const PART_BYTES: u32 = 65_536;

/// A dataset with one file.
#[derive(Debug, Clone)]
pub struct Sealed {
    pub seller: AccountId,
    pub dataset: DatasetId,
    pub version: DatasetVersionId,
    pub file: DatasetFileId,
    pub sha256: Sha256,
    pub parts: u32,
}

/// Publishes a safetensors file as the one file of a listed dataset.
pub async fn publish(
    owner: &PgPool,
    state: &SchedulerState,
    seller: AccountId,
    bytes: &[u8],
    now: OffsetDateTime,
) -> Sealed {
    let (dataset, version) = (DatasetId::generate(), DatasetVersionId::generate());
    sqlx::query(
        "INSERT INTO datasets (dataset_id, account_id, name, title, description, licence, provenance, tags, state, created_at, updated_at)
         VALUES ($1, $2, $3, 'Digits', '', 'CC-BY-4.0', '', '{}', 'listed', $4, $4)",
    )
    .bind(dataset.0)
    .bind(seller.0)
    .bind(format!("d{}", dataset.0.simple()))
    .bind(now)
    .execute(owner)
    .await
    .unwrap();
    let mut tx = owner.begin().await.unwrap();
    let tenant = data_keys::of_tenant(&mut tx, &state.root_keys, seller, now);
    let (tenant, key) = (tenant.await.unwrap(), Key::generate());
    let wrapped = wrap_data_key(&tenant, version, &key);
    dataset_versions::create(&mut tx, (dataset, seller), (version, wrapped), "", now)
        .await
        .unwrap();
    let entry = ManifestFile {
        path: "train.safetensors".parse().unwrap(),
        sha256: Sha256::of(bytes),
        bytes: bytes.len() as u64,
        format: Format::Safetensors,
        is_sample: false,
        facts: None,
    };
    let files = dataset_files::announce(&mut tx, version, &[entry], PART_BYTES, now).await;
    let file = files.unwrap().remove(0);
    let parts = seal(&mut tx, state, (&file, &key), bytes, now).await;
    tx.commit().await.unwrap();
    for change in [
        "state = 'checking', submitted_at = $2, files = 1",
        "state = 'ready', number = 1, manifest_root = decode(repeat('00', 32), 'hex'), published_at = $2",
    ] {
        let text = format!("UPDATE dataset_versions SET {change} WHERE version_id = $1");
        let query = sqlx::query(sqlx::AssertSqlSafe(text)).bind(version.0);
        query.bind(now).execute(owner).await.unwrap();
    }
    Sealed {
        seller,
        dataset,
        version,
        file: file.id,
        sha256: Sha256::of(bytes),
        parts,
    }
}

async fn seal(
    tx: &mut comptoir_store::PgTransaction<'_>,
    state: &SchedulerState,
    (file, key): (&File, &Key),
    bytes: &[u8],
    now: OffsetDateTime,
) -> u32 {
    let mut number = 0;
    for part in bytes.chunks(PART_BYTES as usize) {
        let salt = part_salt();
        let body = stream::iter([Ok::<_, std::io::Error>(Bytes::copy_from_slice(part))]);
        let place = file.part(number, salt);
        let stored = state.objects.put_part(key, &place, part.len() as u64, body);
        stored.await.unwrap();
        let noted = dataset_files::store_part(tx, (file.version, file.id), number, salt, now);
        assert_eq!(noted.await.unwrap(), Some(None));
        number += 1;
    }
    number
}

/// What somebody may do without asking, at a price per job.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    pub price: u32,
    pub platform_ppm: i32,
    pub output_bytes_max: i64,
    pub is_released_by_seller: bool,
}

/// Offers everybody to compute on a dataset.
pub async fn offer(
    owner: &PgPool,
    asset: i32,
    of: &Sealed,
    terms: Terms,
    now: OffsetDateTime,
) -> OfferId {
    let offer = OfferId::generate();
    sqlx::query(
        "INSERT INTO offers (offer_id, dataset_id, account_id, asset_id, kind, is_gated, refund_seconds, output_bytes_max, is_released_by_seller, created_at)
         VALUES ($1, $2, $3, $4, 'compute_only', false, 0, $5, $6, $7)",
    )
    .bind(offer.0)
    .bind(of.dataset.0)
    .bind(of.seller.0)
    .bind(asset)
    .bind(terms.output_bytes_max)
    .bind(terms.is_released_by_seller)
    .bind(now)
    .execute(owner)
    .await
    .unwrap();
    sqlx::query(
        "INSERT INTO offer_prices (offer_id, number, price_base, platform_ppm, effective_at, created_at) VALUES ($1, 1, $2::bigint, $3, $4, $4)",
    )
    .bind(offer.0)
    .bind(i64::from(terms.price))
    .bind(terms.platform_ppm)
    .bind(now)
    .execute(owner)
    .await
    .unwrap();
    offer
}
