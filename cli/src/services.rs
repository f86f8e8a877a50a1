//! The backing services alone, for a command that needs them: the test suite, a generator.

use std::process::ExitCode;

use anyhow::Context as _;
use tokio::process::Command;

use crate::{
    args::ServicesArgs,
    embedded::{Embedded, Provided},
};

/// Starts them, runs the command with their URLs, stops them, and ends as the command did.
///
/// # Errors
/// When a service does not start or stop, or the command cannot be run.
pub async fn run(args: ServicesArgs) -> anyhow::Result<ExitCode> {
    let temporary = tempfile::Builder::new().prefix("comptoir-").tempdir()?;
    crate::embedded::open_to_others(temporary.path())?;
    let folder = args.folder.as_deref().unwrap_or(temporary.path());
    let services = Embedded::start(folder, Provided::default()).await?;
    let (program, arguments) = args.command.split_first().context("no command given")?;
    let ended = Command::new(program)
        .args(arguments)
        .env("DATABASE_URL", &services.urls.database)
        .env("REDIS_URL", &services.urls.redis)
        .env("ETH_RPC_URL", &services.urls.ethereum)
        .status()
        .await
        .with_context(|| format!("run {program}"));
    services.stop().await?;
    let code = ended?.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
