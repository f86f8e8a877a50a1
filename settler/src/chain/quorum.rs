//! Of several nodes the majority is believed. Who contradicts it is out-voted and named; where there is no majority, there
//! is no answer, and the step ends.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, timeout_at},
};

use super::{
    ChainError, Endpoint,
    ballot::{Answer, Ballot},
};

/// How long others are waited for once a majority has answered: long enough to hear that one of them lies.
const GRACE: Duration = Duration::from_secs(1);
/// The same where the answer is one by its rank: without the third, one that says too little would set it.
const RANK_GRACE: Duration = Duration::from_secs(2);
/// An endpoint that was slow is not waited for so soon again.
const SLOW_FOR: Duration = Duration::from_secs(30);
/// Answers by endpoint and by what they were beside the majority's: agreed, outvoted, failed or slow.
const ANSWERS: &str = "settler_rpc_answers_total";
/// 1 while an endpoint contradicts, lags behind, or does not answer at all while others do.
const ODD: &str = "settler_rpc_endpoint_odd";

/// The nodes that are asked.
#[derive(Debug, Clone)]
pub(super) struct Quorum {
    endpoints: Vec<Arc<Endpoint>>,
    record: Arc<Mutex<Vec<Record>>>,
}

/// What an endpoint did since the last review.
#[derive(Debug, Default, Clone)]
struct Record {
    agreed: bool,
    /// What it was out-voted in, first.
    outvoted: Option<String>,
    /// Why it failed, last.
    failed: Option<String>,
    slow_until: Option<Instant>,
    /// It was odd at the last review.
    odd: bool,
}

/// What is wrong with an endpoint, while others agree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Odd {
    /// Which one.
    pub endpoint: String,
    /// It says something else, or is behind; otherwise it only fails.
    pub contradicts: bool,
    /// What it was asked, or how it failed.
    pub detail: String,
}

impl Quorum {
    pub(super) fn new(endpoints: Vec<Endpoint>) -> Self {
        let record = vec![Record::default(); endpoints.len()];
        Self {
            endpoints: endpoints.into_iter().map(Arc::new).collect(),
            record: Arc::new(Mutex::new(record)),
        }
    }

    pub(super) fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// How many have to say the same.
    const fn needed(&self) -> usize {
        self.endpoints.len() / 2 + 1
    }

    /// The only endpoint, where there is no other to compare it with.
    pub(super) fn only(&self) -> Option<&Endpoint> {
        match self.endpoints.as_slice() {
            [only] => Some(only),
            _ => None,
        }
    }

    /// What the majority says, word for word.
    pub(super) async fn agree<T, F>(
        &self,
        what: &'static str,
        ask: impl Fn(Arc<Endpoint>) -> F,
    ) -> Answer<T>
    where
        T: PartialEq + Send + 'static,
        F: Future<Output = Answer<T>> + Send + 'static,
    {
        if let [only] = self.endpoints.as_slice() {
            return ask(Arc::clone(only)).await;
        }
        let needed = self.needed();
        let enough = |ballot: &Ballot<T>| ballot.majority(needed).is_some();
        let mut ballot = self.poll(ask, enough, GRACE).await;
        let Some(majority) = ballot.majority(needed) else {
            return Err(self.undecided(what, ballot));
        };
        self.note(what, &ballot, |place| {
            (!majority.contains(&place)).then(|| what.to_owned())
        });
        let elected = ballot.answers[majority[0]].take();
        elected.unwrap_or(Err(ChainError::Silent))
    }

    /// The answer in the middle, where honest nodes may differ: no minority can push it beyond what an honest node said.
    pub(super) async fn middle<T, F>(
        &self,
        what: &'static str,
        ask: impl Fn(Arc<Endpoint>) -> F,
    ) -> Answer<T>
    where
        T: Ord + Copy + Send + 'static,
        F: Future<Output = Answer<T>> + Send + 'static,
    {
        let rank = |answered: usize, _| (answered - 1) / 2;
        let (value, ballot) = self.ranked(what, ask, rank).await?;
        self.note(what, &ballot, |_| None);
        Ok(value)
    }

