//! What a job costs Postgres, which depends on the load of the machine less than times do.

use std::{collections::BTreeSet, fs};

use anyhow::Context as _;
use sqlx::PgPool;

use super::jobs::Busy;
use crate::{Setting, figure::Rounds};

/// Clients that submit.
const CLIENTS: usize = 64;
/// Ticks in a second, of `/proc/*/stat`.
const TICKS_PER_SECOND: f64 = 100.0;
/// Tables whose rows change often.
const HOT_TABLES: &[&str] = &["queue", "ledger_accounts", "attempts", "replicas", "jobs"];

/// Bytes of WAL per job.
pub async fn wal(setting: &Setting) -> anyhow::Result<Rounds> {
    let busy = Busy::start(setting).await?;
    let mut rounds = Rounds::default();
    for _ in 0..setting.rounds {
        let before = written(&busy.place.owner).await?;
        let (jobs, ..) = busy.run(CLIENTS, setting.seconds).await?;
        rounds.note((written(&busy.place.owner).await? - before) / jobs, 1.0);
    }
    busy.stop().await?;
    Ok(rounds)
}

async fn written(db: &PgPool) -> anyhow::Result<f64> {
    let bytes = sqlx::query_scalar("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float8");
    Ok(bytes.fetch_one(db).await?)
}

/// Microseconds of Postgres' CPU per job.
pub async fn cpu(setting: &Setting) -> anyhow::Result<Rounds> {
    let busy = Busy::start(setting).await?;
    let backend: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
        .fetch_one(&busy.place.owner)
        .await?;
    let server = stat(backend)?.parent;
    let mut rounds = Rounds::default();
    for _ in 0..setting.rounds {
        let before = spent(server)?;
        let (jobs, ..) = busy.run(CLIENTS, setting.seconds).await?;
        let seconds = (spent(server)? - before) / TICKS_PER_SECOND;
        rounds.note(seconds * 1e6 / jobs, 1.0);
    }
    busy.stop().await?;
    Ok(rounds)
}

/// Ticks that the server and all its processes have spent, those that ended included.
fn spent(server: i32) -> anyhow::Result<f64> {
    let mut ticks = stat(server)?.ticks_with_ended;
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(process) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // One that ended meanwhile is counted by the server.
        if let Ok(stat) = stat(process)
            && stat.parent == server
        {
            ticks += stat.ticks;
        }
    }
    Ok(ticks)
}

struct Stat {
    parent: i32,
    ticks: f64,
    ticks_with_ended: f64,
}

fn stat(process: i32) -> anyhow::Result<Stat> {
    let text = fs::read_to_string(format!("/proc/{process}/stat"))
        .with_context(|| format!("read what process {process} has spent; is the server here?"))?;
    // The name is in parentheses and may hold anything.
    let (_, fields) = text.rsplit_once(')').context("a name in parentheses")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|it| it.parse::<f64>().ok());
    let own = ticks(11).zip(ticks(12)).context("ticks")?;
    let ended = ticks(13).zip(ticks(14)).context("ticks of children")?;
    Ok(Stat {
        parent: fields.get(1).context("a parent")?.parse()?,
        ticks: own.0 + own.1,
        ticks_with_ended: own.0 + own.1 + ended.0 + ended.1,
    })
}

/// The share of HOT updates.
pub async fn hot(setting: &Setting) -> anyhow::Result<Rounds> {
    let busy = Busy::start(setting).await?;
    let mut rounds = Rounds::default();
    for _ in 0..setting.rounds {
        busy.run(CLIENTS, setting.seconds).await?;
        let tables: Vec<(String, i64, i64)> = sqlx::query_as(
            "SELECT relname::text, n_tup_hot_upd, n_tup_upd FROM pg_stat_user_tables WHERE relname = ANY ($1)",
        )
        .bind(HOT_TABLES)
        .fetch_all(&busy.place.owner)
        .await?;
        let names: BTreeSet<_> = tables.iter().map(|(name, ..)| name.as_str()).collect();
        anyhow::ensure!(
            names.len() == HOT_TABLES.len(),
            "a table is gone: {names:?}"
        );
        for (name, hot, all) in &tables {
            println!("{name}: {hot} of {all}");
        }
        let sum = |part: fn(&(String, i64, i64)) -> i64| {
            i32::try_from(tables.iter().map(part).sum::<i64>()).map(f64::from)
        };
        rounds.note(sum(|it| it.1)?, sum(|it| it.2)?);
    }
    busy.stop().await?;
    Ok(rounds)
}
