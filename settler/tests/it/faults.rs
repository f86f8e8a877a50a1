//! Nodes and signers fail in their ways; a nonce is used once all the same.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use alloy::{
    consensus::SignableTransaction,
    eips::BlockId,
    network::TxSigner,
    primitives::{Address, B256, Signature},
    providers::Provider as _,
    signers::{SignerSync as _, local::PrivateKeySigner},
};
use comptoir_devchain::Anvil;
use comptoir_domain::settlement::BatchState;
use comptoir_settler::{Config, Finality, Settler, StepError, alert::Alert, chain::ChainError};
use comptoir_store::chain::FollowError;
use serde_json::json;
use sqlx::PgPool;
use time::{OffsetDateTime, macros::datetime};
use tokio_util::sync::CancellationToken;

use crate::{
    harness::{
        DEPTH, Key, NOW, World,
        proxy::{Fault, Proxy},
        tokens,
    },
    sending::with_a_receipt,
};

const SEND: &str = "eth_sendRawTransaction";

pub fn through(proxy: &Proxy, world: &World) -> Config {
    Config {
        rpcs: vec![proxy.url.clone()],
        rpc_timeout: Duration::from_secs(2),
        ..world.config()
    }
}

/// A receipt waits, and the settler asks through a proxy.
async fn behind_a_proxy(db: PgPool) -> (World, Proxy, Settler) {
    let (world, settler) = with_a_receipt(db).await;
    let proxy = Proxy::before(&world.anvil.url).await;
    let settler = world.lead_after(settler, through(&proxy, &world)).await;
    (world, proxy, settler)
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn while_the_node_fails_no_nonce_is_used_and_afterwards_all_is_settled_once(db: PgPool) {
    let (world, proxy, mut settler) = behind_a_proxy(db).await;
    for fault in [
        Fault::Refused,
        Fault::Hang,
        Fault::TooMany,
        Fault::Error(-32_603, "internal error"),
        Fault::Truncated,
        Fault::Html,
        Fault::AnswerLost,
    ] {
        proxy.fails("*", fault.clone());
        let step = settler.step(NOW).await;
        assert!(
            matches!(step, Err(StepError::Chain(_))),
            "{fault:?}: {step:?}"
        );
        assert!(world.attempts().await.is_empty(), "{fault:?}");
    }
    proxy.heals();
    world.until_claimable(&mut settler).await;
    assert_eq!(world.attempts().await.len(), 1);
    world.audit().await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn whatever_becomes_of_the_answer_to_a_transaction_the_same_bytes_are_sent_again(db: PgPool) {
    let (world, proxy, mut settler) = behind_a_proxy(db).await;
    let account = world.account_of(Key::Alice.address()).await;
    let faults = [
        Fault::Refused,
        Fault::Hang,
        Fault::TooMany,
        Fault::Error(-32_603, "nonce too low"),
        Fault::Error(-32_000, "already known"),
        Fault::Truncated,
        Fault::Html,
        Fault::AnswerLost,
    ];
    for (batches, fault) in (1..).zip(faults) {
        proxy.fails(SEND, fault.clone());
        settler.step(NOW).await.unwrap();
        let signed = world.attempts().await;
        assert_eq!(signed.len(), batches, "{fault:?}");
        assert_eq!(
            world.states().await[0].2,
            BatchState::Broadcast,
            "{fault:?}"
        );
        proxy.heals();
        world.anvil.mine(1).await;
        let batch = world.until_claimable(&mut settler).await;
        assert_eq!(batch.header.id, batches as u64, "{fault:?}");
        assert_eq!(world.attempts().await, signed, "{fault:?}");
        world
            .pay_job(account, Key::Alice.address(), 1_000, Key::Bob.address())
            .await;
    }
    world.audit().await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_node_that_fails_is_told_once_and_asked_ever_more_rarely(db: PgPool) {
    let (world, settler) = with_a_receipt(db).await;
    drop(settler);
    let proxy = Proxy::before(&world.anvil.url).await;
    let config = Config {
        poll: Duration::from_millis(1),
        ..through(&proxy, &world)
    };
    let stop = CancellationToken::new();
    let parts = (world.db.clone(), world.objects.clone(), world.asset);
    let health = Arc::clone(&world.health);
    let clock = || datetime!(2026-11-22 09:00 UTC);
    proxy.fails("*", Fault::Refused);
    let running = tokio::spawn(comptoir_settler::run(
        parts,
        config,
        clock,
        health,
        stop.clone(),
    ));
    let until = async |done: &dyn Fn() -> bool| {
        while !done() {
            tokio::task::yield_now().await;
        }
    };
    until(&|| proxy.seen("eth_chainId") >= 6).await;
    let alerts = &world.health.alerts;
    assert_eq!(alerts.raised(Alert::NodeFailing), 1);
    assert_eq!(alerts.standing()[0].0, Alert::NodeFailing);
    assert!(world.health.readiness(NOW).alerts.contains(&"node_failing"));
    proxy.heals();
    until(&|| alerts.standing().is_empty() && world.health.readiness(NOW).ready).await;
    assert_eq!(alerts.raised(Alert::NodeFailing), 1);
    stop.cancel();
    running.await.unwrap().unwrap();
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_node_of_another_chain_gets_no_signature(db: PgPool) {
    let (world, proxy, mut settler) = behind_a_proxy(db).await;
    let refused = async |settler: &mut Settler| {
        let step = settler.step(NOW).await;
        let wrong = matches!(
            step,
            Err(StepError::Chain(ChainError::WrongChain {
                expected: 31_337,
                found: 1
            }))
        );
        assert!(wrong, "{step:?}");
    };
    proxy.fails("eth_chainId", Fault::Says(json!("0x1")));
    refused(&mut settler).await;
    assert!(world.attempts().await.is_empty());

    // Not for a replacement either.
    proxy.heals();
    world.anvil.hold_back().await;
    settler.step(NOW).await.unwrap();
    let first = world.attempts().await;
    world.anvil.drop_transactions().await;
    proxy.fails("eth_chainId", Fault::Says(json!("0x1")));
    world.anvil.mine(4).await;
    refused(&mut settler).await;
    assert_eq!(world.attempts().await, first);
}

/// A vault that holds the key, on its good and bad days.
struct Vault {
    key: PrivateKeySigner,
    day: Arc<Mutex<Day>>,
}

#[derive(Clone, Copy)]
enum Day {
    Good,
    Down,
    Silent,
    OtherDigest,
}

impl TxSigner<Signature> for Vault {
    fn address(&self) -> Address {
        self.key.address()
    }

    fn sign_transaction<'life0, 'life1, 'async_trait>(
        &'life0 self,
        transaction: &'life1 mut dyn SignableTransaction<Signature>,
    ) -> Pin<Box<dyn Future<Output = alloy::signers::Result<Signature>> + Send + 'async_trait>>
    where
        'life0: 'async_trait,
        'life1: 'async_trait,
        Self: 'async_trait,
    {
        let day = *self.day.lock().unwrap();
        Box::pin(async move {
            match day {
                Day::Good => self.key.sign_transaction(transaction).await,
                Day::Down => Err(alloy::signers::Error::other("the vault is sealed")),
                Day::Silent => std::future::pending().await,
                Day::OtherDigest => self.key.sign_hash_sync(&B256::repeat_byte(7)),
            }
        })
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_signer_that_is_down_silent_or_signs_something_else_uses_no_nonce(db: PgPool) {
    let (world, settler) = with_a_receipt(db).await;
    let day = Arc::new(Mutex::new(Day::Good));
    let vault = Vault {
        key: Key::Settler.signer(),
        day: Arc::clone(&day),
    };
    let config = Config {
        signer: Arc::new(vault),
        signer_timeout: Duration::from_millis(50),
        ..world.config()
    };
    let mut settler = world.lead_after(settler, config).await;
    for bad in [Day::Down, Day::Silent, Day::OtherDigest] {
        *day.lock().unwrap() = bad;
        let step = settler.step(NOW).await;
        let fits = match bad {
            Day::Down => matches!(step, Err(StepError::Sign(_))),
            Day::Silent => matches!(step, Err(StepError::SignerSilent)),
            Day::OtherDigest => matches!(step, Err(StepError::WrongSignature)),
            Day::Good => false,
        };
        assert!(fits, "{step:?}");
        assert!(world.attempts().await.is_empty());
    }
    *day.lock().unwrap() = Day::Good;
    world.until_claimable(&mut settler).await;
    assert_eq!(world.attempts().await[0].nonce, 0);
    world.audit().await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn while_nothing_becomes_final_nothing_is_posted_twice_and_it_is_told_once(db: PgPool) {
    let anvil = Anvil::start(&["--slots-in-an-epoch", "2"]).await;
    let world = World::on(anvil, db).await;
    let config = Config {
        finality: Finality::Tags,
        finality_stall: Duration::from_mins(10),
        ..world.config()
    };
    let mut settler = world.lead_with(config).await.unwrap();
    let alice = world.bind(Key::Alice.address()).await;
    world.deposit(Key::Alice.address(), tokens(3)).await;
    world.anvil.mine(DEPTH).await;
    settler.step(NOW).await.unwrap();
    world
        .pay_job(alice, Key::Alice.address(), 1_000, Key::Bob.address())
        .await;
    settler.step(NOW).await.unwrap();
    // Less than the silence after which an empty batch would be due.
    world.anvil.pass(800).await;
    for _ in 0..3 {
        settler.step(NOW).await.unwrap();
        assert_eq!(world.states().await, [(1, 0, BatchState::Mined)]);
    }
    let alerts = &world.health.alerts;
    assert_eq!(alerts.raised(Alert::FinalityStalled), 1);
    assert_eq!(world.attempts().await.len(), 1);
    world.anvil.mine(DEPTH + 1).await;
    settler.step(NOW).await.unwrap();
    assert!(alerts.standing().is_empty());
    world.until_claimable(&mut settler).await;
    assert_eq!(world.attempts().await.len(), 1);
    world.audit().await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_chain_that_stands_still_and_a_head_that_is_old_are_told(db: PgPool) {
    let world = World::new(db).await;
    let config = Config {
        head_stale: Duration::from_mins(2),
        ..world.config()
    };
    let mut settler = world.lead_with(config).await.unwrap();
    world.anvil.pass(1).await;
    let head = world.anvil.node.get_block(BlockId::latest()).await;
    let mined_at = head.unwrap().unwrap().header.timestamp.cast_signed();
    let after = |seconds: i64| OffsetDateTime::from_unix_timestamp(mined_at + seconds).unwrap();
    let alerts = &world.health.alerts;
    for seconds in [0, 60, 120] {
        settler.step(after(seconds)).await.unwrap();
        assert_eq!(alerts.standing(), []);
    }
    for seconds in [121, 150] {
        settler.step(after(seconds)).await.unwrap();
        assert_eq!(alerts.standing()[0].0, Alert::HeadStale);
        assert!(alerts.standing()[0].1.contains("has been the newest for"));
    }
    // Blocks again, and an hour old: a node that has to catch up.
    world.anvil.mine(1).await;
    settler.step(after(3_600)).await.unwrap();
    assert!(alerts.standing()[0].1.ends_with("s old"));
    assert_eq!(alerts.raised(Alert::HeadStale), 1);
    world.anvil.pass(3_600).await;
    settler.step(after(3_600)).await.unwrap();
    assert_eq!(alerts.standing(), []);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn events_that_a_node_leaves_out_are_noticed_and_read_again(db: PgPool) {
    let (world, proxy, mut settler) = behind_a_proxy(db).await;
    let before = world.available(Key::Alice.address()).await;
    world.deposit(Key::Alice.address(), 5).await;
    proxy.fails("eth_getLogs", Fault::Says(json!([])));
    world.anvil.mine(DEPTH).await;
    for _ in 0..2 {
        let step = settler.step(NOW).await;
        let gap = matches!(step, Err(StepError::Follow(FollowError::Gap { .. })));
        assert!(gap, "{step:?}");
    }
    assert_eq!(world.available(Key::Alice.address()).await, before);
    proxy.heals();
    settler.step(NOW).await.unwrap();
    assert_eq!(world.available(Key::Alice.address()).await, before + 5);
}
