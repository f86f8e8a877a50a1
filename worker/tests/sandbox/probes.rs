//! The probes, one test each.

use std::{
    fs,
    net::TcpListener,
    os::{fd::AsRawFd as _, unix::net::UnixListener, unix::process::ExitStatusExt as _},
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use comptoir_domain::job::Device;
use comptoir_worker::{
    engine::{Code, Description, Event, Failure, HostTask, Launcher, Limits, Task, host::Happened},
    sandbox::{Features, Sandbox, Wall},
};
use libtest_mimic::{Failed, Trial};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::hostile::{ORDERS, OUTCOME, Orders, Outcome};

const LIMITS: Limits = Limits {
    memory_bytes: 256 << 20,
    wall: Duration::from_mins(1),
    file_bytes: 16 << 20,
};
const FILES: &[Wall] = &[Wall::Landlock];
const CALLS: &[Wall] = &[Wall::Seccomp];
const BOTH: &[Wall] = &[Wall::Landlock, Wall::Seccomp];

/// Every probe.
pub fn all() -> Vec<Trial> {
    let here = Features::detect();
    let probe = move |name: &str, needs: &'static [Wall], run: fn()| {
        let missing = here.missing().find(|wall| needs.contains(wall));
        Trial::test(name, move || -> Result<(), Failed> {
            match missing {
                Some(wall) => eprintln!("skipped: this machine offers no {wall}"),
                None => run(),
            }
            Ok(())
        })
    };
    let mut probes = of_walls(&probe);
    probes.extend(of_limits(&probe));
    probes
}

