//! Submissions that wait are committed together, each with its own outcome.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, OnceLock},
};

use alloy_primitives::Address;
use axum::response::{IntoResponse as _, Response};
use comptoir_domain::{
    amount::Amount,
    id::{AccountId, ApiKeyId, QuoteId},
    job::{
        Device, Tier,
        waiting::{Demand, StatusReason},
    },
    limits::Limits,
};
use comptoir_store::{
    PgTransaction,
    assets::AssetError,
    group::{Group, commit},
    idempotency::{self as kept_replies, RequestKey, StoredReply},
    jobs::{
        self, CreateError, Job, NewJob,
        explain::{self, Waiting},
    },
    limits, pool,
    prices::{self, PriceError},
    quotes::Quote,
    wake::{Channel, Wake},
};
use sqlx::PgPool;
use time::OffsetDateTime;

use super::{explain::judge, job_body::JobBody, submit::not_created};
use crate::{
    AppState, Problem,
    auth::keys::Keys,
    facts::{Facts, Terms},
    idempotency::{self, Key, Reply},
    limiting::limited,
    quoting::no_asset,
};

/// Commits submissions in groups, and keeps what they are checked against. Clones share both.
#[derive(Clone, Default)]
pub struct Submissions {
    group: Arc<OnceLock<Group<Order, Outcome>>>,
    pub(crate) facts: Arc<Facts>,
}

/// A submission that was checked and priced.
#[derive(Debug)]
pub(super) struct Order {
    pub key: Key,
    pub account: AccountId,
    pub payer: Address,
    /// `Identity::spender` of the caller.
    pub spender: Option<ApiKeyId>,
    pub source: Source,
    pub name: Option<String>,
    pub max_cost: Amount,
    pub deadline_at: OffsetDateTime,
    /// The asset that `max_cost` is in.
    pub asset_id: i32,
    pub now: OffsetDateTime,
}

/// What a job is made from.
#[derive(Debug)]
pub(super) enum Source {
    /// A quote that the client was given.
    Stored(QuoteId),
    /// One that was made of the specification just now, and is stored with the job. Boxed: much larger than an identifier.
    Fresh(Box<Quote>),
}

/// What became of a submission.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The job was made.
    Made(Reply),
    /// The request was made before, and this was the answer.
    Kept(StoredReply),
    /// Another request has the key now.
    InProgress,
    /// The prices changed after it was priced: price it again.
    Repriced,
    /// It was refused.
    Refused(Problem),
}

impl Submissions {
    /// Has the order committed, with whatever waits beside it.
    pub(super) async fn submit(&self, state: &AppState, order: Order) -> Result<Outcome, Problem> {
        let group = self.group.get_or_init(|| {
            let committer = Arc::new(Committer {
                db: pool::for_groups(&state.db, 1),
                keys: Arc::clone(&state.keys),
                wake: state.wake.clone(),
                facts: Arc::clone(&self.facts),
                limits: state.config.limits,
            });
            Group::start(move |orders| {
                let committer = Arc::clone(&committer);
                Box::pin(async move { committer.commit(orders).await })
            })
        });
        group
            .ask(order)
            .await
            .map_err(|error| Problem::ungrouped(&error, error.is_full()))
    }
}

impl Outcome {
    /// The answer to the request; `None` when it is to be priced again.
    pub(super) fn answer(
        self,
        state: &AppState,
        order: &Asked,
    ) -> Option<Result<Response, Problem>> {
        match self {
            Self::Made(reply) => Some(Ok(reply.into_response())),
            Self::Kept(kept) => Some(idempotency::replay(state, order.account, &order.key, kept)),
            Self::InProgress => Some(Err(idempotency::in_progress())),
            Self::Refused(problem) => Some(Err(problem)),
            Self::Repriced => None,
        }
    }
}

/// Whose request it is, and what it is repeated by.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub account: AccountId,
    pub key: Key,
}

/// Works on groups. It does not hold the queue, so that it ends with it.
struct Committer {
    db: PgPool,
    keys: Arc<Keys>,
    wake: Wake,
    facts: Arc<Facts>,
    limits: Limits,
}

