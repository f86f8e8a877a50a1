//! What transactions cost has bounds, and whoever waits at one says so once.

use alloy::providers::Provider as _;
use comptoir_contracts_bindings::Settlement::{
    grantRoleCall, pauseCall, requestExitCall, revokeRoleCall,
};
use comptoir_devchain::Anvil;
use comptoir_domain::settlement::BatchState;
use comptoir_settler::{
    Config,
    alert::Alert,
    fees::{FeePolicy, GAS_MAX},
};
use serde_json::{Value, json};
use sqlx::PgPool;
use time::Duration;

use crate::{
    batches::funded,
    harness::{DEPTH, Key, NOW, World, tokens},
    sending::with_a_receipt,
};

const GWEI: u64 = 1_000_000_000;

fn with_fees(world: &World, fees: FeePolicy) -> Config {
    Config {
        fees,
        ..world.config()
    }
}

async fn expensive_block(world: &World, gwei: u64) {
    world.anvil.next_base_fee(gwei * GWEI).await;
    world.anvil.mine(1).await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn while_gas_costs_more_than_the_ceiling_nothing_is_signed_and_receipts_wait(db: PgPool) {
    let (world, mut settler) = with_a_receipt(db).await;
    let account = world.account_of(Key::Alice.address()).await;
    for _ in 0..3 {
        expensive_block(&world, 1_000).await;
        settler.step(NOW).await.unwrap();
        world
            .pay_job(account, Key::Alice.address(), 1_000, Key::Bob.address())
            .await;
    }
    assert_eq!(world.states().await, [(1, 0, BatchState::Sealed)]);
    assert!(world.attempts().await.is_empty());
    assert_eq!(world.health.alerts.raised(Alert::FeeCeiling), 1);

    expensive_block(&world, 1).await;
    settler.step(NOW).await.unwrap();
    settler.step(NOW).await.unwrap();
    assert!(world.health.alerts.standing().is_empty());
    let batch = world.until_claimable(&mut settler).await;
    assert_eq!((batch.header.id, batch.header.receipt_count), (2, 3));
    world.audit().await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_transaction_that_is_stuck_at_the_ceiling_is_sent_again_as_it_is(db: PgPool) {
    let (world, settler) = with_a_receipt(db).await;
    let fees = FeePolicy {
        ceiling_wei: 2 * u128::from(GWEI),
        ..FeePolicy::default()
    };
    let mut settler = world.lead_after(settler, with_fees(&world, fees)).await;
    world.anvil.hold_back().await;
    expensive_block(&world, 1).await;
    settler.step(NOW).await.unwrap();
    let signed = world.attempts().await;
    assert_eq!(signed.len(), 1);
    for _ in 0..6 {
        expensive_block(&world, 10).await;
        assert_eq!(settler.step(NOW).await.unwrap().sent, 1);
    }
    assert_eq!(world.attempts().await, signed);
    assert_eq!(world.health.alerts.raised(Alert::FeeCeiling), 1);
    world.anvil.next_base_fee(GWEI).await;
    world.anvil.mine_by_itself().await;
    world.until_claimable(&mut settler).await;
    assert_eq!(world.attempts().await, signed);
    assert!(world.health.alerts.standing().is_empty());
    world.audit().await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn the_days_spending_has_a_ceiling_and_goes_on_the_day_after(db: PgPool) {
    let (world, mut settler) = with_a_receipt(db).await;
    let account = world.account_of(Key::Alice.address()).await;
    expensive_block(&world, 10).await;
    world.until_claimable(&mut settler).await;
    world.anvil.mine(DEPTH).await;
    world.settle_down(&mut settler).await;
    let (most, cost): (String, String) = sqlx::query_as(
        "SELECT (gas_limit * fee_cap_wei)::text, cost_wei::text FROM eth_attempts JOIN eth_intents USING (intent_id)",
    )
    .fetch_one(&world.owner)
    .await
    .unwrap();
    let (most, cost): (u128, u128) = (most.parse().unwrap(), cost.parse().unwrap());
    assert!(cost > 0 && cost < most, "{cost} of {most}");

    let fees = FeePolicy {
        spend_per_day_wei: most + most / 10,
        ..FeePolicy::default()
    };
    let mut settler = world.lead_after(settler, with_fees(&world, fees)).await;
    world
        .pay_job(account, Key::Alice.address(), 1_000, Key::Bob.address())
        .await;
    for _ in 0..3 {
        expensive_block(&world, 10).await;
        settler.step(NOW).await.unwrap();
    }
    assert_eq!(world.states().await[0], (2, 0, BatchState::Sealed));
    assert_eq!(world.attempts().await.len(), 1);
    assert_eq!(world.health.alerts.raised(Alert::SpendCeiling), 1);

    expensive_block(&world, 10).await;
    settler.step(NOW + Duration::hours(25)).await.unwrap();
    assert_eq!(world.attempts().await.len(), 2);
    assert!(world.health.alerts.standing().is_empty());
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_key_without_ether_signs_nothing_until_it_has_some(db: PgPool) {
    let (world, mut settler) = with_a_receipt(db).await;
    world.anvil.set_ether(Key::Settler.address(), 1).await;
    for _ in 0..3 {
        settler.step(NOW).await.unwrap();
        world.anvil.mine(1).await;
    }
    assert!(world.attempts().await.is_empty());
    assert_eq!(world.health.alerts.raised(Alert::OutOfEther), 1);
    world
        .anvil
        .set_ether(Key::Settler.address(), 10_u128.pow(18))
        .await;
    world.until_claimable(&mut settler).await;
    assert!(world.health.alerts.standing().is_empty());
    world.audit().await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn without_its_role_the_settler_waits_ever_longer_and_says_so_once(db: PgPool) {
    let (world, mut settler) = with_a_receipt(db).await;
    let role = world.contract().SETTLER().call().await.unwrap();
    let account = Key::Settler.address();
    world.as_admin(revokeRoleCall { role, account }).await;
    for _ in 0..20 {
        settler.step(NOW).await.unwrap();
        world.anvil.mine(1).await;
    }
    assert!(world.attempts().await.is_empty());
    assert_eq!(world.health.alerts.raised(Alert::CommitHeld), 1);
    let (_, detail) = world.health.alerts.standing().remove(0);
    assert!(
        detail.contains("AccessControlUnauthorizedAccount"),
        "{detail}"
    );
    world.as_admin(grantRoleCall { role, account }).await;
    // Thirty-one blocks were waited for in five steps; the sixth wait is thirty-two long.
    world.anvil.mine(64).await;
    world.until_claimable(&mut settler).await;
    assert!(world.health.alerts.standing().is_empty());
    world.audit().await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_pause_after_the_seal_holds_the_commit_and_loses_nothing(db: PgPool) {
    let (world, mut settler) = with_a_receipt(db).await;
    world.anvil.hold_back().await;
    settler.step(NOW).await.unwrap();
    let signed = world.attempts().await;
    world.anvil.drop_transactions().await;
    world.anvil.mine_by_itself().await;
    world.call(Key::Guardian, pauseCall { bits: 2 }).await;
    for _ in 0..8 {
        assert_eq!(settler.step(NOW).await.unwrap().sent, 0);
        world.anvil.mine(1).await;
    }
    assert_eq!(world.health.alerts.raised(Alert::CommitHeld), 1);
    assert_eq!(world.attempts().await, signed);
    world.anvil.pass(7 * 86_400).await;
    world.anvil.mine(64).await;
    world.until_claimable(&mut settler).await;
    assert!(world.health.alerts.standing().is_empty());
    world.audit().await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn only_the_lowest_nonce_that_waits_offers_more(db: PgPool) {
    let (world, mut settler) = funded(db, 40).await;
    let carol = world.bind(Key::Carol.address()).await;
    world.deposit(Key::Carol.address(), tokens(1)).await;
    world.anvil.mine(DEPTH).await;
    world.call(Key::Alice, requestExitCall {}).await;
    world.anvil.pass(1).await;
    assert!(settler.step(NOW).await.unwrap().sealed);
    settler.step(NOW).await.unwrap();
    world.anvil.pass(21).await;
    world.anvil.mine(DEPTH).await;
    // The batch that serves Alice's exit is claimable: its answer and the next commit go out together.
    world
        .pay_job(carol, Key::Carol.address(), 1_000, Key::Bob.address())
        .await;
    world.anvil.hold_back().await;
    expensive_block(&world, 1).await;
    settler.step(NOW).await.unwrap();
    let nonces = async || {
        let attempts = world.attempts().await;
        attempts.iter().map(|it| it.nonce).collect::<Vec<_>>()
    };
    assert_eq!(nonces().await, [0, 1, 2]);
    for _ in 0..4 {
        expensive_block(&world, 10).await;
    }
    settler.step(NOW).await.unwrap();
    assert_eq!(nonces().await, [0, 1, 1, 2]);
    world.anvil.mine_by_itself().await;
    world.until_claimable(&mut settler).await;
    world.audit().await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn on_a_chain_that_holds_transactions_to_their_most_gas_everything_is_settled(db: PgPool) {
    let anvil = Anvil::start(&["--enable-tx-gas-limit"]).await;
    let world = World::on(anvil, db).await;
    let mut settler = world.settler().await;
    let alice = world.bind(Key::Alice.address()).await;
    world.deposit(Key::Alice.address(), tokens(10)).await;
    world.anvil.mine(DEPTH).await;
    settler.step(NOW).await.unwrap();
    world
        .pay_job(alice, Key::Alice.address(), 1_000, Key::Bob.address())
        .await;
    world.until_claimable(&mut settler).await;
    // The chain does hold them to it.
    let greedy = json!({
        "from": Key::Bob.address(), "to": Key::Bob.address(), "gas": format!("{:#x}", GAS_MAX + 1),
    });
    let refused = world
        .anvil
        .node
        .raw_request::<_, Value>("eth_sendTransaction".into(), json!([greedy]));
    let refused = refused.await.unwrap_err().to_string();
    assert!(refused.contains("gas"), "{refused}");
    world.audit().await;
}