    /// The highest number that a majority has reached: neither who runs ahead nor who lags behind moves it. Who is further
    /// from it than `apart_max` is out-voted.
    pub(super) async fn reached<F>(
        &self,
        (what, apart_max): (&'static str, u64),
        ask: impl Fn(Arc<Endpoint>) -> F,
    ) -> Answer<u64>
    where
        F: Future<Output = Answer<u64>> + Send + 'static,
    {
        let from_below = |answered: usize, needed: usize| answered - needed;
        let (reached, ballot) = self.ranked(what, ask, from_below).await?;
        let said: BTreeMap<usize, u64> = ballot.said().map(|(place, it)| (place, *it)).collect();
        self.note(what, &ballot, |place| {
            let number = *said.get(&place)?;
            let blocks = number.abs_diff(reached);
            let side = if number < reached { "behind" } else { "ahead" };
            (blocks > apart_max).then(|| format!("{what}: {number}, {blocks} blocks {side}"))
        });
        Ok(reached)
    }

    /// Hands all of them something; one that takes it is enough.
    pub(super) async fn tell<F>(&self, ask: impl Fn(Arc<Endpoint>) -> F) -> Answer<()>
    where
        F: Future<Output = Answer<()>> + Send + 'static,
    {
        let ballot = self.poll(ask, |it| it.answered() > 0, GRACE).await;
        if ballot.answered() > 0 {
            Ok(())
        } else {
            Err(ballot.failure())
        }
    }

    /// One of the answers by its rank from below, with all of them.
    async fn ranked<T, F>(
        &self,
        what: &'static str,
        ask: impl Fn(Arc<Endpoint>) -> F,
        rank: impl Fn(usize, usize) -> usize,
    ) -> Answer<(T, Ballot<T>)>
    where
        T: Ord + Copy + Send + 'static,
        F: Future<Output = Answer<T>> + Send + 'static,
    {
        let needed = self.needed();
        let enough = |ballot: &Ballot<T>| ballot.answered() >= needed;
        let ballot = self.poll(ask, enough, RANK_GRACE).await;
        let mut said: Vec<T> = ballot.said().map(|(_, it)| *it).collect();
        if said.len() < needed {
            return Err(self.too_few(what, ballot));
        }
        said.sort_unstable();
        Ok((said[rank(said.len(), needed)], ballot))
    }

    /// Asks all at once, until enough is known and the others have had their grace.
    async fn poll<T, F>(
        &self,
        ask: impl Fn(Arc<Endpoint>) -> F,
        enough: impl Fn(&Ballot<T>) -> bool,
        grace: Duration,
    ) -> Ballot<T>
    where
        T: Send + 'static,
        F: Future<Output = Answer<T>> + Send + 'static,
    {
        let mut asked = JoinSet::new();
        for (place, endpoint) in self.endpoints.iter().enumerate() {
            let answer = ask(Arc::clone(endpoint));
            asked.spawn(async move { (place, answer.await) });
        }
        let mut ballot = Ballot {
            answers: self.endpoints.iter().map(|_| None).collect(),
        };
        let mut give_up: Option<Instant> = None;
        loop {
            let next = match give_up {
                None => asked.join_next().await,
                Some(at) => match timeout_at(at, asked.join_next()).await {
                    Ok(next) => next,
                    Err(_) => return ballot,
                },
            };
            match next {
                None => return ballot,
                Some(Ok((place, answer))) => ballot.answers[place] = Some(answer),
                Some(Err(error)) => tracing::error!(%error, "a question was cut short"),
            }
            if give_up.is_none() && enough(&ballot) {
                give_up = Some(self.patience(&ballot, grace));
            }
        }
    }

    /// Until when those are waited for who have not answered yet.
    fn patience<T>(&self, ballot: &Ballot<T>, grace: Duration) -> Instant {
        let now = Instant::now();
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let mut missing = record
            .iter()
            .zip(&ballot.answers)
            .filter(|(_, answer)| answer.is_none());
        let worth_it = missing.any(|(it, _)| it.slow_until.is_none_or(|until| until <= now));
        if worth_it { now + grace } else { now }
    }

    /// Keeps what each endpoint's answer was worth; `contradicts` says what was wrong with one.
    fn note<T>(
        &self,
        what: &str,
        ballot: &Ballot<T>,
        contradicts: impl Fn(usize) -> Option<String>,
    ) {
        for (place, answer) in ballot.answers.iter().enumerate() {
            let outcome = match answer {
                Some(Ok(_)) => {
                    if let Some(what) = contradicts(place) {
                        self.outvoted(place, what);
                        "outvoted"
                    } else {
                        self.with(place, |it| it.agreed = true);
                        "agreed"
                    }
                }
                Some(Err(error)) => {
                    let why = format!("{what}: {error}");
                    self.with(place, |it| it.failed = Some(why));
                    "failed"
                }
                None => {
                    let why = format!("{what}: no answer in time");
                    self.with(place, |it| {
                        it.failed = Some(why);
                        // One that had no grace keeps its term: it is heard again when that is over.
                        let now = Instant::now();
                        if it.slow_until.is_none_or(|until| until <= now) {
                            it.slow_until = Some(now + SLOW_FOR);
                        }
                    });
                    "slow"
                }
            };
            let endpoint = self.endpoints[place].name.clone();
            metrics::counter!(ANSWERS, "endpoint" => endpoint, "outcome" => outcome).increment(1);
        }
    }

    fn outvoted(&self, place: usize, what: String) {
        let endpoint = &self.endpoints[place].name;
        self.with(place, |it| {
            if it.outvoted.is_none() && !it.odd {
                tracing::warn!(endpoint, what, "an endpoint is out-voted");
            }
            it.outvoted.get_or_insert(what);
        });
    }

    fn with(&self, place: usize, change: impl FnOnce(&mut Record)) {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut record[place]);
    }

