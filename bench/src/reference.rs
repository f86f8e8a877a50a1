//! What the same server does with pgbench's TPC-B in the same minute.

use anyhow::{Context as _, ensure};
use sqlx::postgres::PgConnectOptions;
use tokio::process::Command;

use crate::place::{create_database, drop_database};

/// Rows of pgbench's tables, in units of 100,000 accounts.
const SCALE: &str = "10";

/// A database with pgbench's tables.
pub struct Reference {
    admin: PgConnectOptions,
    database: String,
}

impl Reference {
    /// Fills the tables.
    pub async fn make(admin: &PgConnectOptions) -> anyhow::Result<Self> {
        let database = create_database(admin, "tpcb").await?;
        let reference = Self {
            admin: admin.clone(),
            database,
        };
        reference
            .pgbench(&["--initialize", "--quiet", "--scale", SCALE])
            .await?;
        Ok(reference)
    }

    /// Transactions in a second.
    pub async fn run(&self, clients: usize, seconds: u32) -> anyhow::Result<f64> {
        let (clients, seconds) = (clients.to_string(), seconds.to_string());
        let told = self
            .pgbench(&["--client", &clients, "--jobs", "2", "--time", &seconds])
            .await?;
        let tps = told
            .lines()
            .find_map(|line| line.strip_prefix("tps = ")?.split_whitespace().next());
        Ok(tps.context("pgbench names its tps")?.parse()?)
    }

    /// Drops the database.
    pub async fn clear(self) -> anyhow::Result<()> {
        drop_database(&self.admin, &self.database).await
    }

    async fn pgbench(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new("pgbench");
        // libpq reads the password from the environment, where other users do not see it.
        if let Some(password) = password() {
            command.env("PGPASSWORD", password);
        }
        command
            .args(["--host", self.admin.get_host()])
            .args(["--port", &self.admin.get_port().to_string()])
            .args(["--username", self.admin.get_username()])
            .args(arguments)
            .arg(&self.database);
        let output = command
            .output()
            .await
            .context("run pgbench, which Debian has in postgresql-contrib")?;
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "pgbench: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(told)
    }
}

/// The password in `DATABASE_URL`.
fn password() -> Option<String> {
    let url: url::Url = std::env::var("DATABASE_URL").ok()?.parse().ok()?;
    url.password().map(str::to_owned)
}
