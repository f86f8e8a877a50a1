//! Where ledger and contract differ, nothing is settled until a person has looked.

use comptoir_store::{ledger, reconciliation};
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
async fn accounts_that_differ_halt_settling_even_where_the_totals_agree(db: PgPool) {
    let (world, mut settler) = funded(db, 10).await;
    // A deposit for Bob is booked for Carol, in the index and in the ledger.
    world.deposit(Key::Bob.address(), 5).await;
    settler.step(NOW).await.unwrap();
    sqlx::query("UPDATE deposits SET owner = $1 WHERE owner = $2")
        .bind(Key::Carol.address().as_slice())
        .bind(Key::Bob.address().as_slice())
        .execute(&world.owner)
        .await
        .unwrap();
    world.anvil.mine(DEPTH).await;
    settler.step(NOW).await.unwrap();
    let (reason, detail) = halt(&world).await.unwrap();
    assert_eq!(reason, "ledger_differs");
    let carols = format!(
        "deposits of {} by the index: 5, by the contract: 0",
        Key::Carol.address()
    );
    assert!(detail.contains(&carols), "{detail}");
    assert!(!detail.contains("what the ledger owes"), "{detail}");
}
