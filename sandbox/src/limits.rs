//! What a child may use, set by itself before it reads a byte of a job.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Read as _, Seek as _},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use comptoir_domain::job::Device;
use nix::{
    libc,
    sys::{
        prctl,
        resource::{Resource, setrlimit},
        signal::Signal,
    },
    unistd::{Pid, Uid, getppid},
};

/// Open files of a child: libtorch's libraries, blobs, outputs.
pub const FILES_MAX: u64 = 512;
/// Threads of a child beyond those it computes with.
pub const TASKS_MAX: u64 = 128;
/// Bytes of one file that a child writes, unless told otherwise.
pub const FILE_BYTES_MAX: u64 = 16 << 30;
/// Processor time beyond wall time times threads, for start and end.
const CPU_SECONDS_SPARE: u64 = 60;
/// Writable memory that the CUDA runtime maps on the host beside what a job asks for.
const CUDA_HOST_BYTES: u64 = 8 << 30;
/// Resident memory of libtorch itself, before it sees a byte of a job: it takes a third of this.
const RESIDENT_SPARE_BYTES: u64 = 512 << 20;
/// Stack of the main thread, and of those that a child starts later.
const STACK_BYTES: u64 = 8 << 20;
/// Threads that a child starts once its memory is counted: the one that listens, and one to spare.
const LATER_THREADS: u64 = 2;

/// The limits of one child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Memory of the job. What libtorch takes to start, before it sees a byte of the job, comes on top.
    pub memory_bytes: u64,
    /// From start to end.
    pub wall: Duration,
    /// The largest file it writes.
    pub file_bytes: u64,
}

/// How many files of the largest size a child may add to its scratch folder: what it makes, and what waits to be
/// uploaded.
pub const LARGEST_FILES_MAX: u64 = 8;

/// The limits as the child's own arguments.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct ChildLimits {
    /// Memory of the job, beyond what libtorch itself takes
    #[arg(long)]
    pub memory_bytes: u64,
    /// Processor time
    #[arg(long)]
    pub cpu_seconds: u64,
    /// The largest file
    #[arg(long)]
    pub file_bytes: u64,
    /// What computes
    #[arg(long, value_parser = device)]
    pub device: Device,
    /// Threads that compute
    #[arg(long)]
    pub threads: u16,
    /// The process whose end is this one's end
    #[arg(long)]
    pub parent: i32,
    /// The only folder whose files are its own
    #[arg(long)]
    pub scratch: PathBuf,
    /// No file but those of the scratch folder
    #[arg(long)]
    pub landlock: bool,
    /// No system call that a computation does not need
    #[arg(long)]
    pub seccomp: bool,
}

fn device(text: &str) -> Result<Device, &'static str> {
    Device::parse(text).ok_or("no such device")
}

/// What a device's runtime takes on the host, beside the job.
const fn reserve(device: Device) -> u64 {
    match device {
        Device::Cpu => 0,
        Device::Cuda => CUDA_HOST_BYTES,
    }
}

impl Limits {
    /// The resident memory that a child may reach, seen from outside. Its own limit counts private pages alone and stands in its
    /// way before that; this one holds for shared pages too, under CUDA, and where walls are missing.
    #[must_use]
    pub const fn resident_bytes(&self, device: Device) -> u64 {
        self.memory_bytes
            .saturating_add(reserve(device))
            .saturating_add(RESIDENT_SPARE_BYTES)
    }

    /// The arguments that set them.
    #[must_use]
    pub fn arguments(&self, device: Device, threads: u16, scratch: &Path) -> Vec<OsString> {
        let reserve = reserve(device);
        let cpu_seconds = self
            .wall
            .as_secs()
            .saturating_mul(u64::from(threads))
            .saturating_add(CPU_SECONDS_SPARE);
        let arguments = [
            ("memory-bytes", self.memory_bytes.saturating_add(reserve)),
            ("cpu-seconds", cpu_seconds),
            ("file-bytes", self.file_bytes),
            ("threads", u64::from(threads)),
            ("parent", u64::from(std::process::id())),
        ];
        let mut arguments: Vec<OsString> = arguments
            .iter()
            .map(|(name, value)| format!("--{name}={value}").into())
            .collect();
        arguments.push(format!("--device={device}").into());
        arguments.push("--scratch".into());
        arguments.push(scratch.into());
        arguments
    }
}