/// Why a group was not committed.
#[derive(Debug, thiserror::Error)]
enum CommitError {
    #[error("make the jobs of a group")]
    Create(#[from] CreateError),
    #[error("read the token")]
    Asset(#[from] AssetError),
    #[error("read a price")]
    Price(#[from] PriceError),
    #[error("commit a group")]
    Database(#[from] sqlx::Error),
}

impl Committer {
    /// Each request once: those that repeat another of the group get its answer.
    async fn commit(&self, orders: Vec<Order>) -> Vec<Outcome> {
        let mut firsts = HashMap::new();
        let leaders: Vec<usize> = orders
            .iter()
            .enumerate()
            .map(|(place, order)| *firsts.entry(order.key.of(order.account)).or_insert(place))
            .collect();
        let is_first = |place: &usize| leaders[*place] == *place;
        let places: Vec<usize> = (0..orders.len()).filter(is_first).collect();
        let once: Vec<&Order> = places.iter().map(|place| &orders[*place]).collect();
        let done = self.commit_all(&once).await;
        let mut by_leader: HashMap<usize, Outcome> = places.into_iter().zip(done).collect();
        let repeated: Vec<(usize, Outcome)> = (0..orders.len())
            .filter(|place| !is_first(place))
            .map(|place| {
                let leader = &by_leader[&leaders[place]];
                (place, self.repeat(leader, &orders[leaders[place]]))
            })
            .collect();
        by_leader.extend(repeated);
        (0..orders.len())
            .map(|place| by_leader.remove(&place).unwrap_or(Outcome::InProgress))
            .collect()
    }

    /// What a request is told that repeats another of its group.
    fn repeat(&self, leader: &Outcome, order: &Order) -> Outcome {
        match leader {
            Outcome::Made(reply) => {
                Outcome::Kept(reply.keep(&self.keys, order.account, &order.key))
            }
            Outcome::Kept(kept) => Outcome::Kept(kept.clone()),
            Outcome::InProgress | Outcome::Repriced | Outcome::Refused(_) => Outcome::InProgress,
        }
    }

    async fn commit_all(&self, orders: &[&Order]) -> Vec<Outcome> {
        let done = commit(&self.db, self, orders, |tx, it, orders| {
            Box::pin(it.work_on(tx, orders))
        });
        let done = done.await.into_iter();
        let outcomes: Vec<Outcome> = done
            .map(|done| done.unwrap_or_else(|error| Outcome::Refused(error.problem())))
            .collect();
        if outcomes.iter().any(|it| matches!(it, Outcome::Made(_))) {
            self.wake.publish(Channel::Work);
        }
        outcomes
    }

    /// What becomes of the orders when the transaction commits.
    async fn work_on(
        &self,
        tx: &mut PgTransaction<'_>,
        orders: &[&Order],
    ) -> Result<Vec<Outcome>, CommitError> {
        let now = orders.iter().map(|order| order.now).max();
        let now = now.unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let keys: Vec<RequestKey<'_>> = orders
            .iter()
            .map(|order| order.key.of(order.account))
            .collect();
        let taken = kept_replies::try_lock_all(tx, &keys).await?;
        let kept = kept_replies::find_all(tx, &keys, now).await?;
        let terms = self.facts.read_terms(tx, now).await?;
        let mut outcomes: Vec<Option<Outcome>> = taken
            .into_iter()
            .zip(kept)
            .zip(orders)
            .map(|((taken, kept), order)| match (taken, kept) {
                (false, _) => Some(Outcome::InProgress),
                (true, Some(kept)) => Some(Outcome::Kept(kept)),
                (true, None) if !order.is_priced_by(&terms) => Some(Outcome::Repriced),
                (true, None) => None,
            })
            .collect();
        self.admit(tx, orders, &mut outcomes, &terms, now).await?;
        let open: Vec<usize> = (0..orders.len())
            .filter(|place| outcomes[*place].is_none())
            .collect();
        let admitted: Vec<&Order> = open.iter().map(|place| orders[*place]).collect();
        let made = self.make(tx, &admitted, &terms, now).await?;
        for (place, outcome) in open.into_iter().zip(made) {
            outcomes[place] = Some(outcome);
        }
        let outcomes = outcomes.into_iter();
        Ok(outcomes
            .map(|outcome| outcome.unwrap_or(Outcome::InProgress))
            .collect())
    }

    /// Refuses those whose account is frozen or at a limit.
    async fn admit(
        &self,
        tx: &mut PgTransaction<'_>,
        orders: &[&Order],
        outcomes: &mut [Option<Outcome>],
        terms: &Terms,
        now: OffsetDateTime,
    ) -> sqlx::Result<()> {
        let open: Vec<usize> = (0..orders.len())
            .filter(|place| outcomes[*place].is_none())
            .collect();
        let payers = open
            .iter()
            .map(|place| (orders[*place].account, orders[*place].payer));
        let payers: Vec<_> = payers.collect();
        let admitted = limits::admit_jobs(tx, terms.asset.id, &payers, self.limits, now).await?;
        for (place, admitted) in open.into_iter().zip(admitted) {
            outcomes[place] = admitted.err().map(|it| Outcome::Refused(limited(it)));
        }
        Ok(())
    }

    /// Makes the jobs, and keeps the answers of those that were made.
    async fn make(
        &self,
        tx: &mut PgTransaction<'_>,
        orders: &[&Order],
        terms: &Terms,
        now: OffsetDateTime,
    ) -> Result<Vec<Outcome>, CommitError> {
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
        let mut outcomes = Vec::with_capacity(orders.len());
        let mut kept = Vec::with_capacity(orders.len());
        for (order, made) in orders.iter().zip(made) {
            match made {
                Ok(job) => {
                    let reason = reasons.of(tx, &job, terms, now).await?;
                    let location = format!("/v1/jobs/{}", job.id);
                    let body = JobBody::new(job, reason, &terms.asset);
                    let reply = Reply::created(location, &body);
                    kept.push((
                        order.key.of(order.account),
                        reply.keep(&self.keys, order.account, &order.key),
                    ));
                    outcomes.push(Outcome::Made(reply));
                }
                Err(refused) => outcomes.push(Outcome::Refused(not_created(refused))),
            }
        }
        let kept: Vec<_> = kept.iter().map(|(key, reply)| (*key, reply)).collect();
        if !kept.is_empty() {
            kept_replies::keep_all(tx, &kept, now, now + idempotency::KEPT_FOR).await?;
        }
        Ok(outcomes)
    }
}

impl CommitError {
    fn problem(&self) -> Problem {
        match self {
            Self::Asset(AssetError::NoneRegistered) => no_asset(AssetError::NoneRegistered),
            Self::Create(_) | Self::Asset(_) | Self::Price(_) | Self::Database(_) => {
                Problem::internal(self)
            }
        }
    }
}

impl Order {
    fn new_job(&self) -> NewJob<'_> {
        NewJob {
            account: self.account,
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
            .field("group", &self.group.get())
            .finish_non_exhaustive()
    }
}
