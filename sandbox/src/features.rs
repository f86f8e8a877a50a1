//! What the kernel here offers, tried out in a thread that is thrown away.

use std::fmt;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _,
    RulesetError, Scope,
};

use super::syscalls;

/// A wall that jobs of strangers need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wall {
    /// No file outside of the scratch folder.
    Landlock,
    /// No system call that a computation does not need.
    Seccomp,
}

impl Wall {
    /// What has to be there for it.
    #[must_use]
    pub const fn needs(self) -> &'static str {
        match self {
            Self::Landlock => {
                "Linux 5.13 or later with Landlock among its security modules, and a container that lets it through"
            }
            Self::Seccomp => {
                "Linux with seccomp filters on x86-64, aarch64 or riscv64, and a container that lets them through"
            }
        }
    }
}

impl fmt::Display for Wall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Landlock => "Landlock",
            Self::Seccomp => "seccomp",
        })
    }
}

/// Which walls are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// The version of Landlock's interface, as far as it is used here.
    pub landlock: Option<u8>,
    /// A filter can be installed for all threads.
    pub seccomp: bool,
}

impl Features {
    /// A machine without any wall.
    pub const NONE: Self = Self {
        landlock: None,
        seccomp: false,
    };

    /// Looks them up by trying them, since a container may forbid what the kernel can do.
    #[must_use]
    pub fn detect() -> Self {
        // Both walls stay up for the thread that tries them, and for no other.
        let tried = std::thread::Builder::new()
            .name("walls".to_owned())
            .spawn(|| Self {
                landlock: landlock(),
                seccomp: syscalls::try_out().is_ok(),
            });
        tried
            .ok()
            .and_then(|thread| thread.join().ok())
            .unwrap_or(Self::NONE)
    }

    /// The walls that are not there.
    pub fn missing(self) -> impl Iterator<Item = Wall> {
        let landlock = self.landlock.is_none().then_some(Wall::Landlock);
        let seccomp = (!self.seccomp).then_some(Wall::Seccomp);
        landlock.into_iter().chain(seccomp)
    }
}

/// The newest version whose rules the kernel takes, of those that bring something.
fn landlock() -> Option<u8> {
    let versions = [
        (6, ABI::V6),
        (5, ABI::V5),
        (4, ABI::V4),
        (3, ABI::V3),
        (2, ABI::V2),
        (1, ABI::V1),
    ];
    versions
        .into_iter()
        .find(|(_, abi)| offers(*abi).is_ok())
        .map(|(version, _)| version)
}

fn offers(abi: ABI) -> Result<(), RulesetError> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(abi))?;
    if abi >= ABI::V4 {
        rules = rules.handle_access(AccessNet::from_all(abi))?;
    }
    if abi >= ABI::V6 {
        rules = rules.scope(Scope::from_all(abi))?;
    }
    rules.create()?;
    Ok(())
}
