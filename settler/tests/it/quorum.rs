//! Three nodes, of which one lies, lags or hangs: the other two are believed, and it is named. Where no two agree, nothing
//! moves.

use std::{net::TcpListener, sync::Arc, time::Duration};

use comptoir_devchain::Anvil;
use comptoir_domain::settlement::BatchState;
use comptoir_settler::{Config, Finality, Settler, StepError, alert::Alert, chain::ChainError};
use serde_json::{Value, json};
use sqlx::PgPool;
use time::macros::datetime;
use tokio_util::sync::CancellationToken;

use crate::{
    crashes::is_settled,
    harness::{
        DEPTH, Key, NOW, World,
        process::{Serve, WAIT_MAX},
        proxy::{Fault, Proxy},
        tokens,
    },
    sending::with_a_receipt,
};

/// What a node says, changed.
type Lie = fn(&mut Value);

/// Changes the last digit of a number or hash.
fn last_digit(text: &mut Value) {
    if let Some(hex) = text.as_str() {
        let other = if hex.ends_with('0') { '1' } else { '0' };
        *text = json!(format!("{}{other}", &hex[..hex.len() - 1]));
    }
}

/// Each deposit has another amount than it has, by the last word of its data.
fn amounts(logs: &mut Value) {
    for log in logs.as_array_mut().into_iter().flatten() {
        last_digit(&mut log["data"]);
    }
}

/// Another amount again.
fn other_amounts(logs: &mut Value) {
    for log in logs.as_array_mut().into_iter().flatten() {
        let data = log["data"].as_str().unwrap();
        let other = if data.ends_with('7') { '8' } else { '7' };
        log["data"] = json!(format!("{}{other}", &data[..data.len() - 1]));
    }
}

fn no_events(logs: &mut Value) {
    *logs = json!([]);
}

fn other_time(block: &mut Value) {
    last_digit(&mut block["timestamp"]);
}

fn other_hash(block: &mut Value) {
    last_digit(&mut block["hash"]);
}

/// The newest block instead of the final one.
fn newest_as_final(params: &mut Value) {
    if params[0] == "finalized" {
        params[0] = json!("latest");
    }
}

async fn three(world: &World) -> [Proxy; 3] {
    let node = &world.anvil.url;
    [
        Proxy::before(node).await,
        Proxy::before(node).await,
        Proxy::before(node).await,
    ]
}

fn through(nodes: &[Proxy], world: &World) -> Config {
    Config {
        rpcs: nodes.iter().map(|it| it.url.clone()).collect(),
        rpc_timeout: Duration::from_secs(5),
        ..world.config()
    }
}

/// What an endpoint is called.
fn name(place: usize, node: &Proxy) -> String {
    format!("{place}/127.0.0.1:{}", node.url.port().unwrap())
}

/// A receipt waits, and the settler asks three nodes.
async fn with_three(db: PgPool) -> (World, [Proxy; 3], Settler) {
    let (world, settler) = with_a_receipt(db).await;
    let nodes = three(&world).await;
    let settler = world.lead_after(settler, through(&nodes, &world)).await;
    (world, nodes, settler)
}

fn standing(world: &World, alert: Alert) -> Option<String> {
    let standing = world.health.alerts.standing();
    let found = standing.into_iter().find(|(it, _)| *it == alert);
    found.map(|(_, detail)| detail)
}

