//! Requests that may be repeated, committed in groups: each happens once, and its reply is kept in the transaction of its effect.

use std::{
    collections::HashMap,
    error::Error,
    fmt,
    sync::{Arc, OnceLock},
};

use axum::response::{IntoResponse as _, Response};
use comptoir_domain::id::AccountId;
use comptoir_store::{
    PgTransaction,
    group::{Group, commit},
    idempotency::{self as kept_replies, RequestKey, StoredReply},
    pool,
};
use futures::future::BoxFuture;
use sqlx::PgPool;
use time::OffsetDateTime;

use crate::{
    AppState, Problem,
    auth::keys::Keys,
    idempotency::{self, Key, Reply},
};

/// Whose request it is, what it is repeated by, and when it came.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub account: AccountId,
    pub key: Key,
    pub at: OffsetDateTime,
}

/// A request that waits for its group.
pub(crate) trait Order: Send + Sync + 'static {
    fn asked(&self) -> &Asked;
}

/// Why an order has no effect.
#[derive(Debug)]
pub(crate) enum Refusal<A> {
    /// It is to be prepared again.
    Again(A),
    /// It is refused.
    Refused(Problem),
}

/// What becomes of the orders of a group that were not answered before, each with its own outcome.
pub(crate) type Done<A> = Vec<Result<Reply, Refusal<A>>>;

/// What is done with orders.
pub(crate) trait Work: Send + Sync + 'static {
    type Order: Order;
    /// Why an order is to be prepared again.
    type Again: Send + Sync + 'static;
    type Error: Error + From<sqlx::Error> + Send + Sync + 'static;

    /// Has the effects of orders, in a transaction that sees everybody. One that is refused leaves nothing behind; an error ends the transaction.
    fn work_on<'a>(
        &'a self,
        tx: &'a mut PgTransaction<'static>,
        orders: &'a [&'a Self::Order],
        now: OffsetDateTime,
    ) -> BoxFuture<'a, Result<Done<Self::Again>, Self::Error>>;

    /// What whoever asked is told of an error.
    fn problem(error: &Self::Error) -> Problem {
        Problem::internal(error)
    }

    /// Something was committed.
    fn committed(&self) {}
}

/// What became of a request.
#[derive(Debug)]
pub(crate) enum Outcome<A> {
    /// It had its effect.
    Made(Reply),
    /// The request was made before, and this was the answer.
    Kept(StoredReply),
    /// Another request has the key now.
    InProgress,
    /// It had none, and is to be prepared again.
    Again(A),
    /// It was refused.
    Refused(Problem),
}

impl<A> Outcome<A> {
    /// The answer to the request, unless it is to be prepared again.
    pub(crate) fn answer(
        self,
        state: &AppState,
        asked: &Asked,
    ) -> Result<Result<Response, Problem>, A> {
        Ok(match self {
            Self::Made(reply) => Ok(reply.into_response()),
            Self::Kept(kept) => idempotency::replay(state, asked.account, &asked.key, kept),
            Self::InProgress => Err(idempotency::in_progress()),
            Self::Refused(problem) => Err(problem),
            Self::Again(why) => return Err(why),
        })
    }
}

/// Commits requests of one kind in groups. Clones share the queue, which starts with the first request.
pub(crate) struct Grouped<W: Work>(Arc<OnceLock<Queue<W>>>);

/// Orders on their way to be committed, and what became of them on its way back.
type Queue<W> = Group<<W as Work>::Order, Outcome<<W as Work>::Again>>;

impl<W: Work> Grouped<W> {
    /// Has the order committed, with whatever waits beside it. `work` is made for the first one.
    ///
    /// # Errors
    /// When too many orders wait, or the work broke off.
    pub(crate) async fn submit(
        &self,
        state: &AppState,
        order: W::Order,
        work: impl FnOnce() -> W,
    ) -> Result<Outcome<W::Again>, Problem> {
        let group = self.0.get_or_init(|| {
            let committer = Arc::new(Committer {
                db: pool::for_groups(&state.db, 1),
                keys: Arc::clone(&state.keys),
                work: work(),
            });
            Group::start(move |orders| {
                let committer = Arc::clone(&committer);
                Box::pin(async move { committer.commit(orders).await })
            })
        });
        let outcome = group.ask(order).await;
        outcome.map_err(|error| Problem::ungrouped(&error, error.is_full()))
    }
}

/// Works on groups. It does not hold the queue, so that it ends with it.
struct Committer<W> {
    db: PgPool,
    keys: Arc<Keys>,
    work: W,
}

