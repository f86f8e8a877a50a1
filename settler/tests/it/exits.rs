//! Whoever asks the contract to leave is released all, and nothing is spent for it meanwhile.

use comptoir_contracts_bindings::Settlement::requestExitCall;
use comptoir_domain::id::JobId;
use comptoir_store::{
    exits,
    holds::{HoldError, HoldSource},
};
use sqlx::PgPool;

use crate::{
    batches::funded,
    harness::{DEPTH, Key, NOW, World, tokens},
};

async fn is_leaving(world: &World) -> bool {
    let mut conn = world.api.acquire().await.unwrap();
    exits::is_leaving(&mut conn, world.asset.id, Key::Alice.address())
        .await
        .unwrap()
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_exit_is_answered_with_everything_released(db: PgPool) {
    let (world, mut settler) = funded(db, 40).await;
    let alice = Key::Alice.address();
    world.anvil.pass(1).await;
    world.call(Key::Alice, requestExitCall {}).await;
    world.anvil.pass(1).await;
    assert!(settler.step(NOW).await.unwrap().sealed);
    assert!(is_leaving(&world).await);
    let refused = world
        .hold(HoldSource::Job(JobId::generate()), alice, 1)
        .await;
    assert!(matches!(refused, Err(HoldError::Leaving)));
    assert_eq!(world.balances(alice).await.payable.base(), tokens(40));

    let batch = world.until_claimable(&mut settler).await;
    settler.step(NOW).await.unwrap();
    world.anvil.mine(DEPTH).await;
    world.settle_down(&mut settler).await;
    assert!(!is_leaving(&world).await);
    let answered = world.contract().depositors(alice).call().await.unwrap();
    assert!(answered.exitRequestedAt.is_zero());
    let before = world.tokens_of(alice).await;
    world
        .claim(&world.account_document(&batch, alice).await)
        .await;
    assert_eq!(world.tokens_of(alice).await, before + tokens(40));
}
