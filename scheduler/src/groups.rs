//! What many workers ask for in the same moment, done together: look-ups by one statement, writes in one transaction.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use comptoir_domain::{digest::Sha256, id::WorkerId};
use comptoir_http::Problem;
use comptoir_store::{
    PgTransaction,
    group::{Group, LookupError, Lookups, commit},
    objects::Stored,
    pool,
    queue::{self, ClaimError, Leased},
    uploads::{self, Standing, Upload},
    wake::{Channel, Wake},
    work::{self, Outcome, Reveal, Seal, Wakes},
    workers::{self, Worker},
};
use sqlx::PgPool;
use time::OffsetDateTime;
use tokio::sync::Notify;

/// Kinds of groups below, and the verdicts of a step.
const KINDS: u32 = 6;

/// The queues; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Groups {
    /// Connections for transactions on whole groups.
    pub db: PgPool,
    /// Who calls.
    pub workers: Lookups<WorkerId, Worker>,
    /// How an upload stands before its bytes are taken.
    pub standing: Lookups<Upload, Standing>,
    uploads: Group<NewUpload, Answer<Standing, sqlx::Error>>,
    reports: Group<Reports, Answer<Taken, sqlx::Error>>,
    claims: Group<Claim, Answer<Claimed, ClaimError>>,
}

type Answer<R, E> = Result<R, Arc<E>>;
type NewUpload = (Upload, Stored, OffsetDateTime);

/// What one exchange reports.
#[derive(Debug)]
pub(crate) struct Reports {
    pub seals: Vec<Seal>,
    pub reveals: Vec<Reveal>,
    pub now: OffsetDateTime,
}

/// What became of each report.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    pub seals: Vec<Outcome>,
    pub reveals: Vec<Outcome>,
}

/// A worker that wants work.
#[derive(Debug)]
pub(crate) struct Claim {
    pub worker: Worker,
    pub wanted: u16,
    pub now: OffsetDateTime,
}

/// What it got, and the sizes of the inputs.
#[derive(Debug, Default)]
pub(crate) struct Claimed {
    pub leased: Vec<Leased>,
    pub sizes: BTreeMap<Sha256, u64>,
}

/// Why a claim has no answer.
pub(crate) enum NotClaimed {
    /// Another worker of the owner was faster: nothing was taken.
    Raced,
    /// It failed.
    Failed(Problem),
}

impl Groups {
    /// Starts the queues. `verdict_due` rings when jobs wait for their verdict.
    pub fn start(service: &PgPool, wake: &Wake, verdict_due: &Arc<Notify>) -> Self {
        let db = pool::for_groups(service, KINDS);
        let (of_workers, of_standing, of_uploads) = (db.clone(), db.clone(), db.clone());
        let (of_reports, of_claims) = (db.clone(), db.clone());
        let (wake, verdict_due) = (wake.clone(), Arc::clone(verdict_due));
        Self {
            db,
            workers: Lookups::start(move |ids: Vec<WorkerId>| {
                let db = of_workers.clone();
                Box::pin(async move { workers::find_all(&mut *db.acquire().await?, &ids).await })
            }),
            standing: Lookups::start(move |asked: Vec<Upload>| {
                let db = of_standing.clone();
                Box::pin(async move {
                    let found = uploads::standing(&mut *db.acquire().await?, &asked).await?;
                    Ok(found.into_iter().map(Some).collect())
                })
            }),
            uploads: Group::start(move |items: Vec<NewUpload>| {
                let db = of_uploads.clone();
                Box::pin(async move {
                    commit(&db, &(), &items, |tx, (), items| Box::pin(note(tx, items))).await
                })
            }),
            reports: Group::start(move |items: Vec<Reports>| {
                let (db, wake) = (of_reports.clone(), wake.clone());
                let verdict_due = Arc::clone(&verdict_due);
                Box::pin(async move {
                    let wakes = Mutex::default();
                    let done = commit(&db, &wakes, &items, |tx, wakes, items| {
                        Box::pin(take(tx, items, wakes))
                    });
                    let done = done.await;
                    // Those of a transaction that was taken back, too: they look once in vain.
                    publish(&wake, &verdict_due, wakes.into_inner());
                    done
                })
            }),
            claims: Group::start(move |items: Vec<Claim>| {
                let db = of_claims.clone();
                Box::pin(async move {
                    commit(&db, &(), &items, |tx, (), items| Box::pin(claim(tx, items))).await
                })
            }),
        }
    }

