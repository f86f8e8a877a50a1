use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::{BoxFuture, join_all};
use tokio::sync::Semaphore;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

/// Work that doubles, notes the sizes of its groups, and lets each begin only when it is let.
struct Doubling {
    group: Group<u64, u64>,
    sizes: Arc<Mutex<Vec<usize>>>,
    let_go: Arc<Semaphore>,
}

fn doubling() -> Doubling {
    let sizes = Arc::<Mutex<Vec<usize>>>::default();
    let let_go = Arc::new(Semaphore::new(0));
    let (noted, gate) = (Arc::clone(&sizes), Arc::clone(&let_go));
    let work = move |items: Vec<u64>| -> BoxFuture<'static, Vec<u64>> {
        let (noted, gate) = (Arc::clone(&noted), Arc::clone(&gate));
        Box::pin(async move {
            gate.acquire().await.expect("open").forget();
            assert!(!items.contains(&13), "an unlucky item");
            noted
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(items.len());
            items.into_iter().map(|item| item * 2).collect()
        })
    };
    Doubling {
        group: Group::start(work),
        sizes,
        let_go,
    }
}

#[tokio::test]
async fn what_arrives_while_groups_are_worked_on_is_the_next_group() {
    let it = doubling();
    let asked: Vec<_> = (100..200)
        .map(|item| {
            let group = it.group.clone();
            tokio::spawn(async move { group.ask(item).await })
        })
        .collect();
    // Everybody has asked before the first group is let go.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    it.let_go.add_permits(100);
    let answers = tokio::time::timeout(PATIENCE, join_all(asked)).await;
    let answers: Vec<_> = answers
        .expect("they answer")
        .into_iter()
        .map(|answer| answer.unwrap())
        .collect();
    let doubled: Vec<_> = (100..200).map(|item| Ok(item * 2)).collect();
    assert_eq!(answers, doubled, "each gets its own answer");
    let sizes = it.sizes.lock().unwrap().clone();
    assert_eq!(sizes.iter().sum::<usize>(), 100);
    assert!(sizes.len() < 10, "{sizes:?}");
}

#[tokio::test]
async fn a_group_that_breaks_off_is_told_and_the_next_goes_on() {
    let it = doubling();
    it.let_go.add_permits(2);
    assert_eq!(it.group.ask(13).await, Err(GroupError::Lost));
    assert_eq!(it.group.ask(21).await, Ok(42));
}

#[tokio::test]
async fn a_full_queue_refuses_at_once() {
    let it = doubling();
    let mut asked = Vec::new();
    // What both workers hold is beside the queue.
    for item in 100..100 + QUEUE_MAX + 2 * GROUP_MAX {
        let mut asking = Box::pin(it.group.ask(item as u64));
        let polled = futures::poll!(&mut asking);
        if polled == std::task::Poll::Ready(Err(GroupError::Full)) {
            break;
        }
        assert!(polled.is_pending());
        asked.push(asking);
        if item % 64 == 0 {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(it.group.ask(1).await, Err(GroupError::Full));
    assert!(asked.len() >= QUEUE_MAX);
}