impl<W: Work> Committer<W> {
    /// Each request once: those that repeat another of the group get its answer.
    async fn commit(&self, orders: Vec<W::Order>) -> Vec<Outcome<W::Again>> {
        let mut firsts = HashMap::new();
        let leaders: Vec<usize> = orders
            .iter()
            .enumerate()
            .map(|(place, order)| *firsts.entry(key_of(order)).or_insert(place))
            .collect();
        let is_first = |place: &usize| leaders[*place] == *place;
        let places: Vec<usize> = (0..orders.len()).filter(is_first).collect();
        let once: Vec<&W::Order> = places.iter().map(|place| &orders[*place]).collect();
        let done = self.commit_all(&once).await;
        let mut by_leader: HashMap<usize, Outcome<W::Again>> =
            places.into_iter().zip(done).collect();
        let repeated: Vec<_> = (0..orders.len())
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
    fn repeat(&self, leader: &Outcome<W::Again>, order: &W::Order) -> Outcome<W::Again> {
        match leader {
            Outcome::Made(reply) => Outcome::Kept(self.keep(reply, order)),
            Outcome::Kept(kept) => Outcome::Kept(kept.clone()),
            Outcome::InProgress | Outcome::Again(_) | Outcome::Refused(_) => Outcome::InProgress,
        }
    }

    fn keep(&self, reply: &Reply, order: &W::Order) -> StoredReply {
        let Asked { account, key, .. } = order.asked();
        reply.keep(&self.keys, *account, key)
    }

    async fn commit_all(&self, orders: &[&W::Order]) -> Vec<Outcome<W::Again>> {
        let done = commit(&self.db, self, orders, |tx, it, orders| {
            Box::pin(it.once(tx, orders))
        });
        let done = done.await.into_iter();
        let outcomes: Vec<_> = done
            .map(|done| done.unwrap_or_else(|error| Outcome::Refused(W::problem(&error))))
            .collect();
        if outcomes.iter().any(|it| matches!(it, Outcome::Made(_))) {
            self.work.committed();
        }
        outcomes
    }

    /// What becomes of the orders when the transaction commits.
    async fn once<'a>(
        &'a self,
        tx: &'a mut PgTransaction<'static>,
        orders: &'a [&'a W::Order],
    ) -> Result<Vec<Outcome<W::Again>>, W::Error> {
        let now = orders.iter().map(|order| order.asked().at).max();
        let now = now.unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let keys: Vec<_> = orders.iter().map(|order| key_of(*order)).collect();
        let taken = kept_replies::try_lock_all(tx, &keys).await?;
        let kept = kept_replies::find_all(tx, &keys, now).await?;
        let before = taken.into_iter().zip(kept);
        let mut outcomes: Vec<Option<Outcome<W::Again>>> = before
            .map(|before| match before {
                (false, _) => Some(Outcome::InProgress),
                (true, Some(kept)) => Some(Outcome::Kept(kept)),
                (true, None) => None,
            })
            .collect();
        let places = (0..orders.len()).filter(|place| outcomes[*place].is_none());
        let places: Vec<usize> = places.collect();
        let open: Vec<&W::Order> = places.iter().map(|place| orders[*place]).collect();
        if !open.is_empty() {
            let done = self.work.work_on(tx, &open, now).await?;
            self.keep_all(tx, &open, &done, now).await?;
            for (place, done) in places.into_iter().zip(done) {
                outcomes[place] = Some(done.into());
            }
        }
        let outcomes = outcomes.into_iter();
        Ok(outcomes
            .map(|outcome| outcome.unwrap_or(Outcome::InProgress))
            .collect())
    }

    /// Keeps the replies of those that had their effect.
    async fn keep_all(
        &self,
        tx: &mut PgTransaction<'_>,
        orders: &[&W::Order],
        done: &Done<W::Again>,
        now: OffsetDateTime,
    ) -> sqlx::Result<()> {
        let made = orders.iter().zip(done);
        let made = made.filter_map(|(order, done)| Some((*order, done.as_ref().ok()?)));
        let kept: Vec<_> = made
            .map(|(order, reply)| (key_of(order), self.keep(reply, order)))
            .collect();
        let kept: Vec<_> = kept.iter().map(|(key, reply)| (*key, reply)).collect();
        if kept.is_empty() {
            return Ok(());
        }
        kept_replies::keep_all(tx, &kept, now, now + idempotency::KEPT_FOR).await
    }
}

fn key_of(order: &impl Order) -> RequestKey<'_> {
    let asked = order.asked();
    asked.key.of(asked.account)
}

impl<A> From<Result<Reply, Refusal<A>>> for Outcome<A> {
    fn from(done: Result<Reply, Refusal<A>>) -> Self {
        match done {
            Ok(reply) => Self::Made(reply),
            Err(Refusal::Again(why)) => Self::Again(why),
            Err(Refusal::Refused(problem)) => Self::Refused(problem),
        }
    }
}

impl<W: Work> Clone for Grouped<W> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<W: Work> Default for Grouped<W> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<W: Work> fmt::Debug for Grouped<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Grouped").field(&self.0.get()).finish()
    }
}
