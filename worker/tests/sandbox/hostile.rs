//! A child that tries to get out. It knows everything that the worker knows: what it must not reach is told to it.

#![expect(
    unsafe_code,
    reason = "attacks are made of raw system calls, with arguments that harm no memory of this process"
)]

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    net::{TcpListener, TcpStream, ToSocketAddrs as _, UdpSocket},
    os::fd::AsRawFd as _,
    os::unix::{
        fs::{PermissionsExt as _, symlink},
        net::{UnixDatagram, UnixListener, UnixStream},
        process::CommandExt as _,
    },
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use comptoir_worker::engine::{ChildLimits, child};
use nix::libc;
use serde::{Deserialize, Serialize};

/// The file that names the attack.
pub const ORDERS: &str = "orders.json";
/// The file that tells what came of it.
pub const OUTCOME: &str = "outcome.json";
const MEBIBYTE: usize = 1 << 20;

/// The child's command line, as the worker writes it.
#[derive(Parser)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    Child(ChildLimits),
}

/// What to try, and on whom.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Orders {
    pub attack: String,
    /// A file outside, with a secret.
    pub file: String,
    /// A folder outside.
    pub folder: String,
    /// A port of this machine that somebody listens on.
    pub port: u16,
    /// The worker.
    pub parent: i32,
    /// How much of whatever there is much of.
    pub amount: usize,
}

/// What was tried, and why it failed; without a reason it did not.
pub type Outcome = Vec<(String, Option<String>)>;

/// Closes the walls, attacks, and says what came of it.
pub fn run(arguments: Arguments) {
    let Verb::Child(limits) = arguments.verb;
    let orders: Orders = serde_json::from_slice(&fs::read(ORDERS).unwrap()).unwrap();
    let enclosed = child::enclose(&limits).unwrap();
    let mut tried = Tried::default();
    match orders.attack.as_str() {
        "read" => read(&orders, &mut tried),
        // Where the machine does not grant it, nothing is told.
        "names" if limits.landlock && !enclosed.names_hidden => {}
        "names" => names(&orders, &mut tried),
        "share" => share(&orders),
        "write" => write(&orders, &mut tried),
        "connect" => connect(&orders, &mut tried),
        "multiply" => multiply(&mut tried),
        "touch" => touch(&orders, &mut tried),
        "escape" => escape(&mut tried),
        "link" => link(&orders, &mut tried),
        "inherit" => inherit(&mut tried),
        "memory" => memory(&orders, &mut tried),
        "file" => file(&orders, &mut tried),
        "files" => files(&orders),
        "sleep" => thread::sleep(Duration::from_mins(10)),
        "spin" => while Instant::now().elapsed() < Duration::from_mins(10) {},
        "abort" => std::process::abort(),
        "work" => work(&mut tried),
        other => panic!("no such attack: {other}"),
    }
    // Its folder is the root now, or has the name that it always had.
    let own = if enclosed.names_hidden {
        Path::new("/")
    } else {
        &limits.scratch
    };
    fs::write(own.join(OUTCOME), serde_json::to_vec(&tried.0).unwrap()).unwrap();
}

#[derive(Default)]
struct Tried(Outcome);

impl Tried {
    fn add<T>(&mut self, what: impl Into<String>, result: io::Result<T>) {
        let reason = result.err().map(|error| error.to_string());
        self.0.push((what.into(), reason));
    }

    /// A system call, which says no with a negative number.
    fn call(&mut self, what: &str, result: libc::c_long) {
        let result = if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        };
        self.add(what, result);
    }
}

fn read(orders: &Orders, tried: &mut Tried) {
    let files = [
        "/etc/shadow".to_owned(),
        "/etc/passwd".to_owned(),
        "/proc/1/environ".to_owned(),
        format!("/proc/{}/environ", orders.parent),
        format!("/proc/{}/mem", orders.parent),
        "/proc/self/environ".to_owned(),
        orders.file.clone(),
    ];
    for path in files {
        tried.add(format!("read {path}"), fs::read(&path));
    }
    for path in ["/", "..", &orders.folder] {
        tried.add(format!("list {path}"), list_outside(path));
    }
    let name = Path::new(&orders.file).strip_prefix(&orders.folder);
    let around = Path::new("../..").join(name.unwrap());
    tried.add("read a secret on another way", fs::read(around));
}

