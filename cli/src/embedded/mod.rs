//! The embedded default: a private Postgres cluster, a private Redis and a local chain, as child
//! processes under one folder. `DATABASE_URL`, `REDIS_URL` and `ETH_RPC_URL` replace them one by one.

mod anvil;
mod folder;
mod leftover;
mod postgres;
mod process;
mod redis;

use std::{os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::Context as _;

pub use anvil::find as find_anvil;
pub use comptoir_devchain::find_program;
pub use folder::Folder;
pub use postgres::find as find_postgres;
pub use redis::find as find_redis;

pub(crate) use process::{Process, free_port, loopback};

/// Where the three backing services answer.
#[derive(Debug, Clone)]
pub struct Urls {
    /// Postgres.
    pub database: String,
    /// Redis.
    pub redis: String,
    /// Ethereum JSON-RPC.
    pub ethereum: String,
}

/// What the environment already provides.
#[derive(Debug, Clone, Default)]
pub struct Provided {
    /// `DATABASE_URL`
    pub database: Option<String>,
    /// `REDIS_URL`
    pub redis: Option<String>,
    /// `ETH_RPC_URL`
    pub ethereum: Option<String>,
}

impl Provided {
    /// Reads the three variables.
    #[must_use]
    pub fn from_env() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            database: variable("DATABASE_URL"),
            redis: variable("REDIS_URL"),
            ethereum: variable("ETH_RPC_URL"),
        }
    }

    /// Looks for the programs that are to be started because nothing is provided in their place.
    ///
    /// # Errors
    /// When one is not installed; says what to install.
    pub fn find_programs(&self) -> anyhow::Result<()> {
        if self.database.is_none() {
            find_postgres()?;
        }
        if self.redis.is_none() {
            find_redis()?;
        }
        if self.ethereum.is_none() {
            find_anvil()?;
        }
        Ok(())
    }
}

/// Running backing services; they stop when it is stopped, or with this process.
pub struct Embedded {
    /// Where they answer.
    pub urls: Urls,
    processes: Vec<Process>,
    /// The last field: the folder is free once the processes are gone.
    _folder: Folder,
}

impl Embedded {
    /// Starts what `provided` does not name, with its data under `folder`.
    ///
    /// # Errors
    /// When a program is missing or does not come up; what was started before is stopped.
    pub async fn start(folder: &Path, provided: Provided) -> anyhow::Result<Self> {
        provided.find_programs()?;
        Self::start_in(Folder::take(folder, false).await?, provided).await
    }

    /// Starts what `provided` does not name in a folder that was taken.
    ///
    /// # Errors
    /// When a program is missing or does not come up; what was started before is stopped.
    pub async fn start_in(taken: Folder, provided: Provided) -> anyhow::Result<Self> {
        let folder = taken.path();
        let mut processes = Vec::new();
        let database = match provided.database {
            Some(url) => url,
            None => keep(&mut processes, postgres::start(folder).await?),
        };
        let redis = match provided.redis {
            Some(url) => url,
            None => keep(&mut processes, redis::start(folder).await?),
        };
        let ethereum = match provided.ethereum {
            Some(url) => url,
            None => keep(&mut processes, anvil::start(folder).await?),
        };
        let urls = Urls {
            database,
            redis,
            ethereum,
        };
        Ok(Self {
            urls,
            processes,
            _folder: taken,
        })
    }

    /// Names and process ids of what was started here.
    #[must_use]
    pub fn processes(&self) -> Vec<(&'static str, u32)> {
        self.processes
            .iter()
            .map(|it| (it.name(), it.pid()))
            .collect()
    }

    /// Stops what was started, the last first, each by its own shutdown.
    ///
    /// # Errors
    /// When one had to be killed.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let mut outcome = Ok(());
        while let Some(process) = self.processes.pop() {
            if let Err(error) = process.stop().await {
                outcome = Err(error);
            }
        }
        outcome
    }
}

/// Lets other users pass through a folder of ours, so that root's Postgres user reaches its cluster below it.
/// Files with secrets have their own modes.
///
/// # Errors
/// When the folder's mode cannot be set.
pub fn open_to_others(folder: &Path) -> anyhow::Result<()> {
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o711))
        .with_context(|| format!("open {}", folder.display()))
}

fn keep(processes: &mut Vec<Process>, (process, url): (Process, String)) -> String {
    processes.push(process);
    url
}
