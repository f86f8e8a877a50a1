//! What does not change, kept in the process: who may read a blob, what a program is, the head of a tensor file. Only what was found
//! is kept. The token and its prices are kept too, and compared with the database by whoever commits what was priced with them.

use std::{
    collections::HashSet,
    fmt,
    hash::Hash,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use comptoir_domain::{
    asset::Asset,
    digest::Sha256,
    fit::ProgramFacts,
    id::{AccountId, DatasetVersionId, ModelVersionId},
    job::Device,
    price::PriceVersion,
    tensors::TensorsHeader,
};
use comptoir_store::{
    assets::{self, AssetError},
    blobs::Blob,
    prices, unstable,
};
use comptoir_text::{Tokenizer, chat::ChatTemplate};
use lru::LruCache;
use sqlx::{PgConnection, PgPool};
use time::{Duration, OffsetDateTime};

/// Most blobs whose readers are remembered.
const OWNED_MAX: NonZeroUsize = NonZeroUsize::new(16_384).expect("above zero");
/// Most programs and heads of tensor files; each may have some hundred kilobytes.
const FILES_MAX: NonZeroUsize = NonZeroUsize::new(128).expect("above zero");
/// Most tokenizers; each may have a hundred megabytes.
const TOKENIZERS_MAX: NonZeroUsize = NonZeroUsize::new(16).expect("above zero");

/// How long it is believed which programs are unstable.
const UNSTABLE_KEPT_FOR: Duration = Duration::seconds(10);

/// What was found once.
pub(crate) struct Facts {
    /// Blobs, by who may read them.
    pub owned: Kept<(AccountId, Sha256), Blob>,
    /// What archives are.
    pub programs: Kept<Sha256, Arc<ProgramFacts>>,
    /// The heads of tensor files.
    pub heads: Kept<Sha256, Arc<TensorsHeader>>,
    /// Tokenizers of models.
    pub tokenizers: Kept<Sha256, Arc<Tokenizer>>,
    /// How conversations become prompts.
    pub templates: Kept<ModelVersionId, Arc<ChatTemplate>>,
    /// Versions that could be served, and when that was seen.
    pub available: Kept<DatasetVersionId, OffsetDateTime>,
    terms: Mutex<Option<Arc<Terms>>>,
    unstable: Mutex<Option<(OffsetDateTime, Arc<Unstable>)>>,
}

/// Programs that nobody can verify now, each on a kind of device.
type Unstable = HashSet<(Sha256, Device)>;

/// What prices are made of.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    /// The token that everything is paid in.
    pub asset: Asset,
    prices: Vec<PriceVersion>,
}

/// The entries that were used last.
pub(crate) struct Kept<K, V>(Mutex<LruCache<K, V>>);

impl Default for Facts {
    fn default() -> Self {
        Self {
            owned: Kept::new(OWNED_MAX),
            programs: Kept::new(FILES_MAX),
            heads: Kept::new(FILES_MAX),
            tokenizers: Kept::new(TOKENIZERS_MAX),
            templates: Kept::new(FILES_MAX),
            available: Kept::new(OWNED_MAX),
            terms: Mutex::default(),
            unstable: Mutex::default(),
        }
    }
}

impl fmt::Debug for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Facts").finish_non_exhaustive()
    }
}

impl<K: Hash + Eq, V: Clone> Kept<K, V> {
    pub fn new(most: NonZeroUsize) -> Self {
        Self(Mutex::new(LruCache::new(most)))
    }

    /// Keeps nothing under the key.
    pub fn forget(&self, key: &K) {
        lock(&self.0).pop(key);
    }

    /// What is kept under the key.
    pub fn get(&self, key: &K) -> Option<V> {
        lock(&self.0).get(key).cloned()
    }

    /// Keeps it; what was not used for longest makes way.
    pub fn put(&self, key: K, value: V) {
        lock(&self.0).put(key, value);
    }
}

impl Facts {
    /// The terms as they were when they were looked at last.
    pub fn terms(&self) -> Option<Arc<Terms>> {
        lock(&self.terms).clone()
    }

    /// The terms as they are now.
    ///
    /// # Errors
    /// When no token is registered, or the database fails.
    pub async fn read_terms(
        &self,
        connection: &mut PgConnection,
        now: OffsetDateTime,
    ) -> Result<Arc<Terms>, AssetError> {
        let asset = assets::current(connection).await?;
        let prices = prices::list_current(connection, asset.id, now).await?;
        let prices = prices.into_iter().map(|(version, _)| version).collect();
        let terms = Arc::new(Terms { asset, prices });
        *lock(&self.terms) = Some(Arc::clone(&terms));
        Ok(terms)
    }
}

impl Facts {
    /// Can no worker that is there be held to its result for this program? Looked up every few seconds and not for each job:
    /// a job that slips through waits, is told why, and costs its owner nothing.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn is_unstable(
        &self,
        db: &PgPool,
        (program, device): (Sha256, Device),
        now: OffsetDateTime,
    ) -> sqlx::Result<bool> {
        let kept = lock(&self.unstable).clone();
        let fresh = kept.filter(|(at, _)| (now - *at).abs() < UNSTABLE_KEPT_FOR);
        if let Some((_, unstable)) = fresh {
            return Ok(unstable.contains(&(program, device)));
        }
        let unstable = unstable::programs(&mut *db.acquire().await?, now).await?;
        let unstable = Arc::new(unstable);
        *lock(&self.unstable) = Some((now, Arc::clone(&unstable)));
        Ok(unstable.contains(&(program, device)))
    }
}

impl Terms {
    /// The price of a kind of device, if one is published.
    pub fn price(&self, device: Device) -> Option<&PriceVersion> {
        self.prices.iter().find(|version| version.device == device)
    }

    /// The version, if it is in use.
    pub fn version(&self, id: i32) -> Option<&PriceVersion> {
        self.prices.iter().find(|version| version.id == id)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
