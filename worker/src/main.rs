//! The worker's verbs.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand, ValueEnum};
use comptoir_domain::{amount::Amount, job::Device, join_token::JoinToken};
use comptoir_worker::{
    daemon::{
        cache::CACHE_BYTES,
        display::Display,
        doctor,
        folder::default_folder,
        join::{self, JoinOptions},
        measure,
        run::{self, RunOptions},
    },
    engine::{ChildLimits, Launcher, child},
    sandbox::Sandbox,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use url::Url;

/// Runs jobs for a Comptoir service on libtorch
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Trade a join token for a worker identity, kept in a folder
    Join(JoinArguments),
    /// Run jobs until told to stop
    ///
    /// On SIGTERM or SIGINT the worker asks for nothing more and gives back what still computes; what is computed is
    /// delivered for at most 30 seconds. A second signal ends it at once.
    Run(RunArguments),
    /// Say what is needed here and what was found; exit status 1 if something is missing
    Doctor(DoctorArguments),
    /// The process of one job; the worker starts it by itself
    #[command(hide = true)]
    Child(ChildLimits),
}

#[derive(Args)]
struct FolderArgument {
    /// The worker's folder [default: comptoir-worker in the user's data folder]
    #[arg(long = "folder", value_name = "DIR")]
    path: Option<PathBuf>,
}

#[derive(Args)]
struct JoinArguments {
    /// The service for workers
    #[arg(long)]
    url: Url,
    /// The join token, from the owner's account
    #[arg(long, env = "COMPTOIR_JOIN_TOKEN", hide_env_values = true)]
    token: JoinToken,
    /// What to call the worker [default: the name of this machine]
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    folder: FolderArgument,
    /// What jobs run on
    #[arg(long, value_enum, default_value_t = DeviceArgument::Cpu)]
    device: DeviceArgument,
    /// Threads of each job; results are confirmed by workers with as many
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
    /// Memory of each job, in bytes [default: half of the machine's, or all of the GPU's]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..=(1 << 53) - 1))]
    memory: Option<u64>,
    /// The lowest rate to work for, in nano base units per 10^9 multiply-adds
    #[arg(long, value_name = "N", default_value = "0")]
    price_floor_nano: Amount,
    #[command(flatten)]
    walls: WallsArgument,
}

#[derive(Args)]
struct RunArguments {
    #[command(flatten)]
    folder: FolderArgument,
    /// Jobs at a time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    slots: u16,
    /// Memory of each job, in bytes [default: as it joined]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    memory: Option<u64>,
    /// Memory of all models that are hosted for calls, in bytes; 0: host none [default: that of one job, as far as jobs leave it]
    #[arg(long, value_name = "BYTES")]
    host_memory: Option<u64>,
    /// Inputs that are kept for later jobs, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = CACHE_BYTES)]
    cache: u64,
    #[command(flatten)]
    walls: WallsArgument,
}

#[derive(Args)]
struct DoctorArguments {
    #[command(flatten)]
    folder: FolderArgument,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    walls: WallsArgument,
}

#[derive(Args)]
struct WallsArgument {
    /// Take jobs of strangers although this machine cannot wall them in (see `doctor`): they may then read what this
    /// user may read, and use its network. The service is told
    #[arg(long)]
    allow_unsandboxed: bool,
}

impl WallsArgument {
    fn launcher(&self) -> anyhow::Result<Launcher> {
        Ok(Launcher::current()?.behind(Sandbox::detect(self.allow_unsandboxed)))
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum DeviceArgument {
    Cpu,
    Cuda,
}

impl FolderArgument {
    fn path(&self) -> anyhow::Result<PathBuf> {
        Ok(match &self.path {
            Some(path) => path.clone(),
            None => default_folder()?,
        })
    }
}

fn main() -> ExitCode {
    let verb = match Arguments::parse().verb {
        // Nothing of the daemon is started in a child.
        Verb::Child(limits) => return child::run(&limits),
        verb => verb,
    };
    match perform(verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("comptoir-worker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(verb: Verb) -> anyhow::Result<ExitCode> {
    let display = Display::for_stderr();
    display.start_log();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    match verb {
        Verb::Join(arguments) => runtime.block_on(runtime.spawn(join(arguments)))?,
        Verb::Run(arguments) => runtime.block_on(runtime.spawn(run(arguments, display)))?,
        Verb::Doctor(arguments) => runtime.block_on(runtime.spawn(examine(arguments)))?,
        Verb::Child(limits) => Ok(child::run(&limits)),
    }
}

async fn join(arguments: JoinArguments) -> anyhow::Result<ExitCode> {
    let launcher = arguments.walls.launcher()?;
    let options = JoinOptions {
        url: arguments.url,
        token: arguments.token,
        name: arguments.name.unwrap_or_else(measure::host_name),
        folder: arguments.folder.path()?,
        device: match arguments.device {
            DeviceArgument::Cpu => Device::Cpu,
            DeviceArgument::Cuda => Device::Cuda,
        },
        threads: arguments.threads,
        memory_bytes: arguments.memory,
        price_floor_nano: arguments.price_floor_nano,
    };
    let identity = join::join(&options, &launcher).await?;
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{} joined {} as {}",
        identity.name, identity.url, identity.worker_id
    )?;
    writeln!(
        out,
        "numeric class {}, folder {}",
        identity.facts.numeric_class,
        options.folder.display()
    )?;
    Ok(ExitCode::SUCCESS)
}

async fn run(arguments: RunArguments, display: Display) -> anyhow::Result<ExitCode> {
    let launcher = arguments.walls.launcher()?;
    let options = RunOptions {
        folder: arguments.folder.path()?,
        slots: arguments.slots,
        memory_bytes: arguments.memory,
        cache_bytes: arguments.cache,
        host_memory_bytes: arguments.host_memory,
    };
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let asked = stop.clone();
    tokio::spawn(async move {
        for times in 0.. {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if times > 0 {
                // Children end with this process.
                std::process::exit(130);
            }
            asked.cancel();
        }
    });
    run::run(&options, launcher, display, stop).await?;
    Ok(ExitCode::SUCCESS)
}

async fn examine(arguments: DoctorArguments) -> anyhow::Result<ExitCode> {
    let launcher = arguments.walls.launcher()?;
    let diagnosis = doctor::examine(&arguments.folder.path()?, &launcher).await;
    let mut out = std::io::stdout().lock();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &diagnosis)?;
        writeln!(out)?;
    } else {
        write!(out, "{}", diagnosis.to_table())?;
    }
    Ok(if diagnosis.ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
