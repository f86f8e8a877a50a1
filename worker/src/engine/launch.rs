//! Starts children: their environment, their folder, their limits.

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    process::Stdio,
};

use comptoir_domain::job::Device;
use tokio::process::{Child, Command};

use super::{
    host::{Host, HostTask},
    job::Job,
    limits::Limits,
    message::{Description, Task},
};
use crate::sandbox::Sandbox;

/// What a child sees of the worker's environment: where libraries and devices are, and which instructions to use.
const INHERITED: [&str; 6] = [
    "LD_LIBRARY_PATH",
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
];

/// How children are started.
#[derive(Debug, Clone)]
pub struct Launcher {
    executable: PathBuf,
    environment: Vec<(OsString, OsString)>,
    sandbox: Sandbox,
}

impl Launcher {
    /// Children of an executable that knows the verb `child`, with what they may see of this environment, behind the
    /// walls that this machine offers.
    #[must_use]
    pub fn new(executable: PathBuf) -> Self {
        let inherit = |name: &str| Some((name.into(), std::env::var_os(name)?));
        Self {
            executable,
            environment: INHERITED.into_iter().filter_map(inherit).collect(),
            sandbox: Sandbox::detect(false),
        }
    }

    /// Children of the running executable.
    pub fn current() -> io::Result<Self> {
        std::env::current_exe().map(Self::new)
    }

    /// Sets a variable for children.
    #[must_use]
    pub fn with(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        let name = name.into();
        self.environment.retain(|(present, _)| *present != name);
        self.environment.push((name, value.into()));
        self
    }

    /// Other walls than those that were found.
    #[must_use]
    pub fn behind(mut self, sandbox: Sandbox) -> Self {
        self.sandbox = sandbox;
        self
    }

    /// The walls around children.
    #[must_use]
    pub const fn sandbox(&self) -> Sandbox {
        self.sandbox
    }

    /// Starts a child in a scratch folder. A job is not started where walls are missing and the owner did not say that
    /// it may be. A child that only looks around is not walled in: it looks for devices, and reads nothing of a job.
    ///
    /// Call it on a thread that lives as long as the runtime (a task, not `spawn_blocking`): the kernel ends a child with
    /// the thread that started it.
    pub fn spawn(
        &self,
        limits: Limits,
        description: Description,
        scratch: &Path,
    ) -> io::Result<Job> {
        let scratch = scratch.canonicalize()?;
        let child = self.start(limits, &description, &scratch)?;
        Ok(Job::supervise(child, limits, description, scratch))
    }

    /// Starts a child that hosts a model, from the files of a scratch folder; otherwise as `spawn`.
    pub fn host(
        &self,
        limits: Limits,
        (device, threads): (Device, u16),
        task: HostTask,
        scratch: &Path,
    ) -> io::Result<Host> {
        let description = Description {
            task: Task::Host(task),
            device,
            threads,
        };
        let limits = Host::limits(limits);
        let scratch = scratch.canonicalize()?;
        let child = self.start(limits, &description, &scratch)?;
        Ok(Host::supervise(child, limits, description))
    }

    fn start(
        &self,
        limits: Limits,
        description: &Description,
        scratch: &Path,
    ) -> io::Result<Child> {
        let walls = match description.task {
            Task::Facts => Vec::new(),
            Task::Canary => self.sandbox.arguments(),
            Task::Job(_) | Task::Host(_) => {
                self.sandbox.check().map_err(io::Error::other)?;
                self.sandbox.arguments()
            }
        };
        Command::new(&self.executable)
            .arg("child")
            .args(limits.arguments(description.device, description.threads, scratch))
            .args(walls)
            .env_clear()
            .envs(environment(scratch, description.threads))
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(scratch)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
    }
}

fn environment(scratch: &Path, threads: u16) -> [(&'static str, OsString); 8] {
    [
        ("HOME", scratch.into()),
        ("TMPDIR", scratch.into()),
        ("LANG", "C".into()),
        ("OMP_NUM_THREADS", threads.to_string().into()),
        ("MKL_NUM_THREADS", threads.to_string().into()),
        ("MKL_DYNAMIC", "FALSE".into()),
        // What cuBLAS needs to give the same result twice.
        ("CUBLAS_WORKSPACE_CONFIG", ":4096:8".into()),
        ("NVIDIA_TF32_OVERRIDE", "0".into()),
    ]
}
