//! How versions are hosted, and the tickets that their blobs are fetched with.

use std::{
    num::NonZeroUsize,
    sync::{Mutex, MutexGuard, PoisonError},
};

use comptoir_domain::{
    digest::Sha256,
    fit,
    id::{ModelVersionId, WorkerId},
};
use comptoir_store::{model_versions, queue, quotes};
use comptoir_wire::{
    calls::{HostOrder, WritingOrder},
    work::BlobSize,
};
use lru::LruCache;
use sqlx::PgPool;
use time::{Duration, OffsetDateTime};

use crate::keys::Keys;

/// Versions whose orders are remembered. They never change.
const KEPT_MAX: NonZeroUsize = NonZeroUsize::new(4_096).expect("above zero");
/// How long a ticket lives.
const TICKET_LIFE: Duration = Duration::hours(1);
/// Between the parts of what a ticket is about. Neither has one.
const SEPARATOR: char = '@';

/// Orders, without tickets.
#[derive(Debug)]
pub(super) struct Orders(Mutex<LruCache<ModelVersionId, HostOrder>>);

impl Default for Orders {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(KEPT_MAX)))
    }
}

impl Orders {
    fn lock(&self) -> MutexGuard<'_, LruCache<ModelVersionId, HostOrder>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The order of a version that was looked up, with a ticket.
    pub(super) fn with(
        &self,
        version: ModelVersionId,
        ticket: impl FnOnce() -> String,
    ) -> Option<HostOrder> {
        let order = self.lock().get(&version).cloned()?;
        let ticket = ticket();
        Some(HostOrder { ticket, ..order })
    }

    /// Looks a version up; one that cannot be hosted is not remembered.
    pub(super) async fn look_up(&self, db: &PgPool, version: ModelVersionId) -> sqlx::Result<()> {
        let mut conn = db.acquire().await?;
        let Some(found) = model_versions::find_hosted(&mut conn, version).await? else {
            return Ok(());
        };
        let program = found.manifest.programs.infer;
        let Some(facts) = quotes::find_facts(&mut conn, program).await? else {
            return Ok(());
        };
        let generate = found.manifest.programs.generate;
        let written = match generate {
            Some(generate) => quotes::find_facts(&mut conn, generate).await?,
            None => None,
        };
        let sizes = queue::blob_sizes(&mut conn, found.manifest.hosted()).await?;
        let size = |sha256: Sha256| {
            let bytes = *sizes.get(&sha256)?;
            Some(BlobSize { sha256, bytes })
        };
        let (Some(program), weights) = (size(program), found.manifest.weights.map(size)) else {
            return Ok(());
        };
        let hosting = fit::hosting(&facts, written.as_ref());
        let generator = found.manifest.generation.zip(generate);
        let writing = generator.and_then(|(it, generate)| {
            Some(WritingOrder {
                program: size(generate)?,
                ids: it.ids,
                positions: it.positions,
                logits: it.logits,
                context: it.context,
                texts_max: hosting.texts_max,
            })
        });
        let order = HostOrder {
            version: version.0,
            ticket: String::new(),
            program,
            weights: weights.flatten(),
            writing,
            memory_bytes: hosting.memory_bytes,
            batch_max: hosting.batch_max,
        };
        self.lock().put(version, order);
        Ok(())
    }
}

/// That a worker hosts a version, and may fetch what it consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub worker: WorkerId,
    pub version: ModelVersionId,
}

impl Ticket {
    pub(super) fn sign(&self, keys: &Keys, now: OffsetDateTime) -> String {
        let subject = format!("{}{SEPARATOR}{}", self.version, self.worker);
        keys.sign(&subject, now, TICKET_LIFE)
    }

    /// What a ticket says; `None` where it is none, or over.
    pub(crate) fn read(text: &str, keys: &Keys, now: OffsetDateTime) -> Option<Self> {
        let claims = keys.verify(text, now).ok()?;
        let (version, worker) = claims.sub.split_once(SEPARATOR)?;
        Some(Self {
            worker: worker.parse().ok()?,
            version: version.parse().ok()?,
        })
    }
}
