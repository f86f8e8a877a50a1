//! Submissions of jobs, committed in groups.

use std::{collections::HashMap, fmt, sync::Arc};

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    id::{ApiKeyId, QuoteId},
    job::{
        Device, Tier,
        waiting::{Demand, StatusReason},
    },
    limits::Limits,
};
use comptoir_store::{
    PgTransaction,
    assets::AssetError,
    jobs::{
        self, CreateError, Job, NewJob,
        explain::{self, Waiting},
    },
    limits,
    prices::{self, PriceError},
    quotes::Quote,
    wake::{Channel, Wake},
};
use futures::future::BoxFuture;
use time::OffsetDateTime;

use super::{explain::judge, job_body::JobBody, submit::not_created};
use crate::{
    AppState, Problem,
    facts::{Facts, Terms},
    grouped::{Asked, Done, Grouped, Order, Outcome, Refusal, Work},
    idempotency::Reply,
    limiting::limited,
    quoting::no_asset,
};

/// Commits submissions in groups, and keeps what they are checked against. Clones share both.
#[derive(Clone, Default)]
pub struct Submissions {
    group: Grouped<Submitting>,
    pub(crate) facts: Arc<Facts>,
}

/// A submission that was checked and priced.
#[derive(Debug)]
pub(super) struct Submission {
    pub asked: Asked,
    pub payer: Address,
    /// `Identity::spender` of the caller.
    pub spender: Option<ApiKeyId>,
    pub source: Source,
    pub name: Option<String>,
    pub max_cost: Amount,
    pub deadline_at: OffsetDateTime,
    /// The asset that `max_cost` is in.
    pub asset_id: i32,
}

/// What a job is made from.
#[derive(Debug)]
pub(super) enum Source {
    /// A quote that the client was given.
    Stored(QuoteId),
    /// One that was made of the specification just now, and is stored with the job. Boxed: much larger than an identifier.
    Fresh(Box<Quote>),
}

/// The prices changed after a submission was priced.
#[derive(Debug)]
pub(super) struct Repriced;

impl Submissions {
    /// Has the submission committed, with whatever waits beside it.
    pub(super) async fn submit(
        &self,
        state: &AppState,
        submission: Submission,
    ) -> Result<Outcome<Repriced>, Problem> {
        let work = || Submitting {
            wake: state.wake.clone(),
            facts: Arc::clone(&self.facts),
            limits: state.config.limits,
        };
        self.group.submit(state, submission, work).await
    }
}

/// Makes jobs of submissions.
struct Submitting {
    wake: Wake,
    facts: Arc<Facts>,
    limits: Limits,
}

impl Order for Submission {
    fn asked(&self) -> &Asked {
        &self.asked
    }
}

impl Work for Submitting {
    type Order = Submission;
    type Again = Repriced;
    type Error = CommitError;

    fn work_on<'a>(
        &'a self,
        tx: &'a mut PgTransaction<'static>,
        orders: &'a [&'a Submission],
        now: OffsetDateTime,
    ) -> BoxFuture<'a, Result<Done<Repriced>, CommitError>> {
        Box::pin(self.work_on(tx, orders, now))
    }

    fn problem(error: &CommitError) -> Problem {
        match error {
            CommitError::Asset(AssetError::NoneRegistered) => no_asset(AssetError::NoneRegistered),
            CommitError::Create(_)
            | CommitError::Asset(_)
            | CommitError::Price(_)
            | CommitError::Database(_) => Problem::internal(error),
        }
    }

    fn committed(&self) {
        self.wake.publish(Channel::Work);
    }
}

