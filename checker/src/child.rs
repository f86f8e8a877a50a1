//! The child: closes the walls around itself, reads one file, says what it found, ends.

use std::{fs::File, io, process::ExitCode};

use comptoir_domain::dataset::{Facts, Format};
use comptoir_sandbox::{
    self as sandbox,
    limits::{ChildLimits, UsedMemory},
};
use nix::unistd;
use serde::{Deserialize, Serialize};

use crate::{
    formats::{self, Refusal},
    message,
    source::Source,
};

/// What a child is told when it is started.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct CheckArgs {
    /// Its limits and walls
    #[command(flatten)]
    pub limits: ChildLimits,
    /// What the file says that it is
    #[arg(long)]
    pub format: Format,
    /// How long it is
    #[arg(long)]
    pub bytes: u64,
}

/// What a child says at its end.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Found {
    /// The file is what it says it is.
    Facts(Option<Facts>),
    /// It is not.
    Refused(String),
}

/// The whole life of a child process, which must have a single thread.
#[must_use]
pub fn run(args: &CheckArgs) -> ExitCode {
    match check(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("check: {error}");
            ExitCode::FAILURE
        }
    }
}

fn check(args: &CheckArgs) -> io::Result<()> {
    let mut pipe = enclose(&args.limits)?;
    let mut asked = pipe.try_clone()?;
    let source = Source::new(args.bytes, move |at, into| {
        message::ask(&mut asked, &mut io::stdin(), at, into)
    });
    let found = find(args.format, &source)?;
    message::conclude(&mut pipe, &serde_json::to_vec(&found)?)
}

/// Does something else than reading, behind the walls of who reads, and tells what came of it as a refusal: for those who try the walls.
///
/// # Errors
/// When a wall could not be closed, or nobody hears.
pub fn act_enclosed(args: &CheckArgs, act: impl FnOnce() -> String) -> io::Result<()> {
    let mut pipe = enclose(&args.limits)?;
    let told = Found::Refused(act());
    message::conclude(&mut pipe, &serde_json::to_vec(&told)?)
}

/// Reads a file that is at hand as this format, without walls: for those who look for what its readers stumble over.
///
/// # Errors
/// In words, when it is not what it says it is.
///
/// # Panics
/// When a reader asks for what is outside of the file.
pub fn read_at_hand(format: Format, bytes: &[u8]) -> Result<Option<Facts>, String> {
    let held = bytes.to_vec();
    let source = Source::new(held.len() as u64, move |at, into| {
        let asked = usize::try_from(at).ok().and_then(|at| held.get(at..));
        let asked = asked.and_then(|it| it.get(..into.len()));
        into.copy_from_slice(asked.expect("what is asked for is in the file"));
        Ok(())
    });
    match find(format, &source) {
        Ok(Found::Facts(facts)) => Ok(facts),
        Ok(Found::Refused(reason)) => Err(reason),
        Err(error) => Err(error.to_string()),
    }
}

/// What a file is found to be.
fn find(format: Format, source: &Source) -> io::Result<Found> {
    Ok(match formats::read(format, source) {
        Ok(facts) => Found::Facts(facts),
        Err(Refusal::Io(error)) if source.has_failed() => return Err(error),
        // A reader that runs past the end of what it was given.
        Err(Refusal::Io(error)) => Found::Refused(format!("it ends early: {error}")),
        Err(refusal) => Found::Refused(refusal.to_string()),
    })
}

/// Closes the walls before a byte of the file is read; nothing of it can be undone.
fn enclose(limits: &ChildLimits) -> io::Result<File> {
    limits.bind()?;
    let pipe = File::from(unistd::dup(io::stdout())?);
    unistd::dup2_stdout(io::stderr())?;
    // Where the machine grants it: a second wall behind the others.
    let namespaces = sandbox::enter_namespaces();
    let mut used = UsedMemory::open()?;
    if limits.landlock {
        sandbox::prepare_files(&limits.scratch, limits.device)?.close()?;
        if namespaces.is_ok() && sandbox::hide_names().is_err() {
            eprintln!("check: the names of files stay visible");
        }
    }
    limits.limit_memory(&mut used)?;
    if limits.seccomp {
        sandbox::close_syscalls(limits.device)?;
    }
    Ok(pipe)
}