    /// There is no majority: those who answered contradict each other, or too few answered.
    fn undecided<T: PartialEq>(&self, what: &'static str, ballot: Ballot<T>) -> ChainError {
        let parties = ballot.parties();
        if parties.len() < 2 {
            return self.too_few(what, ballot);
        }
        let names = |members: &Vec<usize>| {
            let names = members
                .iter()
                .map(|place| self.endpoints[*place].name.as_str());
            names.collect::<Vec<_>>().join(" and ")
        };
        let parties: Vec<_> = parties.iter().map(names).collect();
        ChainError::NoMajority {
            what,
            parties: parties.join(" against "),
        }
    }

    fn too_few<T>(&self, what: &'static str, ballot: Ballot<T>) -> ChainError {
        ChainError::TooFew {
            what,
            answered: ballot.answered(),
            needed: self.needed(),
            source: Box::new(ballot.failure()),
        }
    }

    /// Who was odd since the last review. Told in the log when it begins and when it has ended.
    pub(super) fn review(&self) -> Vec<Odd> {
        if self.only().is_some() {
            return Vec::new();
        }
        let mut odd = Vec::new();
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        for (it, endpoint) in record.iter_mut().zip(&self.endpoints) {
            let name = &endpoint.name;
            let outvoted = it.outvoted.take();
            // One that is a block behind fails some questions and answers others.
            let failed = it.failed.take().filter(|_| !it.agreed);
            it.agreed = false;
            let was = std::mem::replace(&mut it.odd, outvoted.is_some() || failed.is_some());
            match (was, it.odd) {
                (true, false) => tracing::info!(endpoint = name, "an endpoint agrees again"),
                (false, true) if outvoted.is_none() => {
                    tracing::warn!(endpoint = name, why = failed, "an endpoint fails");
                }
                _ => {}
            }
            metrics::gauge!(ODD, "endpoint" => name.clone()).set(if it.odd { 1.0 } else { 0.0 });
            let contradicts = outvoted.is_some();
            if let Some(detail) = outvoted.or(failed) {
                odd.push(Odd {
                    endpoint: name.clone(),
                    contradicts,
                    detail,
                });
            }
        }
        odd
    }
}