/// A folder that is its own under another name tells nothing.
fn list_outside(path: &str) -> io::Result<()> {
    let entries = fs::read_dir(path)?;
    let names: Vec<_> = entries
        .filter_map(|it| Some(it.ok()?.file_name()))
        .collect();
    if names.iter().any(|name| name == ORDERS) {
        return Err(io::Error::other("it is the scratch folder"));
    }
    Ok(())
}

/// Asks whether something is there, which opens nothing.
fn names(orders: &Orders, tried: &mut Tried) {
    let parent = format!("/proc/{}", orders.parent);
    for path in [
        "/etc/passwd",
        "/proc/1",
        &parent,
        &orders.file,
        &orders.folder,
    ] {
        tried.add(format!("look for {path}"), fs::symlink_metadata(path));
    }
    let around = Path::new("..").join("other");
    tried.add("look beside its folder", fs::symlink_metadata(around));
    let path = std::ffi::CString::new(orders.file.as_str()).unwrap();
    // SAFETY: the path ends with a zero.
    let there = unsafe { libc::access(path.as_ptr(), libc::F_OK) };
    tried.call("ask for a file", there.into());
}

fn write(orders: &Orders, tried: &mut Tried) {
    let (file, folder) = (Path::new(&orders.file), Path::new(&orders.folder));
    tried.add("make a file", File::create(folder.join("new")));
    tried.add("open a file", OpenOptions::new().append(true).open(file));
    tried.add("cut a file", File::create(file));
    tried.add("remove a file", fs::remove_file(file));
    tried.add(
        "change who reads a file",
        fs::set_permissions(file, fs::Permissions::from_mode(0o777)),
    );
    fs::write("mine", b"x").unwrap();
    tried.add("move a file out", fs::rename("mine", folder.join("stolen")));
    tried.add(
        "link a file out",
        fs::hard_link("mine", folder.join("linked")),
    );
    tried.add("link a file in", fs::hard_link(file, "linked"));
    tried.add("make a folder", fs::create_dir(folder.join("made")));
    tried.add("leave for another folder", std::env::set_current_dir("/"));
    let path = std::ffi::CString::new(orders.file.as_str()).unwrap();
    // SAFETY: the path ends with a zero.
    tried.call(
        "truncate a file",
        unsafe { libc::truncate(path.as_ptr(), 0) }.into(),
    );
}

fn connect(orders: &Orders, tried: &mut Tried) {
    let address = ("127.0.0.1", orders.port);
    tried.add("connect by TCP", TcpStream::connect(address));
    tried.add("listen for TCP", TcpListener::bind("127.0.0.1:0"));
    tried.add("open a UDP port", UdpSocket::bind("127.0.0.1:0"));
    tried.add("look up a name", "example.org:80".to_socket_addrs());
    tried.add("look up this machine", "localhost:80".to_socket_addrs());
    tried.add("listen on a unix socket", UnixListener::bind("socket"));
    tried.add(
        "connect to a unix socket",
        UnixStream::connect(&orders.file),
    );
    tried.add("make a pair of sockets", UnixDatagram::pair());
    for (name, family, kind) in [
        ("netlink", libc::AF_NETLINK, libc::SOCK_RAW),
        ("raw", libc::AF_INET, libc::SOCK_RAW),
        ("packet", libc::AF_PACKET, libc::SOCK_RAW),
        ("vsock", libc::AF_VSOCK, libc::SOCK_STREAM),
        ("IPv6 datagram", libc::AF_INET6, libc::SOCK_DGRAM),
    ] {
        // SAFETY: numbers only.
        let socket = unsafe { libc::socket(family, kind, 0) };
        tried.call(&format!("open a {name} socket"), socket.into());
    }
}

