//! `doctor`: what is needed here, and what was found.

use std::path::Path;

use comptoir_domain::job::Device;
use nix::sys::resource::{Resource, getrlimit};
use serde::Serialize;

use super::{
    client::{Client, Server},
    folder::{self, Folder, FolderError, Identity},
    measure,
};
use crate::{
    engine::{Launcher, limits},
    facts::{Facts, LIBTORCH_EXPECTED},
    sandbox::{Features, Sandbox, Wall},
};

/// How one thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// As it must be.
    Ok,
    /// To know.
    Info,
    /// The worker does not run without.
    Missing,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What it is.
    pub name: &'static str,
    /// How it stands.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What is needed, if it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub needed: Option<String>,
}

/// Everything that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnosis {
    /// Can a worker run here?
    pub ok: bool,
    /// Thing by thing.
    pub checks: Vec<Check>,
}

impl Diagnosis {
    /// As a table.
    #[must_use]
    pub fn to_table(&self) -> String {
        use std::fmt::Write as _;
        let width = self
            .checks
            .iter()
            .map(|check| check.name.len())
            .max()
            .unwrap_or(0);
        let mut table = String::new();
        for check in &self.checks {
            let sign = match check.status {
                Status::Ok => "ok",
                Status::Info => "--",
                Status::Missing => "!!",
            };
            let needed = check
                .needed
                .as_ref()
                .map_or_else(String::new, |needed| format!("  (needed: {needed})"));
            writeln!(
                table,
                "{sign}  {:width$}  {}{needed}",
                check.name, check.found
            )
            .expect("a string takes everything");
        }
        table
    }
}

#[derive(Default)]
struct Checks(Vec<Check>);

impl Checks {
    fn add(&mut self, name: &'static str, status: Status, found: impl Into<String>) {
        self.0.push(Check {
            name,
            status,
            found: found.into(),
            needed: None,
        });
    }

    fn missing(&mut self, name: &'static str, found: impl Into<String>, needed: impl Into<String>) {
        self.0.push(Check {
            name,
            status: Status::Missing,
            found: found.into(),
            needed: Some(needed.into()),
        });
    }

    /// What is as it must be, or is needed.
    fn require(
        &mut self,
        name: &'static str,
        holds: bool,
        found: impl Into<String>,
        needed: impl Into<String>,
    ) {
        if holds {
            self.add(name, Status::Ok, found);
        } else {
            self.missing(name, found, needed);
        }
    }
}

/// Looks at everything. `root` is the worker's folder, joined or not.
pub async fn examine(root: &Path, launcher: &Launcher) -> Diagnosis {
    let mut checks = Checks::default();
    checks.add("worker", Status::Ok, env!("CARGO_PKG_VERSION"));
    let identity = match folder::read_identity(root) {
        Ok(identity) => Some(identity),
        Err(FolderError::NotJoined(_)) => None,
        Err(error) => {
            checks.missing("identity", error.to_string(), "a file that `join` wrote");
            None
        }
    };
    examine_machine(identity.as_ref(), launcher, &mut checks).await;
    examine_limits(&mut checks);
    examine_walls(launcher.sandbox(), &mut checks);
    match identity {
        Some(identity) => examine_server(&identity, root, &mut checks).await,
        None => checks.add(
            "server",
            Status::Info,
            format!("not joined ({})", root.display()),
        ),
    }
    let ok = checks.0.iter().all(|check| check.status != Status::Missing);
    Diagnosis {
        ok,
        checks: checks.0,
    }
}

async fn examine_machine(identity: Option<&Identity>, launcher: &Launcher, checks: &mut Checks) {
    let memory = measure::machine_memory_bytes();
    checks.require(
        "memory",
        memory.is_some(),
        memory.map_or("unknown".to_owned(), mebibytes),
        "/proc/meminfo",
    );
    let scratch = match tempfile::tempdir() {
        Ok(scratch) => scratch,
        Err(error) => {
            return checks.missing("scratch", error.to_string(), "a folder for temporary files");
        }
    };
    let found = match measure::facts(launcher, scratch.path()).await {
        Ok(found) => found,
        Err(error) => {
            return checks.missing(
                "libtorch",
                error.to_string(),
                format!("libtorch {LIBTORCH_EXPECTED}"),
            );
        }
    };
    checks.require(
        "libtorch",
        found.libtorch == LIBTORCH_EXPECTED,
        &found.libtorch,
        LIBTORCH_EXPECTED,
    );
    checks.add(
        "libtorch build",
        Status::Info,
        &found.libtorch_build.to_string()[..16],
    );
    checks.add("cpu", Status::Info, measure::device_name(Device::Cpu));
    checks.add("cpu capability", Status::Info, &found.cpu_capability);
    checks.add("cpu threads", Status::Info, found.cpu_threads.to_string());
    examine_namespaces(&found, checks);
    let device = identity.map_or(Device::Cpu, |identity| identity.facts.device);
    examine_cuda(&found, device, checks);
    let threads = identity.map_or(1, |identity| {
        u16::try_from(identity.facts.threads).unwrap_or(u16::MAX)
    });
    match (
        measure::class(launcher, device, threads, scratch.path()).await,
        identity,
    ) {
        (Err(error), _) => checks.missing(
            "numeric class",
            error.to_string(),
            "a canary suite that runs",
        ),
        (Ok(class), None) => checks.add("numeric class", Status::Info, class.to_string()),
        (Ok(class), Some(identity)) => {
            let (class, joined) = (class.to_string(), &identity.facts.numeric_class);
            checks.require(
                "numeric class",
                class == *joined,
                &class,
                format!("{joined}, as the worker joined"),
            );
        }
    }
}