/// Makes a probe of what it is called, what it needs, and what it does.
type Probe = dyn Fn(&str, &'static [Wall], fn()) -> Trial;

fn of_walls(probe: &Probe) -> Vec<Trial> {
    vec![
        probe("a_child_can_still_work", BOTH, can_work),
        probe(
            "a_child_reads_nothing_of_the_machine_the_worker_or_another_job",
            FILES,
            cannot_read,
        ),
        probe(
            "a_child_sees_not_even_names_of_files_outside",
            BOTH,
            cannot_look_around,
        ),
        probe(
            "a_child_writes_nothing_outside_its_scratch",
            BOTH,
            cannot_write,
        ),
        probe("a_child_has_no_network_and_no_names", CALLS, cannot_connect),
        probe(
            "a_child_starts_no_process_and_leaves_none",
            BOTH,
            cannot_multiply,
        ),
        probe("a_child_cannot_touch_the_worker", CALLS, cannot_touch),
        probe(
            "a_child_cannot_ask_the_kernel_for_a_way_around",
            CALLS,
            cannot_escape,
        ),
        probe(
            "a_child_that_hosts_a_model_has_the_same_walls",
            BOTH,
            cannot_do_more_as_host,
        ),
        probe("links_lead_nowhere", BOTH, cannot_follow_links),
        probe("without_walls_the_same_attacks_get_through", &[], bite),
        probe(
            "a_child_inherits_no_file_and_no_secret",
            CALLS,
            inherits_nothing,
        ),
    ]
}

fn of_limits(probe: &Probe) -> Vec<Trial> {
    vec![
        probe(
            "a_child_gets_no_more_memory_than_its_job_was_quoted",
            CALLS,
            cannot_hoard,
        ),
        probe(
            "a_child_that_grows_in_memory_that_its_limit_does_not_count_is_ended",
            &[],
            cannot_grow,
        ),
        probe(
            "a_child_writes_no_file_over_its_limit",
            CALLS,
            cannot_fill_the_disk,
        ),
        probe(
            "a_child_that_fills_its_folder_is_ended",
            &[],
            cannot_fill_its_folder,
        ),
        probe("a_child_ends_at_its_wall_time", &[], cannot_outstay),
        probe("a_child_ends_at_its_processor_time", &[], cannot_spin),
        probe(
            "a_crash_leaves_no_core_and_is_a_crash",
            CALLS,
            leaves_no_core,
        ),
    ]
}

/// A worker's folder with a secret, two scratch folders, and a child in one of them.
struct Scene {
    root: TempDir,
    orders: Orders,
    /// In place of the walls that this machine offers.
    sandbox: Option<Sandbox>,
    /// Whether the child was started to host a model.
    hosts: bool,
}

impl Scene {
    fn new(attack: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        for folder in ["scratch/own", "scratch/other"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        fs::write(root.path().join("scratch/other/secret"), b"secret").unwrap();
        fs::write(root.path().join("key"), b"secret").unwrap();
        let folder = root.path().canonicalize().unwrap();
        let orders = Orders {
            attack: attack.to_owned(),
            file: folder.join("key").to_str().unwrap().to_owned(),
            folder: folder.to_str().unwrap().to_owned(),
            parent: i32::try_from(std::process::id()).unwrap(),
            ..Orders::default()
        };
        Self {
            root,
            orders,
            sandbox: None,
            hosts: false,
        }
    }

    fn own(&self) -> PathBuf {
        self.root.path().join("scratch/own")
    }

    /// Lets the child attack; how it ended.
    fn attack(&self, limits: Limits) -> Failure {
        let orders = serde_json::to_vec(&self.orders).unwrap();
        fs::write(self.own().join(ORDERS), orders).unwrap();
        let mut launcher = Launcher::new(std::env::current_exe().unwrap());
        if let Some(sandbox) = self.sandbox {
            launcher = launcher.behind(sandbox);
        }
        // The canary's description: a child that computes, and no job that this one would not understand.
        let description = Description {
            task: Task::Canary,
            device: Device::Cpu,
            threads: 2,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        if self.hosts {
            return runtime.block_on(self.host(&launcher, limits));
        }
        let last = runtime.block_on(async {
            let job = launcher.spawn(limits, description, &self.own()).unwrap();
            job.last().await
        });
        let Event::Failed(failure) = last else {
            panic!("a hostile child never answers: {last:?}")
        };
        failure
    }

    /// The same in a child that was started to host a model.
    async fn host(&self, launcher: &Launcher, limits: Limits) -> Failure {
        let task = HostTask {
            program: "program".into(),
            weights: None,
            writing: None,
            batch_max: 1,
        };
        let host = launcher.host(limits, (Device::Cpu, 2), task, &self.own());
        let mut host = host.unwrap();
        match host.next().await {
            Some(Happened::Ended(failure)) => failure,
            said => panic!("a hostile child never answers: {said:?}"),
        }
    }

    /// What came of it: all that was tried, with the reason why it failed.
    fn outcome(&self, limits: Limits) -> Outcome {
        let failure = self.attack(limits);
        let told = fs::read(self.own().join(OUTCOME)).unwrap_or_else(|_| panic!("{failure}"));
        serde_json::from_slice(&told).unwrap()
    }

    /// Everything that was tried failed, and so much was.
    fn all_fail(&self, at_least: usize) {
        let outcome = self.outcome(LIMITS);
        assert!(outcome.len() >= at_least, "{outcome:?}");
        let done: Vec<_> = outcome
            .iter()
            .filter(|(_, reason)| reason.is_none())
            .collect();
        assert!(done.is_empty(), "it could: {done:?}");
    }

    /// Nothing outside the scratch folder has changed.
    fn is_untouched(&self) {
        let names = |folder: &str| {
            let entries = fs::read_dir(self.root.path().join(folder)).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names("."), ["key", "scratch"]);
        assert_eq!(names("scratch"), ["other", "own"]);
        assert_eq!(names("scratch/other"), ["secret"]);
        for secret in ["key", "scratch/other/secret"] {
            assert_eq!(fs::read(self.root.path().join(secret)).unwrap(), b"secret");
        }
    }
}

fn can_work() {
    let outcome = Scene::new("work").outcome(LIMITS);
    assert_eq!(outcome.len(), 8);
    assert!(
        outcome.iter().all(|(_, reason)| reason.is_none()),
        "{outcome:?}"
    );
}

fn cannot_read() {
    Scene::new("read").all_fail(11);
    let mut scene = Scene::new("read");
    let other = fs::canonicalize(scene.root.path().join("scratch/other")).unwrap();
    other
        .join("secret")
        .to_str()
        .unwrap()
        .clone_into(&mut scene.orders.file);
    scene.all_fail(11);
}

fn cannot_look_around() {
    let scene = Scene::new("names");
    let outcome = scene.outcome(LIMITS);
    if outcome.is_empty() {
        eprintln!(
            "skipped: this machine grants neither namespaces nor the right to a root of one's own"
        );
        return;
    }
    scene.all_fail(7);
}

fn cannot_write() {
    let scene = Scene::new("write");
    scene.all_fail(11);
    scene.is_untouched();
}

fn cannot_connect() {
    let mut scene = Scene::new("connect");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    scene.orders.port = listener.local_addr().unwrap().port();
    let socket = scene.own().join("open");
    let _listening = UnixListener::bind(&socket).unwrap();
    socket.to_str().unwrap().clone_into(&mut scene.orders.file);
    scene.all_fail(13);
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "somebody connected");
}

fn cannot_multiply() {
    Scene::new("multiply").all_fail(70);
}

fn cannot_touch() {
    Scene::new("touch").all_fail(17);
}

fn cannot_escape() {
    Scene::new("escape").all_fail(24);
}

fn cannot_do_more_as_host() {
    for (attack, at_least) in [("read", 11), ("write", 11), ("touch", 10), ("escape", 24)] {
        let mut scene = Scene::new(attack);
        scene.hosts = true;
        scene.all_fail(at_least);
        scene.is_untouched();
    }
}

fn cannot_follow_links() {
    let scene = Scene::new("link");
    let plant = |name: &str, to: PathBuf| {
        std::os::unix::fs::symlink(to, scene.own().join(name)).unwrap();
    };
    plant("link-to-file", "/etc/passwd".into());
    plant("link-to-folder", scene.root.path().join("scratch/other"));
    plant("link-to-root", "/".into());
    scene.all_fail(9);
    scene.is_untouched();
}

/// A probe that fails of itself would prove nothing.
fn bite() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    for attack in ["read", "names", "write", "connect"] {
        let mut scene = Scene::new(attack);
        scene.orders.port = listener.local_addr().unwrap().port();
        scene.sandbox = Some(Sandbox {
            features: Features::NONE,
            allow_unsandboxed: true,
        });
        let outcome = scene.outcome(LIMITS);
        assert!(
            outcome.iter().any(|(_, reason)| reason.is_none()),
            "{attack}: {outcome:?}"
        );
    }
}

fn inherits_nothing() {
    let scene = Scene::new("inherit");
    let left_open = fs::File::open(scene.root.path().join("key")).unwrap();
    // A copy that an ordinary child would inherit.
    let copies: Vec<_> = (0..4)
        .map(|_| nix::fcntl::fcntl(&left_open, nix::fcntl::FcntlArg::F_DUPFD(200)).unwrap())
        .collect();
    assert!(
        copies
            .iter()
            .all(|copy| *copy >= 200 && *copy != left_open.as_raw_fd())
    );
    let outcome = scene.outcome(LIMITS);
    let seen: Vec<_> = outcome
        .iter()
        .filter(|(_, reason)| reason.is_none())
        .collect();
    // Its pipe, which it moved away from standard output.
    assert_eq!(seen, [&("use descriptor 3".to_owned(), None)]);
}

fn cannot_hoard() {
    let mut scene = Scene::new("memory");
    let limits = Limits {
        memory_bytes: 64 << 20,
        ..LIMITS
    };
    scene.orders.amount = 640 << 20;
    let outcome = scene.outcome(limits);
    assert_eq!(outcome.len(), 3);
    assert!(
        outcome.iter().all(|(_, reason)| reason.is_some()),
        "{outcome:?}"
    );
    // What it was quoted it gets.
    scene.orders.amount = 24 << 20;
    let outcome = scene.outcome(limits);
    assert_eq!(outcome[0].1, None, "{outcome:?}");
    assert_eq!(outcome[2].1, None, "{outcome:?}");
}

fn cannot_grow() {
    let mut scene = Scene::new("share");
    scene.sandbox = Some(Sandbox {
        features: Features::NONE,
        allow_unsandboxed: true,
    });
    scene.orders.amount = 640 << 20;
    let limits = Limits {
        memory_bytes: 64 << 20,
        ..LIMITS
    };
    let failure = scene.attack(limits);
    assert_eq!(failure.code, Code::OutOfMemory, "{failure}");
    assert!(failure.detail.contains("its memory passed"), "{failure}");
}

fn cannot_fill_the_disk() {
    let mut scene = Scene::new("file");
    scene.orders.amount = 1 << 30;
    scene.all_fail(2);
    let big = fs::metadata(scene.own().join("big")).unwrap().len();
    assert_eq!(big, LIMITS.file_bytes);
}

fn cannot_fill_its_folder() {
    let mut scene = Scene::new("files");
    scene.orders.amount = 1 << 20;
    let limits = Limits {
        file_bytes: 1 << 20,
        ..LIMITS
    };
    let failure = scene.attack(limits);
    assert_eq!(failure.code, Code::DiskLimit, "{failure}");
}

fn cannot_outstay() {
    let limits = Limits {
        wall: Duration::from_secs(3),
        ..LIMITS
    };
    let failure = Scene::new("sleep").attack(limits);
    assert_eq!(failure.code, Code::TimeLimit, "{failure}");
}

/// Started by hand, since the worker gives a minute of processor time beyond the wall time.
fn cannot_spin() {
    let scene = Scene::new("spin");
    let orders = serde_json::to_vec(&scene.orders).unwrap();
    fs::write(scene.own().join(ORDERS), orders).unwrap();
    let arguments = LIMITS.arguments(Device::Cpu, 1, &scene.own());
    let arguments = arguments.into_iter().map(|argument| {
        let is_limit = argument
            .to_str()
            .is_some_and(|it| it.starts_with("--cpu-seconds="));
        if is_limit {
            "--cpu-seconds=2".into()
        } else {
            argument
        }
    });
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.arg("child").args(arguments).current_dir(scene.own());
    let status = child.stdin(Stdio::null()).status().unwrap();
    assert_eq!(status.signal(), Some(Signal::SIGXCPU as i32), "{status}");
}

fn leaves_no_core() {
    let scene = Scene::new("abort");
    let failure = scene.attack(LIMITS);
    assert_eq!(failure.code, Code::Crashed, "{failure}");
    assert!(failure.detail.contains("SIGABRT"), "{failure}");
    assert!(!failure.detail.contains("core dumped"), "{failure}");
    assert_eq!(fs::read_dir(scene.own()).unwrap().count(), 1, "its orders");
}