fn multiply(tried: &mut Tried) {
    for _ in 0..8 {
        tried.add(
            "start a program",
            Command::new("/bin/sleep").arg("60").spawn(),
        );
    }
    tried.add(
        "leave a program behind",
        Command::new("/bin/sh")
            .args(["-c", "setsid sleep 60 &"])
            .status(),
    );
    for _ in 0..64 {
        // SAFETY: a second process would end at once, without running anything of the first.
        let forked = unsafe { libc::fork() };
        if forked == 0 {
            thread::sleep(Duration::from_mins(1));
            std::process::abort();
        }
        tried.call("fork", forked.into());
    }
    let clone = |flags: libc::c_int| {
        // SAFETY: without a new stack it is a fork.
        let cloned = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
        if cloned == 0 {
            std::process::abort();
        }
        cloned
    };
    tried.call("clone", clone(libc::SIGCHLD));
    tried.call(
        "clone into a user namespace",
        clone(libc::CLONE_NEWUSER | libc::SIGCHLD),
    );
    // SAFETY: the kernel reads nothing at a null address.
    let clone3 = unsafe { libc::syscall(libc::SYS_clone3, 0, 0) };
    let refused = io::Error::last_os_error().raw_os_error() == Some(libc::ENOSYS);
    assert!(
        refused,
        "the C library must believe that there is no clone3"
    );
    tried.call("clone3", clone3);
    // SAFETY: numbers only.
    tried.call("start a session", unsafe { libc::setsid() }.into());
    // SAFETY: numbers only.
    tried.call("leave the group", unsafe { libc::setpgid(0, 0) }.into());
    tried.add::<()>("become a program", Err(Command::new("/bin/true").exec()));
}

fn touch(orders: &Orders, tried: &mut Tried) {
    let parent = orders.parent;
    for (name, request) in [
        ("attach to", libc::PTRACE_ATTACH),
        ("seize", libc::PTRACE_SEIZE),
    ] {
        // SAFETY: stops the parent at worst.
        let traced = unsafe { libc::ptrace(request, parent, 0, 0) };
        tried.call(&format!("{name} the worker"), traced);
    }
    let mut byte = 0_u8;
    let (local, remote) = (
        libc::iovec {
            iov_base: (&raw mut byte).cast(),
            iov_len: 1,
        },
        libc::iovec {
            iov_base: (&raw mut byte).cast(),
            iov_len: 1,
        },
    );
    // SAFETY: one byte into one byte, if any.
    let copied =
        unsafe { libc::process_vm_readv(parent, &raw const local, 1, &raw const remote, 1, 0) };
    tried.call("read the worker's memory", copied.try_into().unwrap());
    // SAFETY: signal 0 only asks.
    tried.call("signal the worker", unsafe { libc::kill(parent, 0) }.into());
    // SAFETY: as above.
    tried.call("signal all", unsafe { libc::kill(-1, 0) }.into());
    // SAFETY: as above.
    let told = unsafe { libc::syscall(libc::SYS_tgkill, parent, parent, 0) };
    tried.call("signal a thread of the worker", told);
    // SAFETY: numbers only.
    let opened = unsafe { libc::syscall(libc::SYS_pidfd_open, parent, 0) };
    tried.call("get hold of the worker", opened);
    let raised = libc::rlimit64 {
        rlim_cur: libc::RLIM64_INFINITY,
        rlim_max: libc::RLIM64_INFINITY,
    };
    for (whose, pid) in [("its own", 0), ("the worker's", parent)] {
        // SAFETY: reads one limit.
        let set = unsafe {
            libc::prlimit64(
                pid,
                libc::RLIMIT_NOFILE,
                &raw const raised,
                std::ptr::null_mut(),
            )
        };
        tried.call(&format!("change {whose} limits"), set.into());
    }
    // SAFETY: numbers only.
    let nice = unsafe { libc::setpriority(libc::PRIO_PROCESS, parent.unsigned_abs(), 19) };
    tried.call("slow the worker", nice.into());
    have_signalled(parent, tried);
}

