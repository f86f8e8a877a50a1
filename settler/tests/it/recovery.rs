//! A restored backup is older than the chain: nothing is settled twice, and the batches come back from events and leaf files.

use std::sync::Arc;

use comptoir_settler::{
    Finality, Settler,
    chain::RPC_TIMEOUT,
    import::{self, ImportError, Imported},
};
use comptoir_store::{
    batches,
    pool::{self, ServiceRole},
};
use serde_json::json;
use sqlx::{
    ConnectOptions as _, Connection as _, PgConnection, PgPool, postgres::PgConnectOptions,
};

use crate::{
    batches::funded,
    contradictions::halt,
    harness::{
        DEPTH, Key, NOW, World, amount,
        proxy::{Fault, Proxy},
        tokens,
    },
};

/// A copy of the database as it is now. Dropped by whoever made it.
struct Backup {
    name: String,
    options: PgConnectOptions,
}

impl Backup {
    /// Every connection is ended for the copy, and opened anew. The test's own pool is not closed: that would end its database.
    async fn of(world: &mut World, settler: Settler) -> Self {
        drop(settler);
        let options = (*world.owner.connect_options()).clone();
        let from = options.get_database().unwrap().to_owned();
        // Postgres cuts names off at 63 bytes.
        let name = format!("backup_{}", &from[from.len() - 40..]);
        for pool in [&world.db, &world.scheduler, &world.api] {
            pool.close().await;
        }
        let mut admin = Self::admin(&options).await;
        let statements = [
            format!("DROP DATABASE IF EXISTS \"{name}\""),
            format!(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{from}'"
            ),
            format!("CREATE DATABASE \"{name}\" TEMPLATE \"{from}\""),
        ];
        for statement in statements {
            sqlx::query(sqlx::AssertSqlSafe(statement))
                .execute(&mut admin)
                .await
                .unwrap();
        }
        admin.close().await.unwrap();
        let owner = world.owner.clone();
        world.open(options.clone()).await;
        world.owner = owner;
        Self {
            options: options.clone().database(&name),
            name,
        }
    }

    async fn admin(options: &PgConnectOptions) -> PgConnection {
        options
            .clone()
            .database("postgres")
            .connect()
            .await
            .unwrap()
    }

    async fn dropped(self, world: World) {
        for pool in [&world.db, &world.scheduler, &world.api, &world.owner] {
            pool.close().await;
        }
        let mut admin = Self::admin(&self.options).await;
        let drop = format!("DROP DATABASE \"{}\" WITH (FORCE)", self.name);
        sqlx::query(sqlx::AssertSqlSafe(drop))
            .execute(&mut admin)
            .await
            .unwrap();
    }
}

impl World {
    async fn open(&mut self, options: PgConnectOptions) {
        let connect = |role| pool::connect(options.clone(), role, 4);
        self.db = connect(ServiceRole::Settler).await.unwrap();
        self.scheduler = connect(ServiceRole::Scheduler).await.unwrap();
        self.api = connect(ServiceRole::Api).await.unwrap();
        self.owner = PgPool::connect_with(options.clone()).await.unwrap();
        self.health = Arc::default();
    }

    async fn import(&self) -> Result<Imported, ImportError> {
        let parts = (self.db.clone(), self.objects.clone(), self.asset);
        // One node hides every event: headers prove themselves, so another is asked for them.
        let hiding = Proxy::before(&self.anvil.url).await;
        hiding.fails("eth_getLogs", Fault::Says(json!([])));
        let honest = Proxy::before(&self.anvil.url).await;
        let nodes = [hiding.url, honest.url, self.anvil.url.clone()];
        import::import(parts, (&nodes, RPC_TIMEOUT), Finality::Depth(DEPTH), NOW).await
    }

    async fn unbatched(&self) -> u64 {
        let mut conn = self.db.acquire().await.unwrap();
        batches::demand(&mut conn, self.asset.id)
            .await
            .unwrap()
            .receipts
    }

