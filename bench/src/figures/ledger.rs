//! The ledger alone: entries one by one and in groups, for one payer and for many.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use alloy_primitives::Address;
use anyhow::{Context as _, ensure};
use comptoir_domain::{
    amount::Amount,
    id::JobId,
    ledger::{AccountKey, Entry, EntryKind, Lines, Source},
};
use comptoir_store::{
    group::{self, GROUP_MAX},
    ledger,
    pool::{self, ServiceRole},
};
use sqlx::PgPool;
use tokio::time::Instant;

use crate::{
    Setting,
    figure::Rounds,
    naive,
    place::{Books, now},
    reference::Reference,
};

/// Payers beside the hot one.
const PAYERS: u64 = 1_000;
/// Connections of both sides.
const CLIENTS: usize = 16;

struct Ledger {
    books: Books,
    api: PgPool,
    /// As many connections that work on groups as the service has.
    groups: PgPool,
    /// Connections of the same kind, one for each client.
    singles: PgPool,
}

impl Ledger {
    async fn make(setting: &Setting) -> anyhow::Result<Self> {
        let books = Books::make(setting.database()?, "ledger").await?;
        let connections = u32::try_from(CLIENTS)?;
        let api = pool::connect(books.options.clone(), ServiceRole::Api, connections).await?;
        for payer in 0..=PAYERS {
            books.deposit(owner(payer)).await?;
        }
        Ok(Self {
            groups: pool::for_groups(&api, 1),
            singles: pool::for_groups(&api, connections / group::AT_ONCE),
            api,
            books,
        })
    }

    /// Entries in a second, in groups; `payer` chooses whose by number.
    async fn in_groups(&self, seconds: u32, payer: fn(u64) -> u64) -> anyhow::Result<f64> {
        let at_once = usize::try_from(group::AT_ONCE)?;
        self.post(at_once, GROUP_MAX, &self.groups, seconds, payer)
            .await
    }

    async fn post(
        &self,
        clients: usize,
        at_once: usize,
        db: &PgPool,
        seconds: u32,
        payer: fn(u64) -> u64,
    ) -> anyhow::Result<f64> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let (began, lasting) = (Instant::now(), Duration::from_secs(u64::from(seconds)));
        let asset = self.books.asset;
        let mut running = Vec::new();
        for _ in 0..clients {
            let db = db.clone();
            running.push(tokio::spawn(async move {
                let mut done = 0_u32;
                while began.elapsed() < lasting {
                    let entries: Vec<Entry> = (0..at_once)
                        .map(|_| hold(owner(payer(NUMBER.fetch_add(1, Ordering::Relaxed)))))
                        .collect::<anyhow::Result<_>>()?;
                    let mut tx = db.begin().await?;
                    let posted = ledger::post_all(&mut tx, asset, &entries, now()).await?;
                    tx.commit().await?;
                    ensure!(posted.iter().all(Option::is_some), "posted before");
                    done += u32::try_from(at_once)?;
                }
                anyhow::Ok(done)
            }));
        }
        let mut done = 0;
        for client in running {
            done += client.await??;
        }
        Ok(f64::from(done) / began.elapsed().as_secs_f64())
    }

    async fn clear(self) -> anyhow::Result<()> {
        self.singles.close().await;
        self.groups.close().await;
        self.api.close().await;
        self.books.clear().await
    }
}

fn owner(number: u64) -> Address {
    Address::left_padding_from(&[&[0xb0], &number.to_be_bytes()[..]].concat())
}

/// One base unit of an owner is held.
fn hold(owner: Address) -> anyhow::Result<Entry> {
    let one = Amount::from_base(1).context("a small amount")?;
    Ok(Lines::default()
        .debit(AccountKey::Available(owner), one)
        .credit(AccountKey::Held(owner), one)
        .into_entry(EntryKind::Hold, Source::JobHold(JobId::generate()))?)
}

/// One payer beside many.
pub async fn hot_payer(setting: &Setting) -> anyhow::Result<Rounds> {
    let ledger = Ledger::make(setting).await?;
    let mut rounds = Rounds::default();
    for _ in 0..setting.rounds {
        let many = ledger
            .in_groups(setting.seconds, |number| 1 + number % PAYERS)
            .await?;
        let one = ledger.in_groups(setting.seconds, |_| 0).await?;
        rounds.note(one, many);
    }
    ledger.clear().await?;
    Ok(rounds)
}

/// One payer beside transactions that each lock its row.
pub async fn hot_payer_beside_locks(setting: &Setting) -> anyhow::Result<Rounds> {
    let ledger = Ledger::make(setting).await?;
    let reference = Reference::make(setting.database()?).await?;
    let lasting = Duration::from_secs(u64::from(setting.seconds));
    let mut rounds = Rounds::default();
    for _ in 0..setting.rounds {
        // Sixteen that wait for one row: fewer or more are slower still.
        let locks = naive::row_lock(&reference.db, CLIENTS, lasting).await?;
        let one = ledger.in_groups(setting.seconds, |_| 0).await?;
        rounds.note(one, locks);
    }
    reference.clear().await?;
    ledger.clear().await?;
    Ok(rounds)
}

/// One entry per transaction, beside TPC-B with as many clients.
pub async fn transfers(setting: &Setting) -> anyhow::Result<Rounds> {
    let ledger = Ledger::make(setting).await?;
    let reference = Reference::make(setting.database()?).await?;
    let mut rounds = Rounds::default();
    for _ in 0..setting.rounds {
        let tpcb = reference.tpcb(CLIENTS, setting.seconds).await?;
        let payer = |number: u64| 1 + number % PAYERS;
        let ours = ledger.post(CLIENTS, 1, &ledger.singles, setting.seconds, payer);
        rounds.note(ours.await?, tpcb);
    }
    reference.clear().await?;
    ledger.clear().await?;
    Ok(rounds)
}

/// Entries in groups, beside TPC-B.
pub async fn transfers_in_groups(setting: &Setting) -> anyhow::Result<Rounds> {
    let ledger = Ledger::make(setting).await?;
    let reference = Reference::make(setting.database()?).await?;
    let mut rounds = Rounds::default();
    for _ in 0..setting.rounds {
        let tpcb = reference.tpcb(CLIENTS, setting.seconds).await?;
        let ours = ledger
            .in_groups(setting.seconds, |number| 1 + number % PAYERS)
            .await?;
        rounds.note(ours, tpcb);
    }
    reference.clear().await?;
    ledger.clear().await?;
    Ok(rounds)
}
