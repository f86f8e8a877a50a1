//! Quotes become jobs: the hold, the job, its replicas, their queue rows and the first event, all or nothing for each
//! job, in a few statements for all of a group.

use std::collections::{HashMap, HashSet};

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    id::{AccountId, ApiKeyId, JobId, QuoteId, ReplicaId},
    job::{JobState, ReplicaState},
};
use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Job, Replica};
use crate::{
    PgTransaction,
    codec::to_numeric,
    dataset_inputs, events,
    holds::{self, Hold, HoldError, HoldSource},
    quotes::{self, Quote, QuoteError},
    spending::{AboveSpendLimit, Budgets},
    violates,
};

/// A job to be made.
#[derive(Debug, Clone, Copy)]
pub struct NewJob<'a> {
    /// Whose it is.
    pub account: AccountId,
    /// The account's own quote.
    pub quote: QuoteId,
    /// The account's bound address.
    pub payer: Address,
    /// The API key that it is counted against; `None` where that has no limit.
    pub spender: Option<ApiKeyId>,
    /// What its owner calls it.
    pub name: Option<&'a str>,
    /// The most its owner pays; the quote must not be above it.
    pub max_cost: Amount,
    /// When it ends, done or not.
    pub deadline_at: OffsetDateTime,
}

/// Why a job was not made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// No such quote, or another account's.
    #[error("no such quote")]
    QuoteNotFound,
    /// Its time is over.
    #[error("the quote expired at {0}")]
    QuoteExpired(OffsetDateTime),
    /// A job was made from it before.
    #[error("the quote is used")]
    QuoteUsed,
    /// The quote is above the caller's limit.
    #[error("the quote comes to {hold} base units, above the limit of {max_cost}")]
    AboveMaxCost {
        /// What the job would hold.
        hold: Amount,
        /// What the caller allows.
        max_cost: Amount,
    },
    /// The account's right to the dataset that the job reads has ended since it was quoted.
    #[error("the right to the dataset has ended since it was quoted")]
    DataRightEnded,
    /// The job would cost more than its API key may spend.
    #[error("the job holds {hold} base units, more than the key may still spend")]
    AboveSpendLimit {
        /// What the job would hold.
        hold: Amount,
        /// What the key may still spend.
        #[source]
        limit: AboveSpendLimit,
    },
    /// The money could not be held.
    #[error("hold the price of the job")]
    Hold(#[from] HoldError),
    /// A quote could not be written.
    #[error("write the quote of the job")]
    Quote(#[from] QuoteError),
    /// The database failed.
    #[error("create a job")]
    Database(#[from] sqlx::Error),
}

/// Makes a job. Wake [`crate::wake::Channel::Work`] after the commit.
pub async fn create(
    tx: &mut PgTransaction<'_>,
    new: &NewJob<'_>,
    now: OffsetDateTime,
) -> Result<JobId, CreateError> {
    let made = create_all(tx, std::slice::from_ref(new), Vec::new(), now).await?;
    let made = made.into_iter().next().ok_or(CreateError::QuoteNotFound)?;
    Ok(made?.id)
}

/// Makes jobs, each with its own outcome: one that is refused does not concern the others. `fresh` are quotes that are not
/// stored yet; one is stored with the job that is made from it. Wake [`crate::wake::Channel::Work`] after the commit.
///
/// # Errors
/// When a statement fails: then none is made, and the transaction is over.
pub async fn create_all(
    tx: &mut PgTransaction<'_>,
    new: &[NewJob<'_>],
    fresh: Vec<Quote>,
    now: OffsetDateTime,
) -> Result<Vec<Result<Job, CreateError>>, CreateError> {
    let mut known = Known::read(tx, new, fresh, now).await?;
    let mut budgets = Budgets::lock(tx, new.iter().filter_map(|new| new.spender), now).await?;
    let mut outcomes: Vec<Option<Result<Job, CreateError>>> = new.iter().map(|_| None).collect();
    // A quote that is named twice is good for whoever comes first and is not refused; so the others wait for a second round.
    // So do those for whom too little of a key's limit is left beside others of the group, which may be refused.
    let mut waiting: Vec<usize> = (0..new.len()).collect();
    while !waiting.is_empty() {
        let (mut named, mut later, mut judged) = (HashSet::new(), Vec::new(), Vec::new());
        let mut taken = HashSet::new();
        for place in waiting {
            match known.judge(&new[place], now) {
                Ok(_) if !named.insert(new[place].quote) => later.push(place),
                Ok(hold) => match budget(&mut budgets, &new[place], &hold) {
                    Ok(()) => {
                        taken.extend(new[place].spender);
                        judged.push((place, hold));
                    }
                    Err(_) if new[place].spender.is_some_and(|key| taken.contains(&key)) => {
                        later.push(place);
                    }
                    Err(refused) => outcomes[place] = Some(Err(refused)),
                },
                Err(refused) => outcomes[place] = Some(Err(refused)),
            }
        }
        let mut made = Vec::new();
        for (place, hold) in make(tx, new, &mut known, judged, &mut outcomes, now).await? {
            match (new[place].spender, &outcomes[place]) {
                (Some(key), Some(Ok(job))) => made.push((key, HoldSource::Job(job.id), hold)),
                (Some(key), _) => budgets.give_back(key, hold),
                (None, _) => {}
            }
        }
        budgets.keep(tx, &made).await?;
        waiting = later;
    }
    let outcomes = outcomes.into_iter();
    Ok(outcomes
        .map(|outcome| outcome.unwrap_or(Err(CreateError::QuoteNotFound)))
        .collect())
}

/// Takes a hold out of what the key of the job may spend.
fn budget(budgets: &mut Budgets, new: &NewJob<'_>, hold: &Hold) -> Result<(), CreateError> {
    let Some(key) = new.spender else {
        return Ok(());
    };
    let taken = budgets.take(key, hold.amount);
    taken.map_err(|limit| CreateError::AboveSpendLimit {
        hold: hold.amount,
        limit,
    })
}

/// The quotes that a group names.
struct Known {
    quotes: HashMap<QuoteId, Quote>,
    /// Quotes of somebody that are in the database.
    stored: HashSet<QuoteId>,
    used: HashSet<QuoteId>,
    /// Whose each stored quote is; a fresh one is of whoever names it.
    owners: HashMap<QuoteId, AccountId>,
    /// Quotes of jobs that would read a dataset that their account has no right to any more.
    barred: HashSet<QuoteId>,
}

impl Known {
    async fn read(
        tx: &mut PgTransaction<'_>,
        new: &[NewJob<'_>],
        fresh: Vec<Quote>,
        now: OffsetDateTime,
    ) -> sqlx::Result<Self> {
        let mut known = Self {
            quotes: fresh.into_iter().map(|quote| (quote.id, quote)).collect(),
            stored: HashSet::new(),
            used: HashSet::new(),
            owners: HashMap::new(),
            barred: HashSet::new(),
        };
        let wanted: HashSet<_> = new
            .iter()
            .filter(|new| !known.quotes.contains_key(&new.quote))
            .map(|new| (new.account, new.quote))
            .collect();
        let wanted: Vec<_> = wanted.into_iter().collect();
        for (account, quote, used) in quotes::find_all(tx, &wanted).await? {
            known.stored.insert(quote.id);
            known.owners.insert(quote.id, account);
            if used {
                known.used.insert(quote.id);
            }
            known.quotes.insert(quote.id, quote);
        }
        known.bar(tx, new, now).await?;
        Ok(known)
    }

    /// Looks once more whether those that read datasets may.
    async fn bar(
        &mut self,
        tx: &mut PgTransaction<'_>,
        new: &[NewJob<'_>],
        now: OffsetDateTime,
    ) -> sqlx::Result<()> {
        let (mut ids, mut quoted) = (vec![], vec![]);
        for new in new {
            let quote = self.quotes.get(&new.quote);
            if let Some(data) = quote.and_then(|it| it.data) {
                ids.push(new.quote);
                quoted.push((new.account, data));
            }
        }
        if !ids.is_empty() {
            let stand = dataset_inputs::still_stand(tx, &quoted, now).await?;
            let barred = ids.into_iter().zip(stand).filter(|(_, stands)| !stands);
            self.barred.extend(barred.map(|(id, _)| id));
        }
        Ok(())
    }

    /// What the job would hold.
    fn judge(&self, new: &NewJob<'_>, now: OffsetDateTime) -> Result<Hold, CreateError> {
        let owner = self.owners.get(&new.quote).unwrap_or(&new.account);
        let quote = self
            .quotes
            .get(&new.quote)
            .filter(|_| *owner == new.account)
            .ok_or(CreateError::QuoteNotFound)?;
        if quote.expires_at <= now {
            return Err(CreateError::QuoteExpired(quote.expires_at));
        }
        if quote.hold > new.max_cost {
            return Err(CreateError::AboveMaxCost {
                hold: quote.hold,
                max_cost: new.max_cost,
            });
        }
        if self.used.contains(&new.quote) {
            return Err(CreateError::QuoteUsed);
        }
        if self.barred.contains(&new.quote) {
            return Err(CreateError::DataRightEnded);
        }
        Ok(Hold {
            source: HoldSource::Job(JobId::generate()),
            owner: new.payer,
            asset_id: quote.asset_id,
            amount: quote.hold,
        })
    }
}

/// Places the holds of what was judged, and writes what they cover; says again what was judged, and its amount.
async fn make(
    tx: &mut PgTransaction<'_>,
    new: &[NewJob<'_>],
    known: &mut Known,
    judged: Vec<(usize, Hold)>,
    outcomes: &mut [Option<Result<Job, CreateError>>],
    now: OffsetDateTime,
) -> Result<Vec<(usize, Amount)>, CreateError> {
    let amounts = judged.iter().map(|(place, hold)| (*place, hold.amount));
    let amounts: Vec<_> = amounts.collect();
    let holds: Vec<_> = judged.iter().map(|(_, hold)| *hold).collect();
    let placed = holds::place_all(tx, &holds, now).await?;
    let (mut jobs, mut fresh) = (Vec::new(), Vec::new());
    for ((place, hold), placed) in judged.into_iter().zip(placed) {
        let (new, HoldSource::Job(id)) = (&new[place], hold.source) else {
            continue;
        };
        match placed {
            Ok(_) => {
                known.used.insert(new.quote);
                if !known.stored.contains(&new.quote) {
                    fresh.push((new.account, &known.quotes[&new.quote]));
                }
                jobs.push((place, queued(id, new, &known.quotes[&new.quote], now)));
            }
            Err(refused) => outcomes[place] = Some(Err(refused.into())),
        }
    }
    if jobs.is_empty() {
        return Ok(amounts);
    }
    quotes::insert_all(tx, &fresh).await?;
    insert_all(tx, &jobs, now).await?;
    for (place, job) in jobs {
        outcomes[place] = Some(Ok(job));
    }
    Ok(amounts)
}

/// A job as it is after its first event.
fn queued(id: JobId, new: &NewJob<'_>, quote: &Quote, now: OffsetDateTime) -> Job {
    let replicas = (0_i16..).take(usize::from(quote.tier.replicas()));
    Job {
        id,
        account: new.account,
        quote: quote.id,
        payer: new.payer,
        name: new.name.map(str::to_owned),
        spec: quote.spec.clone(),
        tier: quote.tier,
        device: quote.device,
        meter: quote.meter,
        price_version: quote.price_version,
        max_cost: new.max_cost,
        hold: quote.hold,
        charge: None,
        min_memory_bytes: quote.min_memory_bytes,
        numeric_class: None,
        state: JobState::Queued,
        verdict: None,
        failure: None,
        replicas: replicas
            .map(|ordinal| Replica {
                id: ReplicaId::generate(),
                ordinal,
                state: ReplicaState::Queued,
                attempts: 0,
                numeric_class: None,
                compute_ms: None,
            })
            .collect(),
        outputs: Vec::new(),
        awaits_release: false,
        release_denied: false,
        deadline_at: new.deadline_at,
        created_at: now,
        started_at: None,
        finished_at: None,
        last_seq: 1,
    }
}

/// Writes jobs, one replica and one queue row for each execution of their tiers, and their first events. Queue rows are
/// ready at once, by the database's clock, which is the clock of leases.
async fn insert_all(
    tx: &mut PgTransaction<'_>,
    jobs: &[(usize, Job)],
    now: OffsetDateTime,
) -> Result<(), CreateError> {
    let columns = JobColumns::of(jobs.iter().map(|(_, job)| job));
    let replicas = ReplicaColumns::of(jobs.iter().map(|(_, job)| job));
    sqlx::query!(
        "WITH job AS (
             INSERT INTO jobs (job_id, account_id, quote_id, payer, asset_id, name, kind, tier, max_cost_base, state,
                 event_seq, deadline_at, created_at)
             SELECT it.id, it.account, it.quote, it.payer, quotes.asset_id, it.name, it.kind, it.tier, it.max_cost, 'queued',
                 1, it.deadline_at, $10
             FROM UNNEST($1::uuid[], $2::uuid[], $3::uuid[], $4::bytea[], $5::text[], $6::text[], $7::text[],
                     $8::numeric[], $9::timestamptz[])
                 AS it (id, account, quote, payer, name, kind, tier, max_cost, deadline_at)
             JOIN quotes ON quotes.quote_id = it.quote
         ), replica AS (
             INSERT INTO replicas (replica_id, job_id, ordinal, state)
             SELECT it.id, it.job, it.ordinal, 'queued'
             FROM UNNEST($11::uuid[], $12::uuid[], $13::smallint[]) AS it (id, job, ordinal)
         ), event AS (
             INSERT INTO job_events (job_id, seq, kind, data, created_at)
             SELECT it.id, 1, $14, it.data, $10 FROM UNNEST($1::uuid[], $15::jsonb[]) AS it (id, data)
         )
         INSERT INTO queue (replica_id, job_id, ready_at, device, min_memory_bytes, rate_nano)
         SELECT it.id, it.job, clock_timestamp(), it.device, it.memory, price_versions.rate_nano
         FROM UNNEST($11::uuid[], $12::uuid[], $16::text[], $17::bigint[], $18::integer[])
             AS it (id, job, device, memory, price)
         JOIN price_versions ON price_versions.price_version_id = it.price",
        &columns.ids,
        &columns.accounts,
        &columns.quotes,
        &columns.payers,
        &columns.names as &[Option<String>],
        &columns.kinds,
        &columns.tiers,
        &columns.max_costs,
        &columns.deadlines,
        now,
        &replicas.ids,
        &replicas.jobs,
        &replicas.ordinals,
        events::kind::QUEUED,
        &columns.events,
        &replicas.devices,
        &replicas.memory,
        &replicas.prices,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
    .map_err(|error| {
        if violates(&error, "jobs_quote_once") {
            CreateError::QuoteUsed
        } else {
            error.into()
        }
    })
}

#[derive(Default)]
struct JobColumns {
    ids: Vec<Uuid>,
    accounts: Vec<Uuid>,
    quotes: Vec<Uuid>,
    payers: Vec<Vec<u8>>,
    names: Vec<Option<String>>,
    kinds: Vec<String>,
    tiers: Vec<String>,
    max_costs: Vec<sqlx::types::BigDecimal>,
    deadlines: Vec<OffsetDateTime>,
    events: Vec<Value>,
}

impl JobColumns {
    fn of<'j>(jobs: impl Iterator<Item = &'j Job>) -> Self {
        let mut columns = Self::default();
        for job in jobs {
            columns.ids.push(job.id.0);
            columns.accounts.push(job.account.0);
            columns.quotes.push(job.quote.0);
            columns.payers.push(job.payer.to_vec());
            columns.names.push(job.name.clone());
            columns.kinds.push(job.spec.kind().to_owned());
            columns.tiers.push(job.tier.as_str().to_owned());
            columns.max_costs.push(to_numeric(job.max_cost));
            columns.deadlines.push(job.deadline_at);
            let started = json!({ "state": "queued", "replicas": job.tier.replicas() });
            columns.events.push(started);
        }
        columns
    }
}

#[derive(Default)]
struct ReplicaColumns {
    ids: Vec<Uuid>,
    jobs: Vec<Uuid>,
    ordinals: Vec<i16>,
    devices: Vec<String>,
    memory: Vec<i64>,
    prices: Vec<i32>,
}

impl ReplicaColumns {
    fn of<'j>(jobs: impl Iterator<Item = &'j Job>) -> Self {
        let mut columns = Self::default();
        for job in jobs {
            for replica in &job.replicas {
                columns.ids.push(replica.id.0);
                columns.jobs.push(job.id.0);
                columns.ordinals.push(replica.ordinal);
                columns.devices.push(job.device.as_str().to_owned());
                columns
                    .memory
                    .push(i64::try_from(job.min_memory_bytes).unwrap_or(i64::MAX));
                columns.prices.push(job.price_version);
            }
        }
        columns
    }
}
