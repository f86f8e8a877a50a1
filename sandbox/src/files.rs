//! The wall around files: Landlock, which binds the thread that asks for it and all that it starts.

use std::{fs, io, path::Path};

use comptoir_domain::job::Device;
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, PathBeneath,
    PathFd, Ruleset, RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetError,
    RulesetStatus, Scope,
};

/// The newest version whose rights are known here; an older kernel takes those that it knows.
const NEWEST: ABI = ABI::V6;

/// What CUDA reads and writes while it works, beside its libraries.
const CUDA_DEVICES: [&str; 4] = [
    "/dev/nvidia0",
    "/dev/nvidiactl",
    "/dev/nvidia-uvm",
    "/dev/nvidia-uvm-tools",
];
const CUDA_FACTS: [&str; 4] = [
    "/proc/self",
    "/proc/driver/nvidia",
    "/sys/devices/system",
    "/dev/nvidia-caps",
];

/// The wall, ready to be closed.
pub struct ScratchWall(RulesetCreated);

/// Gets the wall ready: files of the scratch folder may be read, written, replaced and removed, and nothing else may
/// be opened at all. Under CUDA its devices and the folders of its libraries, which it loads when it needs them, are
/// open too. No TCP, and no signals or abstract sockets to the outside, where the kernel can refuse those.
pub fn prepare(scratch: &Path, device: Device) -> io::Result<ScratchWall> {
    let mut rules = ruleset().map_err(io::Error::other)?;
    let own = AccessFs::ReadFile
        | AccessFs::ReadDir
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::RemoveFile;
    rules = open(rules, scratch, own)?;
    if device == Device::Cuda {
        let look = AccessFs::ReadFile | AccessFs::ReadDir;
        let drive = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
        for folder in library_folders()? {
            rules = open(rules, Path::new(&folder), look | AccessFs::Execute)?;
        }
        for (paths, rights) in [(CUDA_DEVICES, drive), (CUDA_FACTS, look)] {
            for path in paths {
                if fs::exists(path)? {
                    rules = open(rules, Path::new(path), rights)?;
                }
            }
        }
    }
    Ok(ScratchWall(rules))
}

fn ruleset() -> Result<RulesetCreated, RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()
}

fn open(
    rules: RulesetCreated,
    path: &Path,
    rights: BitFlags<AccessFs>,
) -> io::Result<RulesetCreated> {
    let place = PathFd::new(path).map_err(io::Error::other)?;
    rules
        .add_rule(PathBeneath::new(place, rights))
        .map_err(io::Error::other)
}

impl ScratchWall {
    /// Closes it around this thread, which must be the only one: others would stay outside.
    pub fn close(self) -> io::Result<()> {
        let threads = fs::read_dir("/proc/self/task")?.count();
        if threads != 1 {
            return Err(io::Error::other(format!(
                "{threads} threads are there before the walls are closed"
            )));
        }
        let status = self.0.restrict_self().map_err(io::Error::other)?;
        if status.ruleset == RulesetStatus::NotEnforced {
            return Err(io::Error::other("the kernel did not close Landlock's wall"));
        }
        Ok(())
    }
}

/// Where this process's libraries are.
fn library_folders() -> io::Result<std::collections::BTreeSet<String>> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let files = maps
        .lines()
        .filter_map(|line| line.find('/').map(|at| &line[at..]));
    let libraries = files.filter(|path| path.contains(".so"));
    Ok(libraries
        .filter_map(|path| Some(Path::new(path).parent()?.to_str()?.to_owned()))
        .collect())
}
