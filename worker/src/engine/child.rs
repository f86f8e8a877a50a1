//! The child: closes the walls around itself, reads one order, computes, says what happens, ends.

use std::{
    fs::File,
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use comptoir_domain::job::{Device, JobSpec};
use nix::{
    sys::signal::{Signal, raise},
    unistd,
};

use super::{
    failure::{Code, Failure},
    host, infer,
    limits::{ChildLimits, UsedMemory},
    message::{self, Description, Event, JobTask, MessageError, Order, Task},
    train, warm,
};
use crate::{canary, facts, sandbox};

/// Why a task ends before it is done.
#[derive(Debug)]
pub enum Stop {
    /// It was told to.
    Cancelled,
    /// It cannot go on.
    Failed(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// What a task has around it.
pub struct Context<'a> {
    /// Where files go.
    pub scratch: &'a Path,
    /// Where tensors live.
    pub device: tch::Device,
    /// Set when it should stop.
    pub cancelled: &'a AtomicBool,
    /// Takes what happens.
    pub emit: &'a mut dyn FnMut(Event) -> Result<(), Failure>,
}

impl Context<'_> {
    /// Says what happened; the moment to notice that it should stop.
    pub fn emit(&mut self, event: Event) -> Result<(), Stop> {
        (self.emit)(event)?;
        self.check()
    }

    /// Stops if it should.
    pub fn check(&self) -> Result<(), Stop> {
        if self.cancelled.load(Ordering::Relaxed) {
            Err(Stop::Cancelled)
        } else {
            Ok(())
        }
    }
}

/// The whole life of a child process.
#[must_use]
pub fn run(limits: &ChildLimits) -> ExitCode {
    match serve(limits) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("child: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(limits: &ChildLimits) -> Result<(), MessageError> {
    let Enclosed {
        mut pipe,
        device,
        namespaces,
        names_hidden: _,
    } = enclose(limits)?;
    let mut stdin = io::stdin();
    let Some(Order::Start(description)) = message::read(&mut stdin)? else {
        return Err(io::Error::other("the first order must be to start").into());
    };
    if let Task::Host(task) = description.task {
        return host::serve(&task, device, pipe).map_err(|error| io::Error::other(error).into());
    }
    let cancelled = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&cancelled);
    std::thread::Builder::new()
        .name("orders".to_owned())
        .spawn(move || listen(&flag))?;

    let mut emit = |event: Event| {
        let frame = message::encode(&event).map_err(|error| Failure::new(Code::Protocol, error))?;
        pipe.write_all(&frame)
            .map_err(|error| Failure::new(Code::Machine, error))
    };
    let last =
        perform(description, device, namespaces, &cancelled, &mut emit).unwrap_or_else(|stop| {
            match stop {
                Stop::Cancelled => Event::Cancelled,
                Stop::Failed(failure) => Event::Failed(failure),
            }
        });
    emit(last).map_err(|failure| io::Error::other(failure).into())
}

/// A process behind its walls, with libtorch started.
#[derive(Debug)]
pub struct Enclosed {
    /// Where it answers.
    pub pipe: File,
    /// Where tensors live.
    pub device: tch::Device,
    /// Whether it has namespaces of its own.
    pub namespaces: io::Result<()>,
    /// Whether the names of files outside are out of reach too.
    pub names_hidden: bool,
}

/// Starts libtorch and closes the walls, before a byte of a job is read. The order matters: what libtorch reads comes
/// before files are out of reach; threads come after that, since Landlock binds those that are started behind it; memory
/// is limited once libtorch has taken its own; and system calls go last, for all threads at once.
pub fn enclose(limits: &ChildLimits) -> io::Result<Enclosed> {
    limits.bind()?;
    let pipe = take_stdout()?;
    let namespaces = sandbox::enter_namespaces();
    let mut used = UsedMemory::open()?;
    let device = warm::look_around(limits.device).map_err(io::Error::other)?;
    let mut names_hidden = false;
    if limits.landlock {
        sandbox::prepare_files(&limits.scratch, limits.device)?.close()?;
        // CUDA opens devices and libraries while it works.
        names_hidden = limits.device == Device::Cpu && sandbox::hide_names().is_ok();
    }
    warm::start(device, limits.threads).map_err(io::Error::other)?;
    limits.limit_memory(&mut used)?;
    if limits.seccomp {
        sandbox::close_syscalls(limits.device)?;
    }
    Ok(Enclosed {
        pipe,
        device,
        namespaces,
        names_hidden,
    })
}

/// Keeps the pipe to the parent for messages alone: whatever a library prints goes to standard error.
fn take_stdout() -> io::Result<File> {
    let pipe = unistd::dup(io::stdout())?;
    unistd::dup2_stdout(io::stderr())?;
    Ok(File::from(pipe))
}

/// Waits for orders. When the parent's end of the pipe closes, nobody is left to compute for.
fn listen(cancelled: &AtomicBool) {
    while let Ok(Some(Order::Cancel)) = message::read(&mut io::stdin()) {
        cancelled.store(true, Ordering::Relaxed);
    }
    raise(Signal::SIGKILL).expect("a process may end itself");
}

fn perform(
    description: Description,
    device: tch::Device,
    namespaces: io::Result<()>,
    cancelled: &AtomicBool,
    emit: &mut dyn FnMut(Event) -> Result<(), Failure>,
) -> Result<Event, Stop> {
    let mut context = Context {
        scratch: Path::new("."),
        device,
        cancelled,
        emit,
    };
    match description.task {
        Task::Canary => canary::measure(description.device, device, description.threads)
            .map(Event::Class)
            .map_err(|error| {
                Failure::from_aten(Code::Machine, "run the canary suite", &error).into()
            }),
        Task::Job(job) => perform_job(&job, &mut context),
        Task::Facts => facts::collect(namespaces.err().map(|error| error.to_string()))
            .map(Event::Facts)
            .map_err(|error| Failure::from_aten(Code::Machine, "look around", &error).into()),
        Task::Host(_) => unreachable!("a host has been served where the order was read"),
    }
}

fn perform_job(job: &JobTask, context: &mut Context<'_>) -> Result<Event, Stop> {
    let outputs = match &job.spec {
        JobSpec::Training(spec) => train::train(spec, job, context)?,
        JobSpec::Inference(spec) => infer::infer(spec, job, context)?,
    };
    Ok(Event::Done { outputs })
}
