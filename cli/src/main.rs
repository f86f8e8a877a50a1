//! The `comptoir` binary.

use std::{io::IsTerminal as _, process::ExitCode};

use clap::Parser as _;
use comptoir_cli::{
    args::{Cli, Command},
    exit, output, run,
};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Whoever reads a stranger's file has one thread, and no file open: nothing is started there.
    if let Command::CheckFile(args) = &cli.command {
        return comptoir_checker::child::run(args);
    }
    start(cli)
}

#[tokio::main]
async fn start(cli: Cli) -> ExitCode {
    start_logging(&cli.command);
    match run(cli).await {
        Ok(code) => code,
        Err(error) => {
            output::tell(format_args!("{error:#}"));
            exit::code_of(&error)
        }
    }
}

/// Services log as JSON lines; what runs in a terminal logs for people. The demo logs to a file of its own.
fn start_logging(command: &Command) {
    let default = match command {
        Command::Demo(_) => return,
        Command::Serve(_) | Command::Up(_) | Command::Guardian(_) | Command::Watcher(_) => "info",
        _ => "warn",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    if matches!(
        command,
        Command::Serve(_) | Command::Guardian(_) | Command::Watcher(_)
    ) {
        logs.json().init();
    } else {
        logs.init();
    }
}