impl ChildLimits {
    /// Binds this process to its parent and to its limits but that of memory. Nothing of it can be undone.
    pub fn bind(&self) -> io::Result<()> {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        if getppid() != Pid::from_raw(self.parent) {
            return Err(io::Error::other("the parent has already ended"));
        }
        prctl::set_no_new_privs()?;
        close_files()?;
        // Should the machine run out of memory all the same, the kernel ends the job, not the worker.
        fs::write("/proc/self/oom_score_adj", "1000")?;
        let tasks = tasks_of_user()?
            .saturating_add(u64::from(self.threads))
            .saturating_add(TASKS_MAX);
        for (resource, limit) in [
            (Resource::RLIMIT_CORE, 0),
            (Resource::RLIMIT_NOFILE, FILES_MAX),
            (Resource::RLIMIT_FSIZE, self.file_bytes),
            (Resource::RLIMIT_STACK, STACK_BYTES),
            (Resource::RLIMIT_NPROC, tasks),
        ] {
            setrlimit(resource, limit, limit)?;
        }
        // The soft limit ends it with SIGXCPU, which says why; the hard one follows if it does not end.
        setrlimit(
            Resource::RLIMIT_CPU,
            self.cpu_seconds,
            self.cpu_seconds.saturating_add(5),
        )?;
        // No core dump even where a program collects them, and no process of the same user may look inside.
        prctl::set_dumpable(false)?;
        Ok(())
    }

    /// Limits memory to what the job may have beyond what is used now. Counted are private writable pages, on the heap
    /// and mapped; libraries and reserved addresses are not.
    pub fn limit_memory(&self, used: &mut UsedMemory) -> io::Result<()> {
        let memory = used
            .bytes()?
            .saturating_add(self.memory_bytes)
            .saturating_add(STACK_BYTES * LATER_THREADS);
        Ok(setrlimit(Resource::RLIMIT_DATA, memory, memory)?)
    }
}

/// Closes every file but the three that the parent gave.
#[expect(
    unsafe_code,
    reason = "no wrapper of this call is safe: it may close files that somebody owns"
)]
fn close_files() -> io::Result<()> {
    // SAFETY: called first in `main`, when this process owns no file but the three that stay open.
    match unsafe { libc::close_range(3, libc::c_uint::MAX, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What `RLIMIT_DATA` counts of this process. Opened before files cannot be any more.
pub struct UsedMemory(File);

impl UsedMemory {
    /// Opens the kernel's account of this process.
    pub fn open() -> io::Result<Self> {
        File::open("/proc/self/status").map(Self)
    }

    /// What is used now.
    pub fn bytes(&mut self) -> io::Result<u64> {
        let mut status = String::new();
        self.0.rewind()?;
        self.0.read_to_string(&mut status)?;
        bytes_of(&status, "VmData:")
            .ok_or_else(|| io::Error::other("/proc/self/status has no VmData"))
    }
}

/// What a process has in memory that no file holds; `None` once it has ended.
#[must_use]
pub fn resident(process: Pid) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let (private, shared) = (
        bytes_of(&status, "RssAnon:")?,
        bytes_of(&status, "RssShmem:")?,
    );
    Some(private.saturating_add(shared))
}

fn bytes_of(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kilobytes.saturating_mul(1024))
}

/// Threads of this user on the whole machine: `RLIMIT_NPROC` counts them all.
fn tasks_of_user() -> io::Result<u64> {
    let user = Uid::current().as_raw();
    let mut tasks = 0_u64;
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let is_process = entry
            .file_name()
            .as_encoded_bytes()
            .iter()
            .all(u8::is_ascii_digit);
        // A process may end while it is looked at.
        let is_ours = is_process
            && entry
                .metadata()
                .is_ok_and(|metadata| metadata.uid() == user);
        if is_ours && let Ok(threads) = fs::read_dir(entry.path().join("task")) {
            tasks = tasks.saturating_add(threads.count() as u64);
        }
    }
    Ok(tasks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_process_uses_is_counted() {
        assert!(UsedMemory::open().unwrap().bytes().unwrap() > 1 << 20);
        assert!(resident(Pid::this()).unwrap() > 1 << 16);
        assert!(tasks_of_user().unwrap() >= 1);
    }
}