async fn pay(world: &World) {
    let account = world.account_of(Key::Alice.address()).await;
    world
        .pay_job(account, Key::Alice.address(), 1_000, Key::Bob.address())
        .await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn whatever_one_of_three_nodes_makes_up_the_others_are_believed_and_it_is_named(db: PgPool) {
    let (world, nodes, mut settler) = with_three(db).await;
    let liar = &nodes[2];
    let lies: [(&str, Lie); 9] = [
        ("eth_getLogs", amounts),
        ("eth_getLogs", no_events),
        ("eth_call", last_digit),
        ("batch", last_digit),
        ("eth_getBlockByNumber", other_time),
        ("eth_getBlockByNumber", other_hash),
        ("eth_chainId", last_digit),
        ("eth_getTransactionCount", last_digit),
        ("eth_getCode", |code| *code = json!("0x")),
    ];
    let mut expected = tokens(10) - 1_000;
    for (batches, (method, lie)) in (1..).zip(lies) {
        liar.fails(method, Fault::Lies(lie));
        world.deposit(Key::Alice.address(), 500).await;
        expected += 500;
        let times = world.health.alerts.raised(Alert::EndpointOutvoted);
        // The code is asked for once, when a settler begins to lead.
        if method == "eth_getCode" {
            settler = world.lead_after(settler, through(&nodes, &world)).await;
        }
        let batch = world.until_claimable(&mut settler).await;
        assert_eq!(batch.header.id, batches, "{method}");
        let raised = world.health.alerts.raised(Alert::EndpointOutvoted);
        assert!(raised > times, "{method} was not told");
        liar.heals();
        settler.step(NOW).await.unwrap();
        assert_eq!(standing(&world, Alert::EndpointOutvoted), None, "{method}");
        assert_eq!(world.available(Key::Alice.address()).await, expected);
        pay(&world).await;
        expected -= 1_000;
    }
    world.audit().await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn the_alert_names_who_lies_and_what_about(db: PgPool) {
    let (world, nodes, mut settler) = with_three(db).await;
    nodes[1].fails("eth_getLogs", Fault::Lies(amounts));
    world.deposit(Key::Alice.address(), 5).await;
    settler.step(NOW).await.unwrap();
    let detail = standing(&world, Alert::EndpointOutvoted).unwrap();
    let expected = format!("{}: the events of a block", name(2, &nodes[1]));
    assert_eq!(detail, expected);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_node_that_calls_the_newest_block_final_credits_nothing_early(db: PgPool) {
    let anvil = Anvil::start(&["--slots-in-an-epoch", "40"]).await;
    let world = World::on(anvil, db).await;
    let nodes = three(&world).await;
    let config = Config {
        finality: Finality::Tags,
        ..through(&nodes, &world)
    };
    let mut settler = world.lead_with(config).await.unwrap();
    world.anvil.mine(100).await;
    settler.step(NOW).await.unwrap();
    world.deposit(Key::Alice.address(), tokens(3)).await;
    nodes[0].fails("eth_getBlockByNumber", Fault::Asks(newest_as_final));
    for _ in 0..3 {
        settler.step(NOW).await.unwrap();
        assert_eq!(world.available(Key::Alice.address()).await, 0);
    }
    let detail = standing(&world, Alert::EndpointOutvoted).unwrap();
    assert!(
        detail.contains("the final block") && detail.contains("ahead"),
        "{detail}"
    );
    world.anvil.mine(100).await;
    settler.step(NOW).await.unwrap();
    assert_eq!(world.available(Key::Alice.address()).await, tokens(3));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_node_that_lags_behind_holds_nothing_up_and_is_named(db: PgPool) {
    let (world, nodes, mut settler) = with_three(db).await;
    world.anvil.mine(10).await;
    nodes[0].fails("eth_getBlockByNumber", Fault::Lags(9));
    settler.step(NOW).await.unwrap();
    let detail = standing(&world, Alert::EndpointOutvoted).unwrap();
    let of = format!("{}: the newest block", name(1, &nodes[0]));
    assert!(
        detail.starts_with(&of) && detail.ends_with("9 blocks behind"),
        "{detail}"
    );
    world.until_claimable(&mut settler).await;
    // As far behind as nodes are that have just not heard of a block.
    nodes[0].fails("eth_getBlockByNumber", Fault::Lags(2));
    settler.step(NOW).await.unwrap();
    assert_eq!(standing(&world, Alert::EndpointOutvoted), None);
    world.audit().await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_node_that_hangs_or_is_gone_holds_nothing_up_and_is_told(db: PgPool) {
    let (world, nodes, mut settler) = with_three(db).await;
    for (batch, fault) in [(1, Fault::Hang), (2, Fault::Refused)] {
        nodes[2].fails("*", fault);
        assert_eq!(world.until_claimable(&mut settler).await.header.id, batch);
        let detail = standing(&world, Alert::EndpointFailing).unwrap();
        assert!(detail.starts_with(&name(3, &nodes[2])), "{detail}");
        assert_eq!(standing(&world, Alert::NodeFailing), None);
        pay(&world).await;
    }
    assert_eq!(world.attempts().await.len(), 2);
    world.audit().await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn two_nodes_that_keep_a_transaction_to_themselves_do_not_hold_it_up(db: PgPool) {
    let (world, nodes, mut settler) = with_three(db).await;
    let kept = || Fault::Says(json!(alloy::primitives::B256::repeat_byte(1)));
    for node in &nodes[..2] {
        node.fails("eth_sendRawTransaction", kept());
    }
    world.until_claimable(&mut settler).await;
    assert_eq!(world.attempts().await.len(), 1);
    world.audit().await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn where_no_two_nodes_agree_nothing_moves_until_they_do(db: PgPool) {
    let (world, settler) = with_a_receipt(db).await;
    drop(settler);
    let nodes = three(&world).await;
    let before = world.available(Key::Alice.address()).await;
    nodes[1].fails("eth_getLogs", Fault::Lies(amounts));
    nodes[2].fails("eth_getLogs", Fault::Lies(other_amounts));
    world.deposit(Key::Alice.address(), 5).await;
    world.anvil.mine(DEPTH).await;
    let mut settler = world.lead_when_free(through(&nodes, &world)).await;
    let step = settler.step(NOW).await;
    let parties = match step {
        Err(StepError::Chain(ChainError::NoMajority { parties, .. })) => parties,
        other => panic!("{other:?}"),
    };
    for (place, node) in nodes.iter().enumerate() {
        assert!(parties.contains(&name(place + 1, node)), "{parties}");
    }
    drop(settler);

    // As it is run: it says so, loudly, and is not ready.
    let stop = CancellationToken::new();
    let config = Config {
        poll: Duration::from_millis(1),
        ..through(&nodes, &world)
    };
    let parts = (world.db.clone(), world.objects.clone(), world.asset);
    let clock = || datetime!(2026-11-22 09:00 UTC);
    let health = Arc::clone(&world.health);
    let running = tokio::spawn(comptoir_settler::run(
        parts,
        config,
        clock,
        health,
        stop.clone(),
    ));
    let disagreement = async {
        while standing(&world, Alert::NodesDisagree).is_none() {
            tokio::task::yield_now().await;
        }
    };
    let seen = tokio::time::timeout(WAIT_MAX, disagreement).await;
    seen.expect("the nodes disagree");
    let readiness = world.health.readiness(NOW);
    assert!(!readiness.ready && readiness.alerts.contains(&"nodes_disagree"));
    assert!(world.batches().await.is_empty() && world.attempts().await.is_empty());
    assert_eq!(world.available(Key::Alice.address()).await, before);
    nodes[1].heals();
    let settling = async {
        while world
            .states()
            .await
            .first()
            .is_none_or(|it| it.2 != BatchState::Mined)
        {
            tokio::task::yield_now().await;
        }
    };
    let settled = tokio::time::timeout(WAIT_MAX, settling).await;
    settled.expect("a batch is mined");
    assert_eq!(standing(&world, Alert::NodesDisagree), None);
    assert_eq!(world.available(Key::Alice.address()).await, before + 5);
    stop.cancel();
    running.await.unwrap().unwrap();
    world.audit().await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn of_two_nodes_that_differ_neither_is_believed(db: PgPool) {
    let (world, settler) = with_a_receipt(db).await;
    let nodes = three(&world).await;
    let config = through(&nodes[..2], &world);
    let mut settler = world.lead_after(settler, config).await;
    nodes[0].fails("eth_getLogs", Fault::Lies(no_events));
    world.deposit(Key::Alice.address(), 5).await;
    let step = settler.step(NOW).await;
    let disagree = matches!(&step, Err(StepError::Chain(ChainError::NoMajority { .. })));
    assert!(disagree, "{step:?}");
    nodes[0].heals();
    world.until_claimable(&mut settler).await;
    world.audit().await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn the_same_node_twice_is_refused(db: PgPool) {
    let (world, settler) = with_a_receipt(db).await;
    drop(settler);
    let config = Config {
        rpcs: vec![world.anvil.url.clone(), world.anvil.url.clone()],
        ..world.config()
    };
    let parts = (world.db.clone(), world.objects.clone(), world.asset);
    let led = Settler::lead(parts, config, Arc::clone(&world.health), NOW).await;
    let twice = matches!(led, Err(StepError::Chain(ChainError::SameEndpoint(_))));
    assert!(twice);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn the_process_names_who_is_out_voted_in_its_log_and_its_metrics(db: PgPool) {
    let (world, settler) = with_a_receipt(db).await;
    drop(settler);
    let nodes = three(&world).await;
    nodes[2].fails("eth_getLogs", Fault::Lies(amounts));
    world.deposit(Key::Alice.address(), 5).await;
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let metrics = free.local_addr().unwrap();
    drop(free);
    let log = world.folder.path().join("settler.log");
    let mut process = world.serve_as(&Serve {
        rpcs: nodes.iter().map(|it| it.url.clone()).collect(),
        metrics: Some(metrics),
        log: Some(log.clone()),
        ..world.usual()
    });
    process.until(&world, is_settled).await;
    let told = reqwest::get(format!("http://{metrics}/metrics")).await;
    let told = told.unwrap().text().await.unwrap();
    let liar = name(3, &nodes[2]);
    let counted = told.lines().any(|line| {
        line.starts_with("settler_rpc_answers_total")
            && line.contains(&format!("endpoint=\"{liar}\""))
            && line.contains("outcome=\"outvoted\"")
    });
    assert!(counted, "{told}");
    process.kill().await;
    let log = std::fs::read_to_string(log).unwrap();
    let line = log
        .lines()
        .find(|it| it.contains("an endpoint is out-voted"));
    assert!(line.is_some_and(|it| it.contains(&liar)), "{log}");
    world.audit().await;
}
