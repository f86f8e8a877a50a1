//! The walls around a job's child: which of them this machine offers, and closing them for good.
//!
//! Two walls are needed before a job of a stranger may run: Landlock, which leaves the child no file but those of its
//! scratch folder, and a seccomp filter, which leaves it no network, no further process and no way to touch another
//! one. Namespaces are a second wall behind them, where the machine grants them. What a child may use up is limited in
//! [`limits`].

mod features;
mod files;
pub mod limits;
mod syscalls;

use std::io;

use nix::{
    sched::{CloneFlags, unshare},
    unistd::chroot,
};

pub use features::{Features, Wall};
pub use files::{ScratchWall, prepare as prepare_files};
pub use syscalls::close as close_syscalls;

/// Whether jobs may run here, and behind which walls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sandbox {
    /// What this machine offers; all of it is used.
    pub features: Features,
    /// The owner takes jobs although a wall is missing.
    pub allow_unsandboxed: bool,
}

/// A wall is missing, and nobody said that jobs may run without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "jobs of strangers are not run here: this machine offers no {}. See `comptoir-worker doctor`; \
     --allow-unsandboxed runs them all the same, with whatever this user may read and reach",
    names(self.missing)
)]
pub struct Unsandboxed {
    missing: Features,
}

impl Sandbox {
    /// What this machine offers, looked up now.
    #[must_use]
    pub fn detect(allow_unsandboxed: bool) -> Self {
        Self {
            features: Features::detect(),
            allow_unsandboxed,
        }
    }

    /// Are all walls there?
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.features.missing().next().is_none()
    }

    /// May jobs run?
    ///
    /// # Errors
    /// A wall is missing, and nobody said that jobs may run without.
    pub fn check(&self) -> Result<(), Unsandboxed> {
        if self.allow_unsandboxed || self.is_complete() {
            Ok(())
        } else {
            Err(Unsandboxed {
                missing: self.features,
            })
        }
    }

    /// The walls, as arguments of a child.
    #[must_use]
    pub fn arguments(&self) -> Vec<&'static str> {
        let landlock = self.features.landlock.map(|_| "--landlock");
        let seccomp = self.features.seccomp.then_some("--seccomp");
        landlock.into_iter().chain(seccomp).collect()
    }
}

fn names(features: Features) -> String {
    let missing: Vec<_> = features.missing().map(|wall| wall.to_string()).collect();
    missing.join(" and no ")
}

/// Moves this process, which must have a single thread, into a network without devices and, where it is not root in
/// its own right, out of its user's capabilities.
///
/// # Errors
/// The machine does not grant namespaces. Everything goes on without them.
pub fn enter_namespaces() -> io::Result<()> {
    let namespaces = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    Ok(unshare(namespaces)?)
}

/// Makes the scratch folder, which this process must be in, the root of its files: of what is outside not even the names can be
/// asked for, which Landlock does not refuse. Nothing of what libtorch looked up before can be looked up after.
///
/// # Errors
/// The machine grants neither namespaces nor the right itself. Everything goes on without: no file outside can be opened.
pub fn hide_names() -> io::Result<()> {
    Ok(chroot(".")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_wall_jobs_run_only_where_the_owner_says_so() {
        for features in [
            Features {
                landlock: None,
                seccomp: true,
            },
            Features {
                landlock: Some(7),
                seccomp: false,
            },
            Features::NONE,
        ] {
            let mut sandbox = Sandbox {
                features,
                allow_unsandboxed: false,
            };
            let refusal = sandbox.check().unwrap_err().to_string();
            for wall in features.missing() {
                assert!(refusal.contains(&wall.to_string()), "{refusal}");
            }
            sandbox.allow_unsandboxed = true;
            assert_eq!((sandbox.check(), sandbox.is_complete()), (Ok(()), false));
        }
        let whole = Sandbox {
            features: Features {
                landlock: Some(1),
                seccomp: true,
            },
            allow_unsandboxed: false,
        };
        assert_eq!((whole.check(), whole.is_complete()), (Ok(()), true));
    }
}
