//! Deposits count when they are final.

use comptoir_devchain::Anvil;
use comptoir_domain::id::DepositId;
use comptoir_settler::{Config, Finality};
use comptoir_store::deposits;
use sqlx::PgPool;

use crate::harness::{DEPTH, Key, NOW, World, tokens};

async fn shown(world: &World) -> Vec<(u128, bool)> {
    let mut conn = world.api.acquire().await.unwrap();
    let listed = deposits::list(
        &mut conn,
        world.asset.id,
        Key::Alice.address(),
        None::<DepositId>,
        10,
    )
    .await
    .unwrap();
    listed
        .iter()
        .map(|it| (it.amount.base(), it.credited_at.is_some()))
        .collect()
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_deposit_is_shown_at_once_and_credited_when_it_is_final(db: PgPool) {
    let world = World::new(db).await;
    let mut settler = world.settler().await;
    world.anvil.mine(DEPTH).await;
    world.deposit(Key::Alice.address(), tokens(1_000)).await;
    for _ in 0..DEPTH {
        settler.step(NOW).await.unwrap();
        assert_eq!(shown(&world).await, [(tokens(1_000), false)]);
        assert_eq!(world.available(Key::Alice.address()).await, 0);
        world.anvil.mine(1).await;
    }
    settler.step(NOW).await.unwrap();
    assert_eq!(shown(&world).await, [(tokens(1_000), true)]);
    assert_eq!(world.available(Key::Alice.address()).await, tokens(1_000));
    // Reading on, or beginning anew, credits nothing twice.
    world.anvil.mine(2 * DEPTH).await;
    world.settle_down(&mut settler).await;
    assert_eq!(world.available(Key::Alice.address()).await, tokens(1_000));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_deposit_that_leaves_the_chain_is_never_credited(db: PgPool) {
    let world = World::new(db).await;
    let mut settler = world.settler().await;
    world.anvil.mine(DEPTH).await;
    world.deposit(Key::Alice.address(), tokens(3)).await;
    settler.step(NOW).await.unwrap();
    assert_eq!(shown(&world).await, [(tokens(3), false)]);
    world.anvil.reorganise(1).await;
    settler.step(NOW).await.unwrap();
    assert_eq!(shown(&world).await, []);
    // Another one takes its place, with the same numbers in the contract.
    world.deposit(Key::Bob.address(), tokens(5)).await;
    world.anvil.mine(DEPTH).await;
    world.settle_down(&mut settler).await;
    assert_eq!(world.available(Key::Alice.address()).await, 0);
    assert_eq!(world.available(Key::Bob.address()).await, tokens(5));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_settler_that_comes_late_reads_all_that_was_missed(db: PgPool) {
    let world = World::new(db).await;
    for _ in 0..3 {
        world.deposit(Key::Alice.address(), tokens(2)).await;
        world.anvil.mine(40).await;
    }
    let mut settler = world.settler().await;
    settler.step(NOW).await.unwrap();
    assert_eq!(world.available(Key::Alice.address()).await, tokens(6));
    assert_eq!(shown(&world).await.len(), 3);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn the_chains_own_finality_is_followed_where_it_has_one(db: PgPool) {
    let anvil = Anvil::start(&["--slots-in-an-epoch", "2"]).await;
    let world = World::on(anvil, db).await;
    let config = Config {
        finality: Finality::Tags,
        ..world.config()
    };
    let mut settler = world.lead_with(config).await.unwrap();
    world.deposit(Key::Alice.address(), tokens(3)).await;
    world.anvil.mine(2).await;
    settler.step(NOW).await.unwrap();
    assert_eq!(shown(&world).await, [(tokens(3), false)]);
    world.anvil.mine(2).await;
    settler.step(NOW).await.unwrap();
    assert_eq!(shown(&world).await, [(tokens(3), true)]);
}
