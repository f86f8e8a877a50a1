//! What this machine is, measured in children as jobs are run.

use std::{fs, path::Path, time::Duration};

use comptoir_domain::job::Device;
use comptoir_wire::{FACT_CHARS_MAX, join::MEMORY_BYTES_MAX};

use crate::{
    canary::Class,
    engine::{Description, Event, Failure, Launcher, Limits, Task},
    facts::Facts,
};

const LIMITS: Limits = Limits {
    memory_bytes: 4 << 30,
    wall: Duration::from_mins(3),
    file_bytes: 1 << 20,
};

/// Why a machine cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// No child.
    #[error("a child process cannot be started: {0}")]
    Start(#[from] std::io::Error),
    /// Its end.
    #[error("libtorch does not run here: {0}")]
    Failed(#[from] Failure),
    /// Something else.
    #[error("the child that measures answered something else")]
    Unexpected,
}

async fn ask(
    launcher: &Launcher,
    task: Task,
    device: Device,
    threads: u16,
    scratch: &Path,
) -> Result<Event, MeasureError> {
    let job = launcher.spawn(
        LIMITS,
        Description {
            task,
            device,
            threads,
        },
        scratch,
    )?;
    match job.last().await {
        Event::Failed(failure) => Err(failure.into()),
        other => Ok(other),
    }
}

/// What libtorch and which devices are here.
pub async fn facts(launcher: &Launcher, scratch: &Path) -> Result<Facts, MeasureError> {
    match ask(launcher, Task::Facts, Device::Cpu, 1, scratch).await? {
        Event::Facts(facts) => Ok(facts),
        _ => Err(MeasureError::Unexpected),
    }
}

/// The numeric class of a device.
pub async fn class(
    launcher: &Launcher,
    device: Device,
    threads: u16,
    scratch: &Path,
) -> Result<Class, MeasureError> {
    match ask(launcher, Task::Canary, device, threads, scratch).await? {
        Event::Class(class) => Ok(class),
        _ => Err(MeasureError::Unexpected),
    }
}

/// Memory for one job unless told otherwise: half of what the machine has, or all of the device.
#[must_use]
pub fn memory_bytes(device: Device, facts: &Facts) -> Option<u64> {
    let bytes = match device {
        Device::Cpu => machine_memory_bytes()? / 2,
        Device::Cuda => *facts.cuda_memory_bytes.first()?,
    };
    Some(bytes.clamp(1, MEMORY_BYTES_MAX))
}

/// Memory of the machine, or of the container around this process.
#[must_use]
pub fn machine_memory_bytes() -> Option<u64> {
    let of_machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.trim()
            .strip_suffix(" kB")?
            .parse::<u64>()
            .ok()?
            .checked_mul(1024)
    });
    let of_container = fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let of_container = of_container.and_then(|text| text.trim().parse::<u64>().ok());
    of_machine.into_iter().chain(of_container).min()
}

/// What the maker calls the device.
#[must_use]
pub fn device_name(device: Device) -> String {
    let found = match device {
        Device::Cpu => field("/proc/cpuinfo", "model name"),
        Device::Cuda => fs::read_dir("/proc/driver/nvidia/gpus")
            .ok()
            .and_then(|gpus| {
                let first = gpus.filter_map(Result::ok).map(|gpu| gpu.path()).min()?;
                field(first.join("information").to_str()?, "Model")
            }),
    };
    let name: String = found
        .unwrap_or_default()
        .chars()
        .filter(|c| !c.is_control())
        .take(FACT_CHARS_MAX)
        .collect();
    if name.is_empty() {
        format!("{} {device}", std::env::consts::ARCH)
    } else {
        name
    }
}

fn field(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let value = text.lines().find_map(|line| {
        line.strip_prefix(name)?
            .trim_start()
            .strip_prefix(':')
            .map(str::trim)
    })?;
    Some(value.to_owned())
}

/// What this machine is called.
#[must_use]
pub fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() {
        "worker".to_owned()
    } else {
        name.to_owned()
    }
}
