//! Rights to datasets, looked at as each serving does.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::ensure;
use comptoir_domain::id::{AccountId, DatasetId, DatasetVersionId};
use comptoir_store::{
    entitlements::{self, Standing},
    pool::{self, ServiceRole},
};
use sqlx::{PgConnection, PgPool};
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    Setting,
    figure::Rounds,
    place::{Books, now},
};

/// Accounts, each with a right to a tenth of the datasets,
const ACCOUNTS: i32 = 1_000;
/// of which there are so many.
const DATASETS: i32 = 1_000;
/// Rights of each account.
const EACH: i32 = 100;
/// Connections that look.
const CONNECTIONS: usize = 8;
/// Before the first round, for plans and caches.
const WARM_UP: Duration = Duration::from_secs(2);
/// From one right to look at to the next: prime, so that all come up, far from each other.
const STRIDE: usize = 7_919;

/// Whom a right is of, to what, and its own key.
#[derive(Debug, Clone, Copy)]
struct Right {
    account: AccountId,
    place: (DatasetId, DatasetVersionId),
    id: Uuid,
}

/// What is asked about a right.
#[derive(Debug, Clone, Copy)]
enum Question {
    /// May the account read the version? As the api asks before it serves, and again while it does.
    Standing,
    /// What is in the row of this key?
    Row,
}

