//! Programs that are installed, not built.

use std::path::PathBuf;

/// Where `anvil` is: `$ANVIL`, the packages of `contracts/`, or the PATH.
#[must_use]
pub fn find() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("ANVIL") {
        return Some(named.into());
    }
    // The native program of the npm package, not its wrapper script: a killed wrapper leaves its child.
    let arch = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let package = format!("contracts/node_modules/@foundry-rs/anvil-linux-{arch}/bin");
    // The checkout is somewhere above the binary, however deep in the target folder that is.
    let binary = std::env::current_exe().unwrap_or_default();
    let above = binary.ancestors().skip(1).map(|it| it.join(&package));
    let folders: Vec<_> = [PathBuf::from(&package)].into_iter().chain(above).collect();
    find_program("anvil", &folders)
}

/// The first executable of that name in `folders` or on the PATH.
#[must_use]
pub fn find_program(name: &str, folders: &[PathBuf]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    folders
        .iter()
        .cloned()
        .chain(std::env::split_paths(&path))
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}
