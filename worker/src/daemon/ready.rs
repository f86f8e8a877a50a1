//! What must hold before a worker runs.

use std::path::Path;

use comptoir_domain::job::Device;

use super::{
    client::CallError,
    folder::{FolderError, Identity},
    measure::{self, MeasureError},
};
use crate::{
    engine::Launcher,
    sandbox::{Sandbox, Unsandboxed},
};

/// Why a worker does not run, or not any longer.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Its folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// Its disk.
    #[error("prepare the folder: {0}")]
    Disk(#[from] std::io::Error),
    /// Its machine.
    #[error(transparent)]
    Measure(#[from] MeasureError),
    /// It computes otherwise than it said.
    #[error(
        "this machine computes in numeric class {found}, and the worker joined as {expected}: results would not be \
         confirmed. Undo what changed (libtorch, processor, ATEN_CPU_CAPABILITY), or join again from another folder"
    )]
    ClassChanged {
        /// As it joined.
        expected: String,
        /// As it is.
        found: String,
    },
    /// It cannot wall jobs in.
    #[error(transparent)]
    Unsandboxed(#[from] Unsandboxed),
    /// It said that it walls jobs in, and does not.
    #[error(
        "this worker joined as one that walls jobs in, and this machine no longer offers that. Undo what changed, or \
         join again from another folder with --allow-unsandboxed"
    )]
    WallsChanged,
    /// Its jobs and models together could take more memory than there is.
    #[error(
        "{slots} jobs at once with {memory_bytes} bytes each, and {host_memory_bytes} bytes for models that are called, pass this \
         machine's {machine_bytes} bytes of memory: give fewer --slots, less --memory or less --host-memory"
    )]
    TooMuchMemory {
        /// Jobs at once.
        slots: u16,
        /// Memory of each.
        memory_bytes: u64,
        /// Memory of hosted models.
        host_memory_bytes: u64,
        /// Memory of the machine.
        machine_bytes: u64,
    },
    /// The server does not want it.
    #[error("the server does not accept this worker any more: {0}")]
    Refused(CallError),
    /// The client cannot be made.
    #[error("prepare to call the server: {0}")]
    Client(CallError),
}

/// Jobs and models together must not be able to use up the machine: the kernel would then choose what to end. The memory that models may
/// have: as was asked, or that of one job, as far as jobs leave it.
pub(super) fn check_memory(
    device: Device,
    (memory_bytes, slots): (u64, u16),
    host_memory_bytes: Option<u64>,
) -> Result<u64, RunError> {
    let (Device::Cpu, Some(machine_bytes)) = (device, measure::machine_memory_bytes()) else {
        return Ok(host_memory_bytes.unwrap_or(memory_bytes));
    };
    let of_jobs = memory_bytes.saturating_mul(u64::from(slots));
    let left = machine_bytes.checked_sub(of_jobs);
    let hosted = host_memory_bytes.unwrap_or(memory_bytes.min(left.unwrap_or(0)));
    match left {
        Some(left) if hosted <= left => Ok(hosted),
        _ => Err(RunError::TooMuchMemory {
            slots,
            memory_bytes,
            host_memory_bytes: hosted,
            machine_bytes,
        }),
    }
}

/// What the service knows of the walls must be so.
pub(super) fn check_walls(identity: &Identity, sandbox: Sandbox) -> Result<(), RunError> {
    sandbox.check()?;
    if sandbox.is_complete() {
        return Ok(());
    }
    if !identity.facts.unsandboxed {
        return Err(RunError::WallsChanged);
    }
    let missing: Vec<_> = sandbox
        .features
        .missing()
        .map(|wall| wall.to_string())
        .collect();
    tracing::warn!(
        ?missing,
        "jobs run UNSANDBOXED, as --allow-unsandboxed says"
    );
    Ok(())
}

pub(super) async fn check_class(
    identity: &Identity,
    launcher: &Launcher,
    scratch: &Path,
) -> Result<(), RunError> {
    let facts = &identity.facts;
    let threads = u16::try_from(facts.threads).unwrap_or(u16::MAX);
    let found = measure::class(launcher, facts.device, threads, scratch)
        .await?
        .to_string();
    if found == facts.numeric_class {
        Ok(())
    } else {
        Err(RunError::ClassChanged {
            expected: facts.numeric_class.clone(),
            found,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_and_models_that_could_use_up_the_machine_together_are_refused() {
        let machine = measure::machine_memory_bytes().unwrap();
        let half = machine / 2;
        let cpu = |slots, hosted| check_memory(Device::Cpu, (half, slots), hosted).ok();
        assert_eq!(cpu(1, None), Some(half));
        assert_eq!(cpu(2, None), Some(machine - half * 2), "what jobs leave");
        assert_eq!(cpu(3, None), None);
        assert_eq!(cpu(1, Some(1)), Some(1));
        assert_eq!(cpu(1, Some(machine)), None);
        assert_eq!(cpu(2, Some(0)), Some(0));
        let cuda = check_memory(Device::Cuda, (half, 3), None);
        assert_eq!(cuda.ok(), Some(half));
    }
}
