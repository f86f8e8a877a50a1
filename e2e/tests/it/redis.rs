use std::net::{Ipv4Addr, SocketAddr};

use comptoir_cli::{
    client::http::Api,
    demo::{
        people::{Person, WorkerProcess},
        work::{Digits, complete, submit},
    },
    embedded::{Embedded, Provided, open_to_others},
    up::{Node, NodeOptions},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::harness::{binary, checkout};

const DEPOSIT_BASE: u128 = 10 * 10_u128.pow(18);

/// A Redis of its own, so that stopping it stops nothing else.
pub async fn redis(folder: &std::path::Path) -> (Embedded, String, Pid) {
    let elsewhere = Some("provided elsewhere".to_owned());
    let provided = Provided {
        database: elsewhere.clone(),
        redis: None,
        ethereum: elsewhere,
    };
    let redis = Embedded::start(folder, provided).await.unwrap();
    let (_, pid) = redis.processes()[0];
    let url = redis.urls.redis.clone();
    (redis, url, Pid::from_raw(pid.try_into().unwrap()))
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_complete_while_redis_is_stopped() {
    let folder = tempfile::tempdir().unwrap();
    open_to_others(folder.path()).unwrap();
    let (redis, url, pid) = redis(&folder.path().join("redis")).await;
    let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let options = NodeOptions {
        folder: folder.path().join("node"),
        api: any_port,
        scheduler: any_port,
        reset: false,
        guardian: false,
        provided: Provided {
            redis: Some(url),
            ..Provided::default()
        },
    };
    let node = Box::pin(Node::start(options)).await.unwrap();
    let api = Api::new(node.api_url.clone(), None).unwrap();
    let client = Person::arrive("client", &api).await.unwrap();
    let owner = Person::arrive("owner", &api).await.unwrap();
    let program = binary("comptoir-worker");
    let home = folder.path().join("worker");
    let worker = WorkerProcess::start(&owner, node.scheduler_url.as_str(), &program, &home);
    let worker = worker.await.unwrap();
    node.deposit_for(&client, DEPOSIT_BASE).await.unwrap();
    let digits = Digits::upload(&client.api, &checkout().join("examples/digits"))
        .await
        .unwrap();

    kill(pid, Signal::SIGKILL).unwrap();
    let job = submit(&client, digits.training(1, 100), "none")
        .await
        .unwrap();
    let done = complete(&client, &job).await.unwrap();

    assert_eq!(done.job["state"], "completed");
    worker.stop().await.unwrap();
    node.stop().await.unwrap();
    drop(redis);
}