#[cfg(test)]
mod tests {
    use alloy::primitives::Address;

    use super::*;
    use crate::chain::endpoint::provider;

    /// Nodes that are never asked for real: what each says is in the question.
    fn quorum(nodes: usize) -> Quorum {
        let endpoint = |place: usize| Endpoint {
            name: place.to_string(),
            provider: provider("http://127.0.0.1:1".parse().unwrap()).unwrap(),
            contract: Address::ZERO,
            token: Address::ZERO,
        };
        Quorum::new((0..nodes).map(endpoint).collect())
    }

    /// What the node of this name says; nothing where it fails.
    fn said(says: &[Option<u64>], endpoint: &Endpoint) -> Answer<u64> {
        let place: usize = endpoint.name.parse().unwrap();
        says[place].ok_or(ChainError::Silent)
    }

    async fn agreed(says: &[Option<u64>]) -> Answer<u64> {
        let ask = |it: Arc<Endpoint>| std::future::ready(said(says, &it));
        quorum(says.len()).agree("it", ask).await
    }

    #[tokio::test]
    async fn more_than_half_of_all_nodes_have_to_say_the_same() {
        for says in [
            &[Some(7)][..],
            &[Some(7), Some(7)],
            &[Some(7), Some(8), Some(7)],
            &[None, Some(7), Some(7)],
            &[Some(7), Some(8), Some(9), Some(7), Some(7)],
        ] {
            assert_eq!(agreed(says).await.unwrap(), 7, "{says:?}");
        }
        for says in [
            &[Some(7), Some(8)][..],
            &[Some(7), Some(8), None],
            &[Some(7), Some(8), Some(9)],
            &[Some(7), Some(7), Some(8), Some(8)],
        ] {
            let answer = agreed(says).await;
            let none = matches!(answer, Err(ChainError::NoMajority { .. }));
            assert!(none, "{says:?}: {answer:?}");
        }
        for says in [&[None, Some(7)][..], &[None, Some(7), None]] {
            let answer = agreed(says).await;
            let few = matches!(answer, Err(ChainError::TooFew { answered: 1, .. }));
            assert!(few, "{says:?}: {answer:?}");
        }
    }

    #[tokio::test]
    async fn no_minority_moves_a_number_beyond_what_an_honest_node_said() {
        for lie in [Some(0), Some(9), Some(10), Some(11), Some(u64::MAX), None] {
            for place in 0..3 {
                let mut says = vec![Some(10), Some(11)];
                says.insert(place, lie);
                let ask = |it: Arc<Endpoint>| std::future::ready(said(&says, &it));
                let reached = quorum(3).reached(("it", 3), ask).await.unwrap();
                assert!((10..=11).contains(&reached), "{says:?}: {reached}");
                let middle = quorum(3).middle("it", ask).await.unwrap();
                assert!((10..=11).contains(&middle), "{says:?}: {middle}");
            }
        }
    }

    #[tokio::test]
    async fn who_contradicts_is_named_until_it_agrees_again() {
        let nodes = quorum(3);
        let ask = async |says: [Option<u64>; 3]| {
            let ask = |it: Arc<Endpoint>| std::future::ready(said(&says, &it));
            nodes.agree("it", ask).await.unwrap()
        };
        ask([Some(7), Some(8), Some(7)]).await;
        ask([Some(7), Some(7), Some(7)]).await;
        let odd = |endpoint: &str, contradicts| Odd {
            endpoint: endpoint.to_owned(),
            contradicts,
            detail: "it".to_owned(),
        };
        assert_eq!(nodes.review(), [odd("1", true)]);
        ask([Some(7), Some(7), None]).await;
        let failing = nodes.review();
        assert_eq!(failing.len(), 1);
        assert!(failing[0].endpoint == "2" && !failing[0].contradicts);
        // A node that is a block behind fails some questions and answers others.
        ask([Some(7), Some(7), None]).await;
        ask([Some(7), Some(7), Some(7)]).await;
        assert_eq!(nodes.review(), []);
    }
}
