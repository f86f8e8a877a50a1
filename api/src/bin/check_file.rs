//! The child that reads a file of a dataset: what `comptoir check-file` does, for tests of this crate.

use std::process::ExitCode;

use clap::Parser;
use comptoir_checker::child::{self, CheckArgs};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    check: CheckArgs,
}

fn main() -> ExitCode {
    child::run(&Cli::parse().check)
}