/// Gives everybody rights, by purchases that cost nothing.
async fn give_rights(books: &Books) -> anyhow::Result<Vec<Right>> {
    let mut tx = books.owner.begin().await?;
    for (sql, counts) in [
        ("INSERT INTO accounts (account_id, email, password_hash, created_at)
         SELECT gen_random_uuid(), 'bench-' || n || '@example.org', 'nobody signs in', now() FROM generate_series(1, $1) n", &[ACCOUNTS][..]),
        ("INSERT INTO datasets (dataset_id, account_id, name, title, description, licence, provenance, tags, state, created_at, updated_at)
         SELECT gen_random_uuid(), (SELECT min(account_id::text)::uuid FROM accounts), 'bench-' || n, 'Bench', '', 'MIT', '', '{}', 'listed', now(), now()
         FROM generate_series(1, $1) n", &[DATASETS]),
        ("INSERT INTO dataset_versions (version_id, dataset_id, account_id, number, state, notes, licence, wrapped_key, manifest_root, created_at,
             submitted_at, published_at)
         SELECT gen_random_uuid(), dataset_id, account_id, 1, 'ready', '', 'MIT', decode(repeat('00', 60), 'hex'), decode(repeat('00', 32), 'hex'),
             now(), now(), now()
         FROM datasets", &[]),
        ("INSERT INTO offers (offer_id, dataset_id, account_id, asset_id, kind, is_gated, refund_seconds, created_at)
         SELECT gen_random_uuid(), dataset_id, account_id, (SELECT asset_id FROM assets), 'free', false, 0, now() FROM datasets", &[]),
        ("INSERT INTO offer_prices (offer_id, number, price_base, platform_ppm, effective_at, created_at)
         SELECT offer_id, 1, 0, 0, now(), now() FROM offers", &[]),
        ("INSERT INTO purchases (purchase_id, account_id, asset_id, seller_id, dataset_id, offer_id, price_number, kind, state, amount_base, charged_base,
             final_because, created_at, starts_at, final_at, ended_at)
         SELECT gen_random_uuid(), a.account_id, o.asset_id, o.account_id, o.dataset_id, o.offer_id, 1, 'free', 'settled', 0, 0, 'at_once', now(), now(), now(), now()
         FROM (SELECT account_id, row_number() OVER (ORDER BY account_id) AS n FROM accounts) a
         JOIN (SELECT *, row_number() OVER (ORDER BY offer_id) AS n FROM offers) o ON (o.n + $1 * $2 - a.n) % $1 < $3", &[DATASETS, ACCOUNTS, EACH]),
        ("INSERT INTO entitlements (entitlement_id, account_id, dataset_id, purchase_id, allows, starts_at, created_at)
         SELECT gen_random_uuid(), account_id, dataset_id, purchase_id, 'download', now() - interval '1 hour', now() FROM purchases", &[]),
    ] {
        let mut query = sqlx::query(sql);
        for count in counts {
            query = query.bind(count);
        }
        query.execute(&mut *tx).await?;
    }
    tx.commit().await?;
    sqlx::query("VACUUM ANALYZE").execute(&books.owner).await?;
    let rights: Vec<(Uuid, Uuid, Uuid, Uuid)> = sqlx::query_as(
        "SELECT e.account_id, e.dataset_id, v.version_id, e.entitlement_id FROM entitlements e JOIN dataset_versions v USING (dataset_id)",
    )
    .fetch_all(&books.owner)
    .await?;
    let rights = rights
        .into_iter()
        .map(|(account, dataset, version, id)| Right {
            account: AccountId(account),
            place: (DatasetId(dataset), DatasetVersionId(version)),
            id,
        });
    Ok(rights.collect())
}

async fn ask(db: &PgPool, right: Right, question: Question) -> anyhow::Result<()> {
    let mut connection = db.acquire().await?;
    match question {
        Question::Standing => {
            let standing =
                entitlements::standing(&mut connection, right.account, right.place, now());
            ensure!(
                matches!(standing.await?, Standing::Active(_)),
                "{} has no right",
                right.account
            );
        }
        Question::Row => row(&mut connection, right).await?,
    }
    Ok(())
}

async fn row(connection: &mut PgConnection, right: Right) -> sqlx::Result<()> {
    let select =
        "SELECT allows, starts_at, ends_at, ended_at FROM entitlements WHERE entitlement_id = $1";
    let query = sqlx::query(select).bind(right.id);
    query.fetch_one(connection).await.map(drop)
}

/// Answers in a second, over all connections.
async fn asked(
    db: &PgPool,
    rights: &Arc<Vec<Right>>,
    question: Question,
    lasting: Duration,
) -> anyhow::Result<f64> {
    let (next, began) = (Arc::new(AtomicUsize::new(0)), Instant::now());
    let running: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let (db, rights, next) = (db.clone(), Arc::clone(rights), Arc::clone(&next));
            tokio::spawn(async move {
                let mut answers = 0_u32;
                while began.elapsed() < lasting {
                    let turn = next.fetch_add(1, Ordering::Relaxed);
                    let right = rights[turn.wrapping_mul(STRIDE) % rights.len()];
                    ask(&db, right, question).await?;
                    answers += 1;
                }
                anyhow::Ok(answers)
            })
        })
        .collect();
    let mut answers = 0.0;
    for connection in running {
        answers += f64::from(connection.await??);
    }
    Ok(answers / began.elapsed().as_secs_f64())
}

/// Beside a bare SELECT by primary key on the same table, over the same connections: those that look again while bytes leave, which keep their plans.
pub async fn checks(setting: &Setting) -> anyhow::Result<Rounds> {
    let books = Books::make(setting.database()?, "rights").await?;
    let rights = Arc::new(give_rights(&books).await?);
    println!("{} rights of {ACCOUNTS} accounts", rights.len());
    let connections = u32::try_from(CONNECTIONS)?;
    let api = pool::connect(books.options.clone(), ServiceRole::Api, 1).await?;
    let db = pool::keeping_plans(&api, connections);
    for question in [Question::Standing, Question::Row] {
        let warm = asked(&db, &rights, question, WARM_UP).await?;
        println!("{question:?}: {warm:.0} a second");
    }
    let lasting = Duration::from_secs(u64::from(setting.seconds));
    let mut rounds = Rounds::default();
    for _ in 0..setting.rounds {
        let plain = asked(&db, &rights, Question::Row, lasting).await?;
        let ours = asked(&db, &rights, Question::Standing, lasting).await?;
        rounds.note(ours, plain);
    }
    db.close().await;
    api.close().await;
    books.clear().await?;
    Ok(rounds)
}
