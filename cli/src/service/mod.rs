//! Running the services: what each takes from the environment, and how it is put together.

pub mod api;
mod clock;
pub mod config;
pub mod parts;
pub mod scheduler;
pub mod settler;

use anyhow::Context as _;
use comptoir_store::{MIGRATOR, pool};
use sqlx::{Connection as _, PgConnection};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

pub use clock::now;

/// Brings the database that `DATABASE_URL` names up to date.
///
/// # Errors
/// When the variable is not set, or a migration fails.
pub async fn migrate() -> anyhow::Result<()> {
    let url = std::env::var("DATABASE_URL").context("DATABASE_URL is not set")?;
    migrate_at(&url).await
}

/// Makes the database that a URL names, and brings it up to date.
///
/// # Errors
/// When the server does not answer, or a migration fails.
pub async fn migrate_at(url: &str) -> anyhow::Result<()> {
    pool::create_database(url)
        .await
        .context("create the database")?;
    let mut connection = PgConnection::connect(url)
        .await
        .context("connect to the database")?;
    MIGRATOR
        .run(&mut connection)
        .await
        .context("migrate the database")?;
    connection.close().await?;
    Ok(())
}

/// Cancelled by the first SIGINT or SIGTERM.
///
/// # Errors
/// When the signals cannot be caught.
pub fn until_signal() -> anyhow::Result<CancellationToken> {
    let token = CancellationToken::new();
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    let cancelled = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        cancelled.cancel();
    });
    Ok(token)
}