/// The kernel signals whoever a file is said to belong to, when it is ready or changes.
fn have_signalled(parent: i32, tried: &mut Tried) {
    // Of `fcntl.h`, for those that the crate has no name for.
    const F_SETSIG: libc::c_int = 10;
    const F_SETOWN_EX: libc::c_int = 15;
    const DN_CREATE: libc::c_int = 4;
    let owner = [1, parent];
    let folder = File::open(".").unwrap();
    for (name, command, argument) in [
        ("give the worker a file", libc::F_SETOWN, i64::from(parent)),
        (
            "give it one in other words",
            F_SETOWN_EX,
            owner.as_ptr() as i64,
        ),
        ("choose the signal", F_SETSIG, libc::SIGKILL.into()),
        ("be signalled", libc::F_SETFL, libc::O_ASYNC.into()),
        (
            "be signalled, and not wait",
            libc::F_SETFL,
            (libc::O_ASYNC | libc::O_NONBLOCK).into(),
        ),
        ("watch a folder", libc::F_NOTIFY, DN_CREATE.into()),
        ("take a lease", libc::F_SETLEASE, libc::F_RDLCK.into()),
    ] {
        // SAFETY: numbers, and the address of two of them that live.
        let done = unsafe { libc::syscall(libc::SYS_fcntl, folder.as_raw_fd(), command, argument) };
        let error = io::Error::last_os_error();
        assert!(
            done < 0 && error.raw_os_error() == Some(libc::EPERM),
            "{name}: {done}, {error}"
        );
        tried.add::<()>(name, Err(error));
    }
}

/// System calls that open a way around every wall.
fn escape(tried: &mut Tried) {
    for (name, number) in [
        ("io_uring_setup", libc::SYS_io_uring_setup),
        ("bpf", libc::SYS_bpf),
        ("userfaultfd", libc::SYS_userfaultfd),
        ("perf_event_open", libc::SYS_perf_event_open),
        ("unshare", libc::SYS_unshare),
        ("setns", libc::SYS_setns),
        ("mount", libc::SYS_mount),
        ("pivot_root", libc::SYS_pivot_root),
        ("chroot", libc::SYS_chroot),
        ("keyctl", libc::SYS_keyctl),
        ("memfd_create", libc::SYS_memfd_create),
        ("shmget", libc::SYS_shmget),
        ("msgget", libc::SYS_msgget),
        ("mq_open", libc::SYS_mq_open),
        ("init_module", libc::SYS_init_module),
        ("reboot", libc::SYS_reboot),
        ("seccomp", libc::SYS_seccomp),
        ("setuid", libc::SYS_setuid),
        ("capset", libc::SYS_capset),
        ("personality", libc::SYS_personality),
        ("open_by_handle_at", libc::SYS_open_by_handle_at),
        ("ioctl", libc::SYS_ioctl),
    ] {
        // SAFETY: null addresses and zeros; where the call were let through it would say so.
        let result = unsafe { libc::syscall(number, 0, 0, 0, 0, 0, 0) };
        let error = io::Error::last_os_error();
        assert!(
            result < 0 && error.raw_os_error() == Some(libc::EPERM),
            "{name}: {result}, {error}"
        );
        tried.add::<()>(name, Err(error));
    }
    // SAFETY: numbers only.
    let dumpable = unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) };
    tried.call("become dumpable again", dumpable.into());
    // SAFETY: as above.
    let outlive = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, 0, 0, 0, 0) };
    tried.call("outlive the worker", outlive.into());
}

fn link(orders: &Orders, tried: &mut Tried) {
    tried.add("make a link", symlink("/etc/passwd", "made"));
    for planted in [
        "link-to-file",
        "link-to-folder/secret",
        "link-to-root/etc/passwd",
    ] {
        tried.add(format!("read through {planted}"), fs::read(planted));
        let opened = OpenOptions::new().append(true).open(planted);
        tried.add(format!("write through {planted}"), opened);
    }
    tried.add("list through a link", fs::read_dir("link-to-folder"));
    tried.add(
        "swap a file with one outside",
        fs::rename(&orders.file, "outputs.safetensors"),
    );
}

