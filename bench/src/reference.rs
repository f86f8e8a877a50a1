//! What the same server does with pgbench in the same minute: TPC-B, or one row inserted in each transaction.

use std::io::Write as _;

use anyhow::{Context as _, ensure};
use sqlx::{Executor as _, PgPool, postgres::PgConnectOptions};
use tokio::process::Command;

use crate::place::{create_database, drop_database};

/// Rows of pgbench's tables, in units of 100,000 accounts.
const SCALE: &str = "10";
/// The row that a client of ours would insert without us.
const INSERT: &str = "INSERT INTO jobs_plain (account, body) VALUES (:client_id, '{\"program\":\"00000000000000000000000000000000\"}');\n";
/// The table of [`INSERT`].
pub const PLAIN_TABLE: &str = "CREATE TABLE jobs_plain (id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY, account bigint NOT NULL, \
     body jsonb NOT NULL, created_at timestamptz NOT NULL DEFAULT now())";

/// A database with pgbench's tables, and one table of plain rows.
pub struct Reference {
    admin: PgConnectOptions,
    database: String,
    insert: tempfile::NamedTempFile,
    /// Connections to it.
    pub db: PgPool,
}

impl Reference {
    /// Fills the tables.
    pub async fn make(admin: &PgConnectOptions) -> anyhow::Result<Self> {
        let database = create_database(admin, "reference").await?;
        let db = PgPool::connect_with(admin.clone().database(&database)).await?;
        db.execute(PLAIN_TABLE).await?;
        let mut insert = tempfile::NamedTempFile::new()?;
        insert.write_all(INSERT.as_bytes())?;
        let reference = Self {
            admin: admin.clone(),
            database,
            insert,
            db,
        };
        reference
            .pgbench(&["--initialize", "--quiet", "--scale", SCALE])
            .await?;
        Ok(reference)
    }

    /// TPC-B transactions in a second.
    pub async fn tpcb(&self, clients: usize, seconds: u32) -> anyhow::Result<f64> {
        self.tps(&[], clients, seconds).await
    }

    /// Rows inserted in a second, one in each transaction.
    pub async fn inserts(&self, clients: usize, seconds: u32) -> anyhow::Result<f64> {
        let file = self.insert.path().to_str().context("a plain path")?;
        self.tps(&["--no-vacuum", "--file", file], clients, seconds)
            .await
    }

    /// Transactions in a second, prepared as those who know pgbench advise.
    async fn tps(&self, what: &[&str], clients: usize, seconds: u32) -> anyhow::Result<f64> {
        let (clients, seconds) = (clients.to_string(), seconds.to_string());
        let how = [
            "--protocol",
            "prepared",
            "--client",
            &clients,
            "--jobs",
            "2",
            "--time",
            &seconds,
        ];
        let told = self.pgbench(&[what, &how].concat()).await?;
        let tps = told
            .lines()
            .find_map(|line| line.strip_prefix("tps = ")?.split_whitespace().next());
        Ok(tps.context("pgbench names its tps")?.parse()?)
    }

    /// Drops the database.
    pub async fn clear(self) -> anyhow::Result<()> {
        self.db.close().await;
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
            .context("run pgbench, which Debian has in postgresql")?;
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
