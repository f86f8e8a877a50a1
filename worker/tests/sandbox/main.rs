//! What a child that has turned hostile can do to the machine around it: nothing.
//!
//! This binary is both sides. Started as `child`, it closes the walls exactly as the worker's child does and then, in
//! place of a job, tries to get out; what it achieved it writes into its scratch folder, where the other side reads it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod hostile;
mod probes;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("child") {
        hostile::run(hostile::Arguments::parse());
        return ExitCode::SUCCESS;
    }
    let arguments = libtest_mimic::Arguments::from_args();
    libtest_mimic::run(&arguments, probes::all()).exit_code()
}
