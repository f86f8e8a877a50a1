//! Where ledger and contract differ, nothing is settled until a person has looked.

use comptoir_store::{batches, ledger, reconciliation};
use sqlx::PgPool;

use crate::{
    batches::funded,
    harness::{DEPTH, Key, NOW, World, amount},
};

pub async fn halt(world: &World) -> Option<(String, String)> {
    let mut conn = world.api.acquire().await.unwrap();
    let halt = reconciliation::open_halt(&mut conn, world.asset.id)
        .await
        .unwrap();
    halt.map(|halt| (halt.reason, halt.detail))
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn money_that_no_deposit_explains_halts_settling(db: PgPool) {
    let (world, mut settler) = funded(db, 10).await;
    let alice = world.bind(Key::Alice.address()).await;
    let mut tx = world.db.begin().await.unwrap();
    ledger::deposit(
        &mut tx,
        world.asset.id,
        Key::Alice.address(),
        amount(1),
        "from nowhere",
        NOW,
    )
    .await
    .unwrap();
    tx.commit().await.unwrap();
    world
        .pay_job(alice, Key::Alice.address(), 1_000, Key::Bob.address())
        .await;
    world.anvil.mine(1).await;
    let progress = settler.step(NOW).await.unwrap();
    assert!(progress.halted && !progress.sealed);
    let (reason, detail) = halt(&world).await.unwrap();
    assert_eq!(reason, "ledger_differs");
    assert!(detail.contains("deposits by the ledger"), "{detail}");
    assert!(world.batches().await.is_empty());
    // It stays so, whatever happens on the chain, until a person clears it.
    world.anvil.mine(DEPTH).await;
    assert!(settler.step(NOW).await.unwrap().halted);
    let mut conn = world.owner.acquire().await.unwrap();
    assert!(
        reconciliation::clear_halt(&mut conn, world.asset.id, NOW)
            .await
            .unwrap()
    );
    assert!(halt(&world).await.is_none());
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_older_database_than_the_chain_refuses_to_settle(db: PgPool) {
    let (world, mut settler) = funded(db, 10).await;
    let alice = world.bind(Key::Alice.address()).await;
    world
        .pay_job(alice, Key::Alice.address(), 1_000, Key::Bob.address())
        .await;
    world.until_claimable(&mut settler).await;
    // What a backup from before the batch would hold.
    for statement in [
        "INSERT INTO unbatched_receipts SELECT receipt_id, asset_id, gross_base FROM receipts",
        "DELETE FROM batch_items",
        "DELETE FROM eth_attempts",
        "DELETE FROM eth_intents",
        "DELETE FROM settlement_batches",
    ] {
        sqlx::query(statement).execute(&world.owner).await.unwrap();
    }
    let progress = settler.step(NOW).await.unwrap();
    assert!(!progress.sealed);
    assert_eq!(halt(&world).await.unwrap().0, "database_behind_chain");
    let mut conn = world.db.acquire().await.unwrap();
    assert_eq!(
        batches::demand(&mut conn, world.asset.id)
            .await
            .unwrap()
            .receipts,
        1
    );
}