fn inherit(tried: &mut Tried) {
    for descriptor in 3..1024 {
        // SAFETY: asks about a number.
        let flags = unsafe { libc::fcntl(descriptor, libc::F_GETFD) };
        tried.call(&format!("use descriptor {descriptor}"), flags.into());
    }
    let known = [
        "HOME",
        "TMPDIR",
        "LANG",
        "OMP_",
        "MKL_",
        "CUBLAS_",
        "NVIDIA_",
        "CUDA_",
        "ATEN_",
        "ONEDNN_",
        "LD_LIBRARY_PATH",
    ];
    for (name, value) in std::env::vars() {
        if !known.iter().any(|known| name.starts_with(known)) {
            tried.add(format!("see {name}={value}"), Ok(()));
        }
    }
}

fn memory(orders: &Orders, tried: &mut Tried) {
    let bytes = orders.amount;
    let map = |sharing: libc::c_int| {
        // SAFETY: a mapping of its own, which nothing else knows.
        let place = unsafe {
            let writable = libc::PROT_READ | libc::PROT_WRITE;
            let flags = sharing | libc::MAP_ANONYMOUS;
            libc::mmap(std::ptr::null_mut(), bytes, writable, flags, -1, 0)
        };
        if place == libc::MAP_FAILED {
            -1
        } else {
            // SAFETY: just mapped, of this size.
            unsafe { place.write_bytes(1, bytes) };
            0
        }
    };
    tried.call("map private memory", map(libc::MAP_PRIVATE));
    tried.call("map shared memory", map(libc::MAP_SHARED));
    let mut hoard: Vec<Vec<u8>> = Vec::new();
    let eaten = (0..bytes / MEBIBYTE).try_for_each(|_| {
        let mut piece = Vec::new();
        piece
            .try_reserve_exact(MEBIBYTE)
            .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        piece.resize(MEBIBYTE, 1);
        hoard.push(piece);
        Ok(())
    });
    tried.add("take memory piece by piece", eaten);
}

/// Takes memory that its own limit does not count, and waits.
fn share(orders: &Orders) {
    // SAFETY: a mapping of its own, which nothing else knows.
    let place = unsafe {
        let writable = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        libc::mmap(std::ptr::null_mut(), orders.amount, writable, flags, -1, 0)
    };
    assert_ne!(place, libc::MAP_FAILED, "without walls it can be mapped");
    // SAFETY: just mapped, of this size.
    unsafe { place.write_bytes(1, orders.amount) };
    thread::sleep(Duration::from_mins(10));
}

fn file(orders: &Orders, tried: &mut Tried) {
    // The limit's signal would end it before it could tell.
    // SAFETY: ignores a signal.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let mut file = File::create("big").unwrap();
    let written =
        (0..orders.amount / MEBIBYTE).try_for_each(|_| file.write_all(&vec![1; MEBIBYTE]));
    tried.add("write a large file", written);
    tried.add("stretch a file", file.set_len(orders.amount as u64));
}

/// Writes one file after the other until it is ended.
fn files(orders: &Orders) {
    for number in 0.. {
        fs::write(format!("file-{number}"), vec![1; orders.amount]).unwrap();
        thread::sleep(Duration::from_millis(10));
    }
}

/// What it must still be able to do.
fn work(tried: &mut Tried) {
    tried.add(
        "start a thread",
        thread::Builder::new()
            .spawn(|| ())
            .map(|it| it.join().unwrap()),
    );
    tried.add("write a file", fs::write("a", b"x"));
    tried.add("replace a file", fs::rename("a", "b"));
    tried.add("read a file", fs::read("b"));
    tried.add("list its folder", fs::read_dir(".").map(Iterator::count));
    tried.add("remove a file", fs::remove_file("b"));
    let folder = File::open(".").unwrap();
    tried.add("hold a file twice", folder.try_clone());
    // SAFETY: numbers only.
    let set = unsafe { libc::fcntl(folder.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
    tried.call("set flags of a file", set.into());
}
