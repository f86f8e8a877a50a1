//! Crash points: places where a test kills the process, so that what a restart finds is what a power cut would leave.
//!
//! `CRASH_AT=name:nth` in the environment ends the process by SIGKILL the nth time that it passes the point of that name.
//! Release builds have no crash points.

#[cfg(debug_assertions)]
mod armed {
    use std::sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    };

    use nix::{
        sys::signal::{Signal, kill},
        unistd::Pid,
    };

    static PLAN: LazyLock<Option<(String, u64)>> = LazyLock::new(|| {
        let plan = std::env::var("CRASH_AT").ok()?;
        let (name, nth) = plan.split_once(':')?;
        Some((name.to_owned(), nth.parse().ok()?))
    });
    static PASSED: AtomicU64 = AtomicU64::new(0);

    pub fn point(name: &str) {
        let Some((planned, nth)) = &*PLAN else {
            return;
        };
        if planned == name && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == *nth {
            kill(Pid::this(), Signal::SIGKILL).expect("a process may end itself");
        }
    }
}

/// Ends the process here, if that is planned.
#[cfg(debug_assertions)]
pub(crate) fn point(name: &str) {
    armed::point(name);
}

/// Release builds go on.
#[cfg(not(debug_assertions))]
pub(crate) const fn point(_name: &str) {}
