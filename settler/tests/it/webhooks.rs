//! What the chain did is said in the transaction that took it in, to whoever it concerns and listens.

use comptoir_domain::id::AccountId;
use sqlx::PgPool;

use crate::{
    batches::funded,
    harness::{DEPTH, Key, NOW, World, tokens},
};

async fn listens(world: &World, account: AccountId) {
    sqlx::query(
        "INSERT INTO webhook_endpoints (webhook_endpoint_id, account_id, url, state, secret, created_at)
         VALUES (gen_random_uuid(), $1, 'https://example.org/', 'enabled', 'sealed', now())",
    )
    .bind(account.0)
    .execute(&world.owner)
    .await
    .unwrap();
}

/// What was said to an account: kinds, and the amounts that they name.
async fn said(world: &World, account: AccountId) -> Vec<(String, Option<String>)> {
    sqlx::query_as(
        "SELECT kind, data ->> 'amount_base' FROM webhook_events JOIN webhook_deliveries USING (webhook_event_id)
         WHERE webhook_events.account_id = $1 ORDER BY webhook_event_id",
    )
    .bind(account.0)
    .fetch_all(&world.owner)
    .await
    .unwrap()
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn deposits_anchored_batches_and_final_payouts_are_said_to_whom_they_concern(db: PgPool) {
    let (world, mut settler) = funded(db, 1_000).await;
    let alice = world.bind(Key::Alice.address()).await;
    let bob = world.bind(Key::Bob.address()).await;
    let carol = world.bind(Key::Carol.address()).await;
    for account in [alice, bob, carol] {
        listens(&world, account).await;
    }
    world.deposit(Key::Alice.address(), tokens(5)).await;
    world.anvil.mine(DEPTH).await;
    settler.step(NOW).await.unwrap();
    let deposited = ("deposit.credited".to_owned(), Some(tokens(5).to_string()));
    assert_eq!(said(&world, alice).await, std::slice::from_ref(&deposited));

    world
        .pay_job(alice, Key::Alice.address(), tokens(10), Key::Bob.address())
        .await;
    let batch = world.until_claimable(&mut settler).await;
    let anchored = ("batch.anchored".to_owned(), None);
    assert_eq!(said(&world, alice).await, [deposited, anchored.clone()]);
    assert_eq!(said(&world, bob).await, std::slice::from_ref(&anchored));

    let document = world.account_document(&batch, Key::Bob.address()).await;
    world.claim(&document).await;
    settler.step(NOW).await.unwrap();
    assert_eq!(
        said(&world, bob).await.len(),
        1,
        "what may be reorganised is not said"
    );
    world.anvil.mine(DEPTH).await;
    settler.step(NOW).await.unwrap();
    let paid = ("payout.paid".to_owned(), Some(tokens(9).to_string()));
    assert_eq!(said(&world, bob).await, [anchored, paid]);
    world.anvil.mine(DEPTH).await;
    settler.step(NOW).await.unwrap();
    assert_eq!(said(&world, bob).await.len(), 2, "each once");
    assert!(
        said(&world, carol).await.is_empty(),
        "whom it does not concern"
    );
}