/// The wall that jobs can do without.
fn examine_namespaces(found: &Facts, checks: &mut Checks) {
    match &found.namespaces_missing {
        None => checks.add(
            "namespaces",
            Status::Ok,
            "user, network, ipc, uts; names outside are hidden from jobs",
        ),
        Some(reason) => {
            let found = format!("none ({reason}); the other walls do without");
            checks.add("namespaces", Status::Info, found);
        }
    }
}

fn examine_cuda(found: &Facts, device: Device, checks: &mut Checks) {
    let devices: Vec<String> = found
        .cuda_memory_bytes
        .iter()
        .map(|bytes| mebibytes(*bytes))
        .collect();
    match (&found.cuda_missing, device) {
        (None, _) => checks.add(
            "cuda",
            Status::Ok,
            format!("{} of {}", devices.len(), devices.join(", ")),
        ),
        (Some(reason), Device::Cpu) => checks.add("cuda", Status::Info, format!("none: {reason}")),
        (Some(reason), Device::Cuda) => {
            checks.missing("cuda", reason, "the device that the worker joined with");
        }
    }
}

/// Limits that a child sets must lie within those of this process.
fn examine_limits(checks: &mut Checks) {
    let hard = getrlimit(Resource::RLIMIT_NOFILE).map(|(_, hard)| hard);
    let found = hard.map_or_else(|error| error.to_string(), |hard| hard.to_string());
    let needed = format!("at least {}", limits::FILES_MAX);
    checks.require(
        "open files",
        hard.is_ok_and(|hard| hard >= limits::FILES_MAX),
        found,
        needed,
    );
    checks.add(
        "rlimits",
        Status::Ok,
        "memory, processor time, file size, open files, processes",
    );
}

/// The walls around jobs: those that are needed are missing unless the owner does without.
fn examine_walls(sandbox: Sandbox, checks: &mut Checks) {
    let Features { landlock, seccomp } = sandbox.features;
    let landlock = landlock.map(|version| format!("interface {version}"));
    let seccomp = seccomp.then(|| "a filter on every thread".to_owned());
    for (name, wall, found) in [
        ("landlock", Wall::Landlock, landlock),
        ("seccomp", Wall::Seccomp, seccomp),
    ] {
        match found {
            Some(found) => checks.add(name, Status::Ok, found),
            None if sandbox.allow_unsandboxed => checks.add(name, Status::Info, "not available"),
            None => checks.missing(name, "not available", wall.needs()),
        }
    }
    match (sandbox.is_complete(), sandbox.check()) {
        (true, _) => checks.add("sandbox", Status::Ok, "jobs are walled in"),
        (false, Ok(())) => checks.add(
            "sandbox",
            Status::Info,
            "NOT COMPLETE: jobs run unsandboxed, as --allow-unsandboxed says",
        ),
        (false, Err(_)) => checks.missing(
            "sandbox",
            "not complete: jobs are refused",
            "the walls above, or --allow-unsandboxed",
        ),
    }
}

async fn examine_server(identity: &Identity, root: &Path, checks: &mut Checks) {
    checks.add(
        "identity",
        Status::Ok,
        format!("{} ({})", identity.worker_id, identity.name),
    );
    let server = match Server::new(identity.url.clone()) {
        Ok(server) => server,
        Err(error) => {
            return checks.missing("server", error.to_string(), "a client that can call it");
        }
    };
    match server.version().await {
        Ok(version) => checks.add(
            "server",
            Status::Ok,
            format!("{version} at {}", identity.url),
        ),
        Err(error) => {
            return checks.missing(
                "server",
                error.to_string(),
                format!("an answer from {}", identity.url),
            );
        }
    }
    // Asking for a token uses the key, which the running worker owns.
    let key = match Folder::open(root).and_then(|folder| folder.key()) {
        Ok(key) => key,
        Err(FolderError::InUse(_)) => {
            return checks.add(
                "token",
                Status::Info,
                "not asked for: the worker is running",
            );
        }
        Err(error) => {
            return checks.missing("token", error.to_string(), "the key that `join` made");
        }
    };
    match Client::new(server, identity.worker_id, key)
        .token(None)
        .await
    {
        Ok(_) => checks.add("token", Status::Ok, "the server knows this worker"),
        Err(error) => checks.missing("token", error.to_string(), "a token from the server"),
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}