    /// Notes that an attempt uploaded a blob.
    pub async fn note(
        &self,
        upload: Upload,
        stored: Stored,
        now: OffsetDateTime,
    ) -> Result<Standing, Problem> {
        let noted = self.uploads.ask((upload, stored, now)).await;
        noted
            .map_err(|error| Problem::ungrouped(&error, error.is_full()))?
            .map_err(|error| Problem::internal(error.as_ref()))
    }

    /// Takes what an exchange reports.
    pub async fn take(&self, reports: Reports) -> Result<Taken, Problem> {
        if reports.seals.is_empty() && reports.reveals.is_empty() {
            return Ok(Taken::default());
        }
        let taken = self.reports.ask(reports).await;
        taken
            .map_err(|error| Problem::ungrouped(&error, error.is_full()))?
            .map_err(|error| Problem::internal(error.as_ref()))
    }

    /// Leases work to a worker.
    pub async fn claim(&self, claim: Claim) -> Result<Claimed, NotClaimed> {
        let claimed = self.claims.ask(claim).await;
        let claimed = claimed
            .map_err(|error| NotClaimed::Failed(Problem::ungrouped(&error, error.is_full())))?;
        claimed.map_err(|error| match error.as_ref() {
            ClaimError::Raced => NotClaimed::Raced,
            ClaimError::Database(error) => NotClaimed::Failed(Problem::internal(error)),
        })
    }
}

async fn note(tx: &mut PgTransaction<'_>, items: &[NewUpload]) -> sqlx::Result<Vec<Standing>> {
    // Lost only together with everything after it: no reveal can name an upload that a crash took back.
    workers::forgo_durability(tx).await?;
    let uploads: Vec<_> = items
        .iter()
        .map(|(upload, stored, _)| (*upload, *stored))
        .collect();
    uploads::note(tx, &uploads, latest(items.iter().map(|(.., now)| *now))).await
}

async fn take(
    tx: &mut PgTransaction<'_>,
    items: &[Reports],
    wakes: &Mutex<Wakes>,
) -> sqlx::Result<Vec<Taken>> {
    let now = latest(items.iter().map(|item| item.now));
    let seals: Vec<Seal> = items.iter().flat_map(|item| item.seals.clone()).collect();
    let reveals: Vec<Reveal> = items.iter().flat_map(|item| item.reveals.clone()).collect();
    let (sealed, shown) = work::take(tx, &seals, &reveals, now).await?;
    let mut due = wakes.lock().unwrap_or_else(PoisonError::into_inner);
    due.add(sealed.wakes);
    due.add(shown.wakes);
    let (mut sealed, mut shown) = (sealed.outcomes.into_iter(), shown.outcomes.into_iter());
    let taken = items.iter().map(|item| Taken {
        seals: sealed.by_ref().take(item.seals.len()).collect(),
        reveals: shown.by_ref().take(item.reveals.len()).collect(),
    });
    Ok(taken.collect())
}

fn publish(wake: &Wake, verdict_due: &Notify, wakes: Result<Wakes, PoisonError<Wakes>>) {
    let wakes = wakes.unwrap_or_else(PoisonError::into_inner);
    for job in &wakes.jobs {
        wake.publish(Channel::Job(*job));
    }
    for worker in &wakes.workers {
        wake.publish(Channel::Worker(*worker));
    }
    if wakes.due {
        verdict_due.notify_one();
    }
}

async fn claim(tx: &mut PgTransaction<'_>, items: &[Claim]) -> Result<Vec<Claimed>, ClaimError> {
    let mut claimed = Vec::with_capacity(items.len());
    for item in items {
        let leased = queue::claim(tx, &item.worker, item.wanted, item.now).await?;
        claimed.push(leased);
    }
    let inputs = claimed
        .iter()
        .flatten()
        .flat_map(|leased| leased.spec.blobs());
    let inputs: std::collections::BTreeSet<Sha256> = inputs.collect();
    let sizes = queue::blob_sizes(tx, inputs).await?;
    let claimed = claimed.into_iter().map(|leased| {
        let inputs = leased.iter().flat_map(|leased| leased.spec.blobs());
        let sizes = inputs.filter_map(|sha256| Some((sha256, *sizes.get(&sha256)?)));
        Claimed {
            sizes: sizes.collect(),
            leased,
        }
    });
    Ok(claimed.collect())
}

fn latest(times: impl Iterator<Item = OffsetDateTime>) -> OffsetDateTime {
    times.max().unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// What is answered to somebody whose look-up failed.
pub(crate) fn not_looked_up(error: LookupError) -> Problem {
    match error {
        LookupError::Group(error) => Problem::ungrouped(&error, error.is_full()),
        LookupError::Database(error) => Problem::internal(error.as_ref()),
    }
}
