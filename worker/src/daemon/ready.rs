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
    /// Its jobs together could take more memory than there is.
    #[error(
        "{slots} jobs at once with {memory_bytes} bytes each pass this machine's {machine_bytes} bytes of memory: give \
         fewer --slots or less --memory"
    )]
    TooMuchMemory {
        /// Jobs at once.
        slots: u16,
        /// Memory of each.
        memory_bytes: u64,
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

/// Jobs together must not be able to use up the machine: the kernel would then choose what to end.
pub(super) fn check_memory(device: Device, memory_bytes: u64, slots: u16) -> Result<(), RunError> {
    match (device, measure::machine_memory_bytes()) {
        (Device::Cpu, Some(machine_bytes))
            if memory_bytes.saturating_mul(u64::from(slots)) > machine_bytes =>
        {
            Err(RunError::TooMuchMemory {
                slots,
                memory_bytes,
                machine_bytes,
            })
        }
        (Device::Cpu | Device::Cuda, _) => Ok(()),
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
    fn jobs_that_could_use_up_the_machine_together_are_refused() {
        let machine = measure::machine_memory_bytes().unwrap();
        assert!(check_memory(Device::Cpu, machine / 2, 2).is_ok());
        assert!(matches!(
            check_memory(Device::Cpu, machine / 2, 3),
            Err(RunError::TooMuchMemory { slots: 3, .. })
        ));
        assert!(check_memory(Device::Cuda, machine / 2, 3).is_ok());
    }
}
