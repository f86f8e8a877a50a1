use comptoir_wire::calls::Hosting;

use super::*;

const MEMORY: u64 = 1 << 30;

fn worker(number: u128) -> WorkerId {
    WorkerId(Uuid::from_u128(number))
}

fn version() -> ModelVersionId {
    ModelVersionId(Uuid::from_u128(77))
}

fn connected(number: u128, loaded: &[ModelVersionId], waiting: u32) -> Connected {
    Connected {
        worker: Uuid::from_u128(number),
        owner: Uuid::from_u128(1_000 + number),
        hosting: Hosting {
            memory_bytes: MEMORY,
            loaded: loaded.iter().map(|it| it.0).collect(),
        },
        waiting,
    }
}

fn announced(workers: Vec<Connected>) -> Hosts {
    let hosts = Hosts::default();
    announce(&hosts, 1, workers);
    hosts
}

fn announce(hosts: &Hosts, scheduler: u128, workers: Vec<Connected>) {
    let scheduler = Uuid::from_u128(scheduler);
    hosts.note(Announcement { scheduler, workers }, Instant::now());
}

fn chosen(hosts: &Hosts, call: u128, tried: &[WorkerId]) -> Option<WorkerId> {
    let chosen = hosts.choose(Uuid::from_u128(call), (version(), MEMORY), tried);
    chosen.map(|(host, _)| host.worker)
}

#[tokio::test]
async fn a_version_is_called_where_it_is_loaded_and_least_is_waiting() {
    let v = version();
    let hosts = announced(vec![
        connected(1, &[], 0),
        connected(2, &[v], 3),
        connected(3, &[v], 1),
    ]);
    assert_eq!(chosen(&hosts, 1, &[]), Some(worker(3)));
    assert_eq!(chosen(&hosts, 2, &[worker(3)]), Some(worker(2)));
    assert_eq!(chosen(&hosts, 3, &[worker(3), worker(2)]), Some(worker(1)));
    assert_eq!(chosen(&hosts, 4, &[worker(3), worker(2), worker(1)]), None);
    let needs_more = hosts.choose(Uuid::from_u128(5), (v, MEMORY + 1), &[]);
    assert!(needs_more.is_none(), "nobody has so much memory");
}

#[tokio::test]
async fn every_process_has_an_unloaded_version_loaded_by_the_same_worker() {
    let workers = || (1..=20).map(|it| connected(it, &[], 0)).collect::<Vec<_>>();
    let (here, there) = (announced(workers()), announced(workers()));
    let first = chosen(&here, 1, &[]).unwrap();
    assert_eq!(chosen(&there, 1, &[]), Some(first));
    assert_eq!(chosen(&here, 2, &[]), Some(first), "and the next call too");
}

#[tokio::test]
async fn a_crowded_worker_gets_help_from_one_that_has_not_loaded_the_version() {
    let hosts = announced(vec![
        connected(1, &[version()], CROWDED),
        connected(2, &[], 0),
    ]);
    assert_eq!(chosen(&hosts, 1, &[]), Some(worker(2)));
    let alone = announced(vec![connected(1, &[version()], CROWDED)]);
    assert_eq!(chosen(&alone, 1, &[]), Some(worker(1)));
}

#[tokio::test]
async fn an_answer_reaches_who_waits_once_and_nobody_after_it_gave_up() {
    let hosts = announced(vec![connected(1, &[version()], 0)]);
    let call = Uuid::from_u128(9);
    let (_, mut answers) = hosts.choose(call, (version(), MEMORY), &[]).unwrap();
    hosts.answer(call, true, ByteBuf::from(vec![1]));
    hosts.answer(call, true, ByteBuf::from(vec![2]));
    let Some(Came::Answer {
        is_last: true,
        answer,
    }) = answers.recv().await
    else {
        panic!("the answer is there");
    };
    assert_eq!(answer.into_vec(), [1]);
    assert!(answers.recv().await.is_none(), "there is one answer");
    assert_eq!(hosts.give_up(call), None);
    assert_eq!(hosts.waiting(), 0);
}

#[tokio::test]
async fn whoever_waits_for_a_scheduler_that_is_gone_is_told() {
    let v = version();
    let hosts = announced(vec![connected(1, &[v], 0)]);
    announce(&hosts, 2, vec![connected(2, &[v], 5)]);
    let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let (host, mut first) = hosts.choose(one, (v, MEMORY), &[]).unwrap();
    let (_, mut second) = hosts.choose(two, (v, MEMORY), &[host.worker]).unwrap();
    hosts.lose(&host.mailbox);
    assert!(matches!(first.recv().await, Some(Came::Lost)));
    assert!(second.try_recv().is_err(), "the other scheduler is there");
    hosts.lose_silent(Instant::now() + SILENCE_MAX + Duration::from_millis(1));
    assert!(matches!(second.recv().await, Some(Came::Lost)));
    assert_eq!((hosts.len(), hosts.waiting()), (0, 0));
}
