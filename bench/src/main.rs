//! Named benchmarks. Each runs beside a reference on the same server in the same minute, interleaved, and ends with one line of
//! JSON: `{"name","ratio","goal","reference","value"}`. Ratios are what to compare; times depend on the machine.

mod figure;
mod figures;
mod load;
mod naive;
mod peers;
mod place;
mod reference;

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Parser;
use sqlx::postgres::PgConnectOptions;

use figure::Figure;
use figures::FIGURES;

/// Measures one figure, or lists all.
#[derive(Debug, Parser)]
struct Options {
    /// Which; none lists them.
    name: Option<String>,
    /// A Postgres server where this login may create databases and roles. The databases are dropped at the end.
    #[arg(long, env = "DATABASE_URL")]
    database: Option<PgConnectOptions>,
    /// A Redis server for the peers that want one; what they leave there is theirs.
    #[arg(long, env = "REDIS_URL")]
    redis: Option<String>,
    /// Rounds, each with its reference.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds that each side of a round runs.
    #[arg(long, default_value_t = 5)]
    seconds: u32,
    /// Fail when the ratio is above that: a guard, and not the goal.
    #[arg(long)]
    at_most: Option<f64>,
    /// Fail when the ratio is below that.
    #[arg(long)]
    at_least: Option<f64>,
    /// The program and the rows that jobs name.
    #[arg(long, default_value = "examples/digits")]
    data: PathBuf,
}

/// The Postgres server as peers are told it.
fn database_url() -> anyhow::Result<url::Url> {
    let url = std::env::var("DATABASE_URL").context("name the server in DATABASE_URL")?;
    Ok(url.parse()?)
}

/// Where and how long a figure is measured.
#[derive(Debug, Clone)]
pub struct Setting {
    database: Option<PgConnectOptions>,
    redis: Option<String>,
    rounds: usize,
    seconds: u32,
    data: PathBuf,
}

impl Setting {
    /// The Redis server of peers.
    fn redis(&self) -> anyhow::Result<&str> {
        self.redis
            .as_deref()
            .context("name a Redis server in REDIS_URL, or use `make bench`")
    }

    /// The Postgres server to measure on.
    fn database(&self) -> anyhow::Result<&PgConnectOptions> {
        self.database
            .as_ref()
            .context("name a Postgres server in DATABASE_URL, or use `make bench`")
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let Some(name) = options.name else {
        for (name, goal, what) in FIGURES {
            println!("{name:<20} {:<8} {what}", goal.to_string());
        }
        return Ok(());
    };
    let setting = Setting {
        database: options.database,
        redis: options.redis,
        rounds: options.rounds,
        seconds: options.seconds,
        data: options.data,
    };
    let figure: Figure = figures::measure(&name, &setting).await?;
    println!("{}", figure.json());
    match options.at_most {
        Some(bound) if figure.ratio > bound => bail!("{name}: {} is above {bound}", figure.ratio),
        _ => {}
    }
    match options.at_least {
        Some(bound) if figure.ratio < bound => bail!("{name}: {} is below {bound}", figure.ratio),
        _ => Ok(()),
    }
}
