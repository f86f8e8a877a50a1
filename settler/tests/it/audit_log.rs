//! Nobody changes the audit log unseen, not even with all rights in the database.

use comptoir_domain::{
    audit::{Action, Actor, Broken, EMPTY, Event, link},
    digest::Sha256,
};
use comptoir_settler::audit_log::{self, AuditLog, AuditLogError};
use comptoir_store::audit;
use sqlx::{PgConnection, PgPool};

use crate::{
    batches::funded,
    harness::{Key, NOW, World},
};

async fn append(world: &World, subject: &str) {
    let event = Event::new(
        Actor::Operator("ann".to_owned()),
        Action::AccountFrozen,
        subject,
    );
    let mut tx = world.api.begin().await.unwrap();
    audit::append(&mut tx, &event, NOW).await.unwrap();
    tx.commit().await.unwrap();
}

async fn verify(world: &World) -> Result<AuditLog, AuditLogError> {
    let mut connection = world.owner.acquire().await.unwrap();
    let rpc = Some(world.anvil.url.clone());
    audit_log::verify(&mut connection, &world.objects, &world.asset, rpc).await
}

/// Two batches: the first names the second event as the head, the second the third.
async fn sealed(db: PgPool) -> World {
    let (world, mut settler) = funded(db, 10).await;
    let alice = world.bind(Key::Alice.address()).await;
    append(&world, "first").await;
    append(&world, "second").await;
    for third in [None, Some("third")] {
        if let Some(subject) = third {
            append(&world, subject).await;
        }
        world
            .pay_job(alice, Key::Alice.address(), 1_000, Key::Bob.address())
            .await;
        world.until_claimable(&mut settler).await;
    }
    world
}

/// What somebody with every right in the database does to the log.
async fn tamper(
    world: &World,
    statement: &'static str,
) -> sqlx::pool::PoolConnection<sqlx::Postgres> {
    let mut connection = world.owner.acquire().await.unwrap();
    let script = format!(
        "ALTER TABLE audit_events DISABLE TRIGGER ALL; ALTER TABLE audit_head DISABLE TRIGGER ALL; {statement}"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(script))
        .execute(&mut *connection)
        .await
        .unwrap();
    connection
}

/// Makes the hashes fit what the events say now.
async fn rehash(connection: &mut PgConnection) {
    let bodies: Vec<(i64, String)> =
        sqlx::query_as("SELECT seq, body FROM audit_events ORDER BY seq")
            .fetch_all(&mut *connection)
            .await
            .unwrap();
    let mut head = EMPTY;
    for (number, body) in &bodies {
        head = link(head, number.cast_unsigned(), body);
        sqlx::query("UPDATE audit_events SET hash = $2 WHERE seq = $1")
            .bind(number)
            .bind(head.0.to_vec())
            .execute(&mut *connection)
            .await
            .unwrap();
    }
    sqlx::query("UPDATE audit_head SET seq = $1, hash = $2")
        .bind(bodies.last().map_or(0, |(number, _)| *number))
        .bind(head.0.to_vec())
        .execute(connection)
        .await
        .unwrap();
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_log_that_nobody_touched_is_the_one_that_the_batches_name(db: PgPool) {
    let world = sealed(db).await;
    let log = verify(&world).await.unwrap();
    assert_eq!((log.events, log.batches, log.on_chain), (3, 2, Some(2)));
    assert_eq!(log.sealed_events, 3);
    let (opening, _) = world.leaves(&world.batches().await[1]).await;
    assert_ne!(
        opening.audit_head,
        Some(log.head),
        "the first batch saw two events"
    );
    append(&world, "fourth").await;
    let log = verify(&world).await.unwrap();
    assert_eq!((log.events, log.sealed_events), (4, 3));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_event_that_was_changed_is_found(db: PgPool) {
    let world = sealed(db).await;
    let change = "UPDATE audit_events SET body = replace(body, 'ann', 'bob') WHERE seq = 2";
    let mut connection = tamper(&world, change).await;
    let changed = verify(&world).await.unwrap_err();
    let found = audit::VerifyError::Broken(Broken::Changed { number: 2 });
    assert!(
        matches!(&changed, AuditLogError::Log(error) if error.to_string() == found.to_string()),
        "{changed:?}"
    );
    // With all hashes made to fit, the log no longer has the head that the first batch took to the chain.
    rehash(&mut connection).await;
    let rewritten = verify(&world).await.unwrap_err();
    assert!(
        matches!(rewritten, AuditLogError::Head { batch: 1, .. }),
        "{rewritten:?}"
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_event_that_was_left_out_is_found(db: PgPool) {
    let world = sealed(db).await;
    let mut connection = tamper(&world, "DELETE FROM audit_events WHERE seq = 3").await;
    let cut = verify(&world).await.unwrap_err();
    assert!(
        matches!(
            cut,
            AuditLogError::Log(audit::VerifyError::End { length: 2, kept: 3 })
        ),
        "{cut:?}"
    );
    rehash(&mut connection).await;
    let cut = verify(&world).await.unwrap_err();
    assert!(
        matches!(cut, AuditLogError::Head { batch: 2, .. }),
        "{cut:?}"
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_batch_that_names_another_head_is_not_the_one_on_the_chain(db: PgPool) {
    let world = sealed(db).await;
    let newest = world.batches().await.remove(0);
    let bytes = world
        .objects
        .get_all(newest.data_hash(), 1 << 20)
        .await
        .unwrap();
    let (mut opening, sealed) = world.leaves(&newest).await;
    opening.audit_head = Some(Sha256::of(b"another"));
    let (forged, forged_bytes) =
        comptoir_domain::settlement::file::seal(&opening, sealed.receipts, sealed.accounts)
            .unwrap();
    assert_ne!(bytes, forged_bytes);
    world.objects.put(forged_bytes.into()).await.unwrap();
    sqlx::query("UPDATE settlement_batches SET data_hash = $2, hash = $3 WHERE batch_id = $1")
        .bind(newest.id.0)
        .bind(forged.header.data_hash.to_vec())
        .bind(forged.hash.to_vec())
        .execute(&world.owner)
        .await
        .unwrap();
    let refused = verify(&world).await.unwrap_err();
    assert!(matches!(refused, AuditLogError::Chain(_)), "{refused:?}");
}