    /// Once the settler before is gone.
    async fn import_after(&self, settler: Settler) -> Result<Imported, ImportError> {
        drop(settler);
        for _ in 0..1_000 {
            match self.import().await {
                Err(ImportError::SettlerLeads) => {}
                imported => return imported,
            }
        }
        panic!("the lead does not become free");
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_restored_backup_refuses_to_seal_and_takes_the_batches_in_from_the_chain(db: PgPool) {
    let (mut world, settler) = funded(db, 10).await;
    let alice = world.bind(Key::Alice.address()).await;
    world.bind(Key::Bob.address()).await;
    let pay = async |world: &World, base| {
        world
            .pay_job(alice, Key::Alice.address(), base, Key::Bob.address())
            .await
    };
    let receipt = pay(&world, tokens(1)).await;
    let backup = Backup::of(&mut world, settler).await;
    // After the backup: two batches, the second of them empty, and a claim.
    let mut settler = world.settler().await;
    let first = world.until_claimable(&mut settler).await;
    world
        .claim(&world.account_document(&first, Key::Bob.address()).await)
        .await;
    world.anvil.pass(900).await;
    world.anvil.mine(DEPTH).await;
    assert!(settler.step(NOW).await.unwrap().sealed);
    let second = world.until_claimable(&mut settler).await;
    assert_eq!((second.header.id, second.header.receipt_count), (2, 0));
    drop(settler);

    world.open(backup.options.clone()).await;
    let mut settler = world.settler().await;
    let progress = settler.step(NOW).await.unwrap();
    assert!(progress.halted && !progress.sealed && progress.sent == 0);
    let (reason, detail) = halt(&world).await.unwrap();
    assert_eq!(reason, "database_behind_chain");
    assert!(detail.contains("comptoir admin import-batches"), "{detail}");
    assert_eq!(world.unbatched().await, 1);
    assert!(matches!(
        world.import().await,
        Err(ImportError::SettlerLeads)
    ));

    let imported = world.import_after(settler).await.unwrap();
    assert_eq!(
        (imported.batches, imported.receipts, imported.last),
        (2, 1, 2)
    );
    assert_eq!(
        imported.released,
        amount(tokens(1)),
        "nine tenths to Bob, one to the platform"
    );
    assert_eq!(world.unbatched().await, 0);
    // Called again, it finds nothing to do.
    assert_eq!(world.import().await.unwrap().batches, 0);

    world.resume().await;
    pay(&world, 1_000).await;
    let mut settler = world.settler_when_free().await;
    world.settle_down(&mut settler).await;
    let third = world.until_claimable(&mut settler).await;
    assert_eq!((third.header.id, third.header.receipt_count), (3, 1));
    assert_eq!(third.header.prev_hash, second.hash);
    assert_eq!(halt(&world).await, None);
    world.receipt_document(receipt).await.verify().unwrap();
    world
        .claim(&world.account_document(&third, Key::Bob.address()).await)
        .await;
    world.anvil.mine(DEPTH).await;
    settler.step(NOW).await.unwrap();
    assert_eq!(
        world.tokens_of(Key::Bob.address()).await,
        tokens(9) / 10 + 900
    );
    world.audit().await;
    drop(settler);
    backup.dropped(world).await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_backup_that_lacks_what_was_settled_is_refused_as_it_is(db: PgPool) {
    let (mut world, settler) = funded(db, 10).await;
    let alice = world.bind(Key::Alice.address()).await;
    let backup = Backup::of(&mut world, settler).await;
    world
        .pay_job(alice, Key::Alice.address(), tokens(1), Key::Bob.address())
        .await;
    let mut settler = world.settler().await;
    world.until_claimable(&mut settler).await;
    drop(settler);

    world.open(backup.options.clone()).await;
    let refused = world.import().await;
    assert!(
        matches!(
            refused,
            Err(ImportError::ReceiptsMissing {
                batch: 1,
                missing: 1
            })
        ),
        "{refused:?}"
    );
    assert!(world.batches().await.is_empty());
    assert_eq!(world.balances(Key::Bob.address()).await.payable.base(), 0);
    backup.dropped(world).await;
}
