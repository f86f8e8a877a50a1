//! A quote becomes a job: the hold, the job, its replicas, their queue rows and the first event, all or nothing.

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    id::{AccountId, JobId, QuoteId, ReplicaId},
    job::Tier,
};
use serde_json::json;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    PgTransaction,
    codec::{to_amount, to_enum, to_numeric},
    events,
    holds::{self, Hold, HoldError, HoldSource},
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
    /// The money could not be held.
    #[error("hold the price of the job")]
    Hold(#[from] HoldError),
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
    let quote = sqlx::query!(
        r#"SELECT asset_id, tier, spec ->> 'kind' AS "kind!", hold_base, expires_at
           FROM quotes WHERE quote_id = $1 AND account_id = $2"#,
        new.quote.0,
        new.account.0,
    )
    .fetch_optional(&mut **tx)
    .await?
    .ok_or(CreateError::QuoteNotFound)?;
    if quote.expires_at <= now {
        return Err(CreateError::QuoteExpired(quote.expires_at));
    }
    let hold = to_amount("hold_base", &quote.hold_base)?;
    if hold > new.max_cost {
        return Err(CreateError::AboveMaxCost {
            hold,
            max_cost: new.max_cost,
        });
    }
    let job = JobId::generate();
    insert_job(tx, job, new, &quote.kind, &quote.tier, now).await?;
    let tier = to_enum("tier", &quote.tier, Tier::parse)?;
    enqueue(tx, job, tier.replicas()).await?;
    let started = json!({ "state": "queued", "replicas": tier.replicas() });
    events::append(tx, job, events::kind::QUEUED, &started, now).await?;
    let hold = Hold {
        source: HoldSource::Job(job),
        owner: new.payer,
        asset_id: quote.asset_id,
        amount: hold,
    };
    holds::place(tx, &hold, now).await?;
    Ok(job)
}

async fn insert_job(
    tx: &mut PgTransaction<'_>,
    job: JobId,
    new: &NewJob<'_>,
    kind: &str,
    tier: &str,
    now: OffsetDateTime,
) -> Result<(), CreateError> {
    sqlx::query!(
        "INSERT INTO jobs (job_id, account_id, quote_id, payer, asset_id, name, kind, tier, max_cost_base,
             state, deadline_at, created_at)
         SELECT $1, $2, quote_id, $4, asset_id, $5, $6, $7, $8, 'queued', $9, $10
         FROM quotes WHERE quote_id = $3",
        job.0,
        new.account.0,
        new.quote.0,
        new.payer.as_slice(),
        new.name,
        kind,
        tier,
        to_numeric(new.max_cost),
        new.deadline_at,
        now,
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

/// One replica and one queue row for each execution of the tier. The row is ready at once, by the database's
/// clock, which is the clock of leases.
async fn enqueue(tx: &mut PgTransaction<'_>, job: JobId, replicas: u16) -> sqlx::Result<()> {
    let ids: Vec<Uuid> = (0..replicas).map(|_| ReplicaId::generate().0).collect();
    sqlx::query!(
        "INSERT INTO replicas (replica_id, job_id, ordinal, state)
         SELECT replica_id, $1, ordinal - 1, 'queued'
         FROM unnest($2::uuid[]) WITH ORDINALITY AS new (replica_id, ordinal)",
        job.0,
        &ids,
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "INSERT INTO queue (replica_id, job_id, ready_at, device, min_memory_bytes, rate_nano)
         SELECT replica_id, job_id, clock_timestamp(), quotes.device, min_memory_bytes, rate_nano
         FROM replicas JOIN jobs USING (job_id) JOIN quotes USING (quote_id)
             JOIN price_versions USING (price_version_id)
         WHERE job_id = $1",
        job.0,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}
