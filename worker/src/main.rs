//! The worker's verbs.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use comptoir_worker::engine::{ChildLimits, child};

/// Runs jobs for a Comptoir service on libtorch
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// The process of one job; the worker starts it by itself
    #[command(hide = true)]
    Child(ChildLimits),
}

fn main() -> ExitCode {
    match Arguments::parse().verb {
        Verb::Child(limits) => child::run(&limits),
    }
}
