//! The wall around the kernel: a seccomp filter that lets through what a computation needs, on every thread.
//!
//! What is not on the list fails with `EPERM`, so that a library that only tries something goes on without it. A call
//! of another architecture than this one's ends the process.

use std::{collections::BTreeMap, io};

use comptoir_domain::job::Device;
use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// Memory, files that are open or in the scratch folder, threads of this process, time, and what the process is.
const ALLOWED: &[libc::c_long] = &[
    // Memory. Programs are compiled while they run (oneDNN), so pages may be made executable.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_membarrier,
    // Files.
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_faccessat,
    libc::SYS_fdatasync,
    libc::SYS_fstat,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_statx,
    libc::SYS_unlinkat,
    libc::SYS_write,
    libc::SYS_writev,
    // Threads.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_get_robust_list,
    libc::SYS_gettid,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_sigaltstack,
    // Time, chance, and who this is.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getcpu,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_nanosleep,
    libc::SYS_sysinfo,
    libc::SYS_uname,
];

/// The older names of some of these, which newer architectures do without.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[libc::c_long] = &[
    libc::SYS_access,
    libc::SYS_lstat,
    libc::SYS_open,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_stat,
    libc::SYS_time,
    libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[libc::c_long] = &[];

/// What CUDA's driver needs beside that.
const ALLOWED_UNDER_CUDA: &[libc::c_long] = &[
    libc::SYS_eventfd2,
    libc::SYS_ioctl,
    libc::SYS_memfd_create,
    libc::SYS_mincore,
    libc::SYS_mmap,
    libc::SYS_mlock,
    libc::SYS_munlock,
    libc::SYS_pipe2,
    libc::SYS_sched_setaffinity,
];

/// What may be asked of a file that is open: another number for it, and its flags. Not whom the kernel signals about it.
const FCNTL: &[libc::c_int] = &[
    libc::F_DUPFD,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
];

/// What CUDA's driver asks of its files in memory, and of its cache, beside that.
const FCNTL_UNDER_CUDA: &[libc::c_int] = &[
    libc::F_ADD_SEALS,
    libc::F_GET_SEALS,
    libc::F_GETLK,
    libc::F_SETLK,
    libc::F_SETLKW,
];

/// Closes the wall around every thread of this process.
pub fn close(device: Device) -> io::Result<()> {
    for program in [no_clone3()?, list(device)?] {
        seccompiler::apply_filter_all_threads(&program).map_err(io::Error::other)?;
    }
    Ok(())
}

/// Closes the wall around this thread alone, to see whether it can be.
pub(super) fn try_out() -> io::Result<()> {
    for program in [no_clone3()?, list(Device::Cpu)?] {
        seccompiler::apply_filter(&program).map_err(io::Error::other)?;
    }
    Ok(())
}

/// `clone3` names its flags in memory, where a filter cannot look. A C library that is told that there is no such call
/// starts its threads with `clone`.
fn no_clone3() -> io::Result<BpfProgram> {
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    compile(rules, SeccompAction::Allow, refusal(libc::ENOSYS))
}

fn list(device: Device) -> io::Result<BpfProgram> {
    let under_cuda = match device {
        Device::Cpu => &[][..],
        Device::Cuda => ALLOWED_UNDER_CUDA,
    };
    // Of two filters the stricter answer counts: `clone3` stays refused, in the other one's words.
    let mut rules: BTreeMap<_, Vec<SeccompRule>> = [ALLOWED, ALLOWED_HERE, under_cuda]
        .into_iter()
        .flatten()
        .chain([&libc::SYS_clone3])
        .map(|call| (*call, Vec::new()))
        .collect();
    let thread = unsigned(libc::CLONE_THREAD);
    rules.insert(
        libc::SYS_clone,
        vec![rule(vec![argument(
            0,
            SeccompCmpOp::MaskedEq(thread),
            thread,
        )?])?],
    );
    // Shared memory is not counted by the limit on memory. CUDA needs it, and is on the list then.
    let sharing = unsigned(libc::MAP_SHARED | libc::MAP_PRIVATE);
    let private = SeccompCmpOp::MaskedEq(sharing);
    rules
        .entry(libc::SYS_mmap)
        .or_insert(vec![rule(vec![argument(
            3,
            private,
            unsigned(libc::MAP_PRIVATE),
        )?])?]);
    // Names of threads and of memory.
    let names = [libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_VMA];
    let names = names
        .into_iter()
        .map(|name| rule(vec![argument(0, SeccompCmpOp::Eq, unsigned(name))?]))
        .collect::<io::Result<_>>()?;
    rules.insert(libc::SYS_prctl, names);
    rules.insert(libc::SYS_fcntl, of_files(device)?);
    // Limits may be read, its own only.
    let of_itself = argument(0, SeccompCmpOp::Eq, 0)?;
    let no_new_ones = address(2, SeccompCmpOp::Eq, 0)?;
    rules.insert(
        libc::SYS_prlimit64,
        vec![rule(vec![of_itself, no_new_ones])?],
    );
    // Signals to itself: `abort` and `raise`.
    let itself = argument(0, SeccompCmpOp::Eq, u64::from(std::process::id()))?;
    rules.insert(libc::SYS_tgkill, vec![rule(vec![itself])?]);
    compile(rules, refusal(libc::EPERM), SeccompAction::Allow)
}

/// Flags of an open file may be set, but not the one that has the kernel signal somebody when it is ready.
fn of_files(device: Device) -> io::Result<Vec<SeccompRule>> {
    let under_cuda = match device {
        Device::Cpu => &[][..],
        Device::Cuda => FCNTL_UNDER_CUDA,
    };
    let listed = FCNTL.iter().chain(under_cuda);
    let mut rules = listed
        .map(|command| rule(vec![argument(1, SeccompCmpOp::Eq, unsigned(*command))?]))
        .collect::<io::Result<Vec<_>>>()?;
    let silent = SeccompCmpOp::MaskedEq(unsigned(libc::O_ASYNC));
    rules.push(rule(vec![
        argument(1, SeccompCmpOp::Eq, unsigned(libc::F_SETFL))?,
        argument(2, silent, 0)?,
    ])?);
    Ok(rules)
}

fn refusal(errno: libc::c_int) -> SeccompAction {
    SeccompAction::Errno(errno.unsigned_abs())
}

fn unsigned(constant: libc::c_int) -> u64 {
    u64::from(constant.unsigned_abs())
}

fn argument(index: u8, operator: SeccompCmpOp, value: u64) -> io::Result<SeccompCondition> {
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value).map_err(io::Error::other)
}

fn address(index: u8, operator: SeccompCmpOp, value: u64) -> io::Result<SeccompCondition> {
    SeccompCondition::new(index, SeccompCmpArgLen::Qword, operator, value).map_err(io::Error::other)
}

fn rule(conditions: Vec<SeccompCondition>) -> io::Result<SeccompRule> {
    SeccompRule::new(conditions).map_err(io::Error::other)
}

fn compile(
    rules: BTreeMap<libc::c_long, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    listed: SeccompAction,
) -> io::Result<BpfProgram> {
    let here = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
    SeccompFilter::new(rules, otherwise, listed, here)
        .and_then(BpfProgram::try_from)
        .map_err(io::Error::other)
}
