//! What a child that a file has taken over can do to the machine around it: nothing.
//!
//! This binary is both sides. Started as `child` it closes the walls as the child does that reads files, and then tries to get out; the real
//! parent starts it, and hears what came of it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs::{self, File},
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use clap::Parser;
use comptoir_checker::{
    Checker, Features, Verdict,
    child::{self, CheckArgs},
};
use comptoir_domain::dataset::Format;
use futures::future::BoxFuture;
use libtest_mimic::{Arguments, Failed, Trial};

/// What was achieved that may not be.
const OUT: &str = "out";
/// No attack: the child does what it is for.
const READ: &str = "read";
/// What is told of a child that was killed.
const ENDED: &str = "reading it as its format ends the reader";
/// More than a child may have, and something that it may.
const MUCH: usize = 1 << 30;
const LITTLE: usize = 128 << 20;

/// The child's command line, as the parent writes it.
#[derive(Parser)]
struct Child {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    Child {
        attack: String,
        #[command(flatten)]
        args: Box<CheckArgs>,
    },
}

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("child") {
        let Verb::Child { attack, args } = Child::parse().verb;
        if attack == READ {
            return child::run(&args);
        }
        return match child::act_enclosed(&args, || attempt(&attack)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    let here = Features::detect();
    let probe = |name: &str, is_offered: bool, run: fn()| {
        Trial::test(name, move || -> Result<(), Failed> {
            if is_offered {
                run();
            } else {
                eprintln!("skipped: this machine offers no such wall");
            }
            Ok(())
        })
    };
    let (files, calls) = (here.landlock.is_some(), here.seccomp);
    let all = files && calls;
    let probes = vec![
        probe("a_child_opens_no_file", all, opens_nothing),
        probe("a_child_has_no_network_and_no_process", all, calls_nobody),
        probe("a_child_has_only_so_much_memory", all, hoards_nothing),
        probe("a_child_writes_no_byte", all, writes_nothing),
        probe("a_child_inherits_nothing", all, inherits_nothing),
        probe("who_reads_a_file_is_behind_its_walls", all, reads_enclosed),
    ];
    libtest_mimic::run(&Arguments::from_args(), probes).exit_code()
}

/// Tries something in the child: why it failed, or [`OUT`].
fn attempt(attack: &str) -> String {
    let tried = match attack {
        "open" => File::open("/proc/self/status").map(drop),
        "link" => std::os::unix::fs::symlink("/etc/passwd", "link"),
        "connect" => UnixDatagram::unbound().map(drop),
        "multiply" => Command::new("/proc/self/exe").spawn().map(drop),
        "write" => fs::write("file", "byte"),
        "hoard" => return reserve(MUCH),
        "little" => return reserve(LITTLE),
        "environment" => return std::env::vars_os().count().to_string(),
        _ => panic!("no such attack"),
    };
    tried.map_or_else(|error| error.to_string(), |()| OUT.to_owned())
}

fn reserve(bytes: usize) -> String {
    let mut memory = Vec::<u8>::new();
    match memory.try_reserve_exact(bytes) {
        Ok(()) => OUT.to_owned(),
        Err(error) => error.to_string(),
    }
}

/// What a child tells of its attack, or what is told of it.
fn told(attack: &str) -> String {
    let checker = Checker::new(std::env::current_exe().unwrap(), &["child", attack]);
    let verdict = run(&checker, "a\n", || {});
    let Verdict::Refused(told) = verdict else {
        panic!("a hostile child finds nothing: {verdict:?}")
    };
    told
}

/// Has a checker read a table; what is looked at while its child waits for the bytes.
fn run(checker: &Checker, table: &'static str, look: impl Fn() + Send + Sync) -> Verdict {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let read = |at: u64, count: u32| -> BoxFuture<'static, _> {
        look();
        let at = usize::try_from(at).unwrap();
        let piece = &table.as_bytes()[at..at + count as usize];
        Box::pin(async move { Ok::<_, std::io::Error>(Bytes::from_static(piece)) })
    };
    let verdict = checker.check(Format::Csv, table.len() as u64, read);
    runtime.block_on(verdict).unwrap()
}

fn opens_nothing() {
    assert_ne!(told("open"), OUT);
}

fn calls_nobody() {
    for attack in ["connect", "multiply", "link"] {
        assert_ne!(told(attack), OUT, "{attack}");
    }
}

fn hoards_nothing() {
    assert_ne!(told("hoard"), OUT);
    assert_eq!(told("little"), OUT, "it can work");
}

fn writes_nothing() {
    assert_eq!(told("write"), ENDED);
}

fn inherits_nothing() {
    assert_eq!(told("environment"), "0");
}

/// The real child, looked at from outside while it waits for the first bytes of its file.
fn reads_enclosed() {
    let seen = AtomicBool::new(false);
    let checker = Checker::new(std::env::current_exe().unwrap(), &["child", READ]);
    let verdict = run(&checker, "a,b\n1,2\n", || {
        look_at(&reader());
        seen.store(true, Ordering::Relaxed);
    });
    assert!(matches!(verdict, Verdict::Accepted(Some(_))), "{verdict:?}");
    assert!(seen.into_inner(), "somebody looked");
}

/// The child of this process that reads.
fn reader() -> PathBuf {
    let parent = format!("PPid:\t{}\n", std::process::id());
    let processes = fs::read_dir("/proc").unwrap();
    let is_reader = |process: &PathBuf| {
        let status = fs::read_to_string(process.join("status")).unwrap_or_default();
        let line = fs::read(process.join("cmdline")).unwrap_or_default();
        let reads = line.split(|byte| *byte == 0).nth(2) == Some(READ.as_bytes());
        status.contains(&parent) && reads
    };
    let found = processes.map(|it| it.unwrap().path()).find(is_reader);
    found.expect("it waits for its bytes")
}

fn look_at(process: &Path) {
    let read = |name: &str| fs::read_to_string(process.join(name)).unwrap();
    let (status, limits) = (read("status"), read("limits"));
    for wall in ["NoNewPrivs:\t1\n", "Seccomp:\t2\n", "Threads:\t1\n"] {
        assert!(status.contains(wall), "{wall} in {status}");
    }
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(limit("Max file size"), "0");
    assert_eq!(limit("Max core file size"), "0");
    let memory: u64 = limit("Max data size").parse().unwrap();
    assert!(memory < MUCH as u64, "{memory}");
    assert_eq!(read("oom_score_adj").trim(), "1000");
    // Where the machine grants namespaces, and shows them to whoever runs this.
    let link = |name: &str| fs::read_link(process.join(name));
    let is_apart = link("ns/net").is_ok_and(|it| it != fs::read_link("/proc/self/ns/net").unwrap());
    if is_apart {
        assert_ne!(link("root").unwrap(), Path::new("/"), "names are hidden");
    }
}
