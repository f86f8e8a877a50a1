//! A receipt outlives its place in the contract's ring.

use comptoir_domain::settlement::BatchState;
use comptoir_settler::verify::{self, VerifyError};
use sqlx::PgPool;

use crate::{
    batches::funded,
    harness::{DEPTH, Key, NOW},
};

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_receipt_of_the_first_batch_is_verified_seventy_batches_later(db: PgPool) {
    let (world, mut settler) = funded(db, 10).await;
    let alice = world.bind(Key::Alice.address()).await;
    let receipt = world
        .pay_job(alice, Key::Alice.address(), 1_000, Key::Bob.address())
        .await;
    world.until_claimable(&mut settler).await;
    let document = world.receipt_document(receipt).await;
    let mut sealed = 1;
    for _ in 0..200 {
        if sealed == 70 {
            break;
        }
        world.anvil.pass(900).await;
        world.anvil.mine(DEPTH).await;
        sealed += u32::from(settler.step(NOW).await.unwrap().sealed);
    }
    world.until_claimable(&mut settler).await;
    assert_eq!(world.states().await[0], (70, 0, BatchState::Claimable));
    assert!(
        world
            .contract()
            .batchHash(1)
            .call()
            .await
            .unwrap()
            .is_zero()
    );

    let found = verify::receipt(world.anvil.url.clone(), &document)
        .await
        .unwrap();
    assert!(!found.in_ring);
    assert_eq!(found.headers_followed, 6);
    let mut forged = document;
    forged.header.generation = 1;
    let refused = verify::receipt(world.anvil.url.clone(), &forged).await;
    assert!(
        matches!(refused, Err(VerifyError::NotOnChain { batch: 1, .. })),
        "{refused:?}"
    );
}
