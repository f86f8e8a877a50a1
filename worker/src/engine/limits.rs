//! What a child may use, set by itself before it reads a byte of a job.

use std::{fs, io, os::unix::fs::MetadataExt, time::Duration};

use comptoir_domain::job::Device;
use nix::{
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
/// Stack of each thread.
const STACK_BYTES: u64 = 8 << 20;

/// The limits of one child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Memory of the job, beyond what libtorch itself takes.
    pub memory_bytes: u64,
    /// From start to end.
    pub wall: Duration,
    /// The largest file it writes.
    pub file_bytes: u64,
}

/// The limits as the child's own arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args)]
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
    /// Threads that compute
    #[arg(long)]
    pub threads: u16,
    /// The process whose end is this one's end
    #[arg(long)]
    pub parent: i32,
}

impl Limits {
    /// The arguments that set them.
    #[must_use]
    pub fn arguments(&self, device: Device, threads: u16) -> Vec<String> {
        let reserve = match device {
            Device::Cpu => 0,
            Device::Cuda => CUDA_HOST_BYTES,
        };
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
        arguments
            .iter()
            .map(|(name, value)| format!("--{name}={value}"))
            .collect()
    }
}

impl ChildLimits {
    /// Binds this process to its parent and to its limits. Nothing of it can be undone.
    pub fn apply(&self) -> io::Result<()> {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        if getppid() != Pid::from_raw(self.parent) {
            return Err(io::Error::other("the parent has already ended"));
        }
        prctl::set_no_new_privs()?;
        // Should the machine run out of memory all the same, the kernel ends the job, not the worker.
        std::fs::write("/proc/self/oom_score_adj", "1000")?;
        let stacks = STACK_BYTES * (u64::from(self.threads) + 2);
        let memory = data_bytes()?
            .saturating_add(self.memory_bytes)
            .saturating_add(stacks);
        let tasks = tasks_of_user()?
            .saturating_add(u64::from(self.threads))
            .saturating_add(TASKS_MAX);
        for (resource, limit) in [
            (Resource::RLIMIT_CORE, 0),
            (Resource::RLIMIT_NOFILE, FILES_MAX),
            (Resource::RLIMIT_FSIZE, self.file_bytes),
            (Resource::RLIMIT_STACK, STACK_BYTES),
            // Counted are private writable pages, on the heap and mapped; libraries and reserved addresses are not.
            (Resource::RLIMIT_DATA, memory),
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
        Ok(())
    }
}

/// Bytes that `RLIMIT_DATA` counts of this process.
fn data_bytes() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let kilobytes = status
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmData:")?
                .trim()
                .strip_suffix(" kB")?
                .parse::<u64>()
                .ok()
        })
        .ok_or_else(|| io::Error::other("/proc/self/status has no VmData"))?;
    Ok(kilobytes.saturating_mul(1024))
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
        assert!(data_bytes().unwrap() > 1 << 20);
        assert!(tasks_of_user().unwrap() >= 1);
    }
}