/// Why a group was not committed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommitError {
    #[error("make the jobs of a group")]
    Create(#[from] CreateError),
    #[error("read the token")]
    Asset(#[from] AssetError),
    #[error("read a price")]
    Price(#[from] PriceError),
    #[error("commit a group")]
    Database(#[from] sqlx::Error),
}

impl Submitting {
    async fn work_on(
        &self,
        tx: &mut PgTransaction<'_>,
        orders: &[&Submission],
        now: OffsetDateTime,
    ) -> Result<Done<Repriced>, CommitError> {
        let terms = self.facts.read_terms(tx, now).await?;
        let mut outcomes: Vec<Option<Result<Reply, Refusal<Repriced>>>> = orders
            .iter()
            .map(|order| (!order.is_priced_by(&terms)).then_some(Err(Refusal::Again(Repriced))))
            .collect();
        self.admit(tx, orders, &mut outcomes, &terms, now).await?;
        let open = (0..orders.len()).filter(|place| outcomes[*place].is_none());
        let open: Vec<usize> = open.collect();
        let admitted: Vec<&Submission> = open.iter().map(|place| orders[*place]).collect();
        let made = self.make(tx, &admitted, &terms, now).await?;
        for (place, outcome) in open.into_iter().zip(made) {
            outcomes[place] = Some(outcome);
        }
        Ok(outcomes.into_iter().flatten().collect())
    }

    /// Refuses those whose account is frozen or at a limit.
    async fn admit(
        &self,
        tx: &mut PgTransaction<'_>,
        orders: &[&Submission],
        outcomes: &mut [Option<Result<Reply, Refusal<Repriced>>>],
        terms: &Terms,
        now: OffsetDateTime,
    ) -> sqlx::Result<()> {
        let open = (0..orders.len()).filter(|place| outcomes[*place].is_none());
        let open: Vec<usize> = open.collect();
        let payers = open
            .iter()
            .map(|place| (orders[*place].asked.account, orders[*place].payer));
        let payers: Vec<_> = payers.collect();
        let admitted = limits::admit_jobs(tx, terms.asset.id, &payers, self.limits, now).await?;
        for (place, admitted) in open.into_iter().zip(admitted) {
            let refused = admitted.err();
            outcomes[place] = refused.map(|it| Err(Refusal::Refused(limited(it))));
        }
        Ok(())
    }

    /// Makes the jobs.
    async fn make(
        &self,
        tx: &mut PgTransaction<'_>,
        orders: &[&Submission],
        terms: &Terms,
        now: OffsetDateTime,
    ) -> Result<Done<Repriced>, CommitError> {
        if orders.is_empty() {
            return Ok(Vec::new());
        }
        let (mut new, mut fresh) = (Vec::with_capacity(orders.len()), Vec::new());
        for order in orders {
            new.push(order.new_job());
            if let Source::Fresh(quote) = &order.source {
                fresh.push((**quote).clone());
            }
        }
        let made = jobs::create_all(tx, &new, fresh, now).await?;
        let mut reasons = Reasons::default();
        let mut done = Vec::with_capacity(orders.len());
        for made in made {
            done.push(match made {
                Ok(job) => {
                    let reason = reasons.of(tx, &job, terms, now).await?;
                    let location = format!("/v1/jobs/{}", job.id);
                    let body = JobBody::new(job, reason, &terms.asset);
                    Ok(Reply::created(location, &body))
                }
                Err(refused) => Err(Refusal::Refused(not_created(refused))),
            });
        }
        Ok(done)
    }
}

impl Submission {
    fn new_job(&self) -> NewJob<'_> {
        NewJob {
            account: self.asked.account,
            quote: match &self.source {
                Source::Stored(quote) => *quote,
                Source::Fresh(quote) => quote.id,
            },
            payer: self.payer,
            spender: self.spender,
            name: self.name.as_deref(),
            max_cost: self.max_cost,
            deadline_at: self.deadline_at,
        }
    }

    /// Was it priced with what is published now?
    fn is_priced_by(&self, terms: &Terms) -> bool {
        let price = match &self.source {
            Source::Stored(_) => true,
            Source::Fresh(quote) => terms
                .price(quote.device)
                .is_some_and(|version| version.id == quote.price_version),
        };
        price && self.asset_id == terms.asset.id
    }
}

/// Why the jobs of a group wait: looked up once for all that ask the same of a worker.
#[derive(Default)]
struct Reasons(HashMap<(Tier, &'static str, Device, u64, i32), Option<StatusReason>>);

impl Reasons {
    async fn of(
        &mut self,
        tx: &mut PgTransaction<'_>,
        job: &Job,
        terms: &Terms,
        now: OffsetDateTime,
    ) -> Result<Option<StatusReason>, CommitError> {
        let asked = (
            job.tier,
            job.spec.kind(),
            job.device,
            job.min_memory_bytes,
            job.price_version,
        );
        if let Some(reason) = self.0.get(&asked) {
            return Ok(*reason);
        }
        let price = match terms.version(job.price_version) {
            Some(version) => *version,
            None => prices::find(tx, job.price_version).await?,
        };
        let replicas = u64::from(job.tier.replicas());
        let waiting = Waiting {
            demand: Demand::of(job.tier, job.spec.kind() == "training", replicas),
            device: job.device,
            min_memory_bytes: job.min_memory_bytes,
            rate_nano: Amount::from_base(price.rate_nano.nano()).unwrap_or(Amount::MAX),
            numeric_class: None,
            position: 0,
            ready_at: None,
        };
        let classes = explain::classes(tx, job.id, &waiting, now).await?;
        let reason = judge(job, Some(&waiting), &classes);
        self.0.insert(asked, reason);
        Ok(reason)
    }
}

impl fmt::Debug for Submissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Submissions")
            .field("group", &self.group)
            .finish_non_exhaustive()
    }
}
