use super::*;
use crate::redis_server::Server;

const SOON: Duration = Duration::from_secs(10);

async fn connected(wake: &Wake) {
    timeout(SOON, async {
        while wake.is_connected() != Some(true) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("Redis answers");
}

async fn is_woken(subscription: &mut Subscription) -> bool {
    let start = Instant::now();
    subscription.wait(SOON).await;
    start.elapsed() < SOON
}

#[tokio::test]
async fn a_wake_up_between_two_waits_is_not_lost() {
    let wake = Wake::local();
    let job = Channel::Job(JobId::generate());
    let mut first = wake.subscribe(job);
    let mut second = wake.subscribe(job);
    wake.publish(job);
    wake.publish(Channel::Work);
    assert!(is_woken(&mut first).await && is_woken(&mut second).await);
    let receiver = first.receiver.as_ref().unwrap();
    assert!(!receiver.has_changed().unwrap(), "one wake-up wakes once");
    drop((first, second));
    assert!(wake.waiters.lock().is_empty());
}

#[tokio::test]
async fn other_processes_hear_through_redis() {
    let server = Server::start();
    let namespace = Uuid::new_v4().to_string();
    let here = Wake::start(&server.url(), &namespace).unwrap();
    let there = Wake::start(&server.url(), &namespace).unwrap();
    let elsewhere = Wake::start(&server.url(), &Uuid::new_v4().to_string()).unwrap();
    let channels = [
        Channel::Work,
        Channel::Job(JobId::generate()),
        Channel::Worker(WorkerId::generate()),
    ];
    for wake in [&here, &there, &elsewhere] {
        connected(wake).await;
    }
    for channel in channels {
        let mut waiter = there.subscribe(channel);
        let mut stranger = elsewhere.subscribe(channel);
        here.publish(channel);
        assert!(is_woken(&mut waiter).await, "{channel:?}");
        stranger.wait(Duration::ZERO).await;
        let receiver = stranger.receiver.as_ref().unwrap();
        assert!(
            !receiver.has_changed().unwrap(),
            "another namespace hears nothing"
        );
    }
}

#[tokio::test]
async fn without_redis_everything_returns_at_once_and_this_process_wakes() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    drop(listener);
    let wake = Wake::start(&url, "test").unwrap();
    let mut waiter = wake.subscribe(Channel::Work);
    let start = Instant::now();
    for _ in 0..10 * PUBLISH_QUEUE_MAX {
        wake.publish(Channel::Work);
    }
    assert!(start.elapsed() < Duration::from_secs(1));
    assert!(is_woken(&mut waiter).await);
    assert_eq!(wake.is_connected(), Some(false));
}

#[tokio::test]
async fn a_redis_that_comes_back_is_heard_again_and_everyone_looks_once() {
    let mut server = Server::start();
    let wake = Wake::start(&server.url(), "test").unwrap();
    let other = Wake::start(&server.url(), "test").unwrap();
    connected(&wake).await;
    connected(&other).await;
    let mut waiter = wake.subscribe(Channel::Work);
    server.stop();
    timeout(SOON, async {
        while wake.is_connected() == Some(true) || other.is_connected() == Some(true) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    server.restart();
    assert!(is_woken(&mut waiter).await, "what was missed is looked for");
    connected(&wake).await;
    connected(&other).await;
    // The breaker may still be open: publishing is repeated, as events are.
    let heard = timeout(SOON, async {
        loop {
            other.publish(Channel::Work);
            let start = Instant::now();
            waiter.wait(Duration::from_millis(100)).await;
            if start.elapsed() < Duration::from_millis(100) {
                break;
            }
        }
    });
    heard.await.unwrap();
}
