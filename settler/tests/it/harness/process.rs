//! The settler as it is run: a process of its own, which a crash point may kill.

use std::{
    net::SocketAddr,
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use alloy::providers::Provider as _;
use comptoir_store::chain;
use nix::sys::signal::Signal;
use sqlx::ConnectOptions as _;
use tokio::process::{Child, Command};

use super::{DEPTH, Key, World};

/// Beats of the chain that a process gets for whatever it has to do,
const BEATS_MAX: usize = 1_500;
/// and how long they may take together: many times what they do, also on a busy machine.
pub const WAIT_MAX: Duration = Duration::from_mins(2);
/// Between two looks and between two beats.
const PAUSE: Duration = Duration::from_millis(10);
/// Looks that a beat waits for a settler, which may not run.
const PATIENCE: usize = 100;
/// The base fee of expensive blocks.
const EXPENSIVE_WEI: u64 = 100_000_000_000;

pub struct Process(Child);

/// How a settler is run.
pub struct Serve<'a> {
    /// It is killed at this crash point (`name:nth`).
    pub crash_at: Option<&'a str>,
    /// Blocks until a block is final.
    pub depth: u64,
    /// The nodes that it asks.
    pub rpcs: Vec<url::Url>,
    /// Where it serves its metrics.
    pub metrics: Option<SocketAddr>,
    /// Where its log goes, if not to the test's.
    pub log: Option<PathBuf>,
}

impl World {
    /// Starts `comptoir serve settler`, to be killed at a crash point (`name:nth`) if one is given.
    pub fn serve(&self, crash_at: Option<&str>) -> Process {
        self.serve_as(&Serve {
            crash_at,
            ..self.usual()
        })
    }

    /// A settler that nothing happens to.
    pub fn usual(&self) -> Serve<'static> {
        Serve {
            crash_at: None,
            depth: DEPTH,
            rpcs: vec![self.anvil.url.clone()],
            metrics: None,
            log: None,
        }
    }

    pub fn serve_as(&self, how: &Serve<'_>) -> Process {
        let key = self.folder.path().join("settler.key");
        let hex = alloy::hex::encode(Key::Settler.signer().to_bytes());
        std::fs::write(&key, hex).unwrap();
        let objects = url::Url::from_directory_path(self.folder.path()).unwrap();
        let mut command = Command::new(comptoir_devchain::built("comptoir"));
        command
            .args([
                "serve",
                "settler",
                "--finality-depth",
                &how.depth.to_string(),
            ])
            .args(["--batch-after-s", "0", "--poll-ms", "10"])
            .args(["--listen", "127.0.0.1:0"])
            .args(["--start-block", &self.deployed.start_block.to_string()])
            .args(["--rpc-url", how.rpcs[0].as_str()])
            .args(
                how.rpcs[1..]
                    .iter()
                    .map(|it| format!("--rpc-url-also={it}")),
            )
            .args(how.metrics.map(|it| format!("--metrics-listen={it}")))
            .args(["--objects-url", objects.as_str()])
            .arg("--key-file")
            .arg(key)
            .env(
                "DATABASE_URL",
                self.owner.connect_options().to_url_lossy().as_str(),
            )
            .env_remove("CRASH_AT")
            .env("RUST_LOG", "warn")
            .stdout(Stdio::null())
            .kill_on_drop(true);
        if let Some(point) = how.crash_at {
            command.env("CRASH_AT", point);
        }
        if let Some(log) = &how.log {
            command.stderr(std::fs::File::create(log).unwrap());
        }
        Process(command.spawn().unwrap())
    }

    async fn beat(&self, beat: Beat) {
        // No faster than a settler follows, where one runs: it sees every block as the newest.
        for _ in 0..PATIENCE {
            if self.is_followed().await {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        match beat {
            Beat::Block => self.anvil.pass(3).await,
            Beat::ExpensiveBlock => {
                self.anvil.next_base_fee(EXPENSIVE_WEI).await;
                self.anvil.mine(1).await;
            }
            Beat::Nothing => {}
        }
        tokio::time::sleep(PAUSE).await;
    }

    /// Has a settler read the newest block?
    pub async fn is_followed(&self) -> bool {
        let head = self.anvil.node.get_block_number().await.unwrap();
        let mut conn = self.api.acquire().await.unwrap();
        let cursor = chain::cursor(&mut conn, self.asset.id).await.unwrap();
        cursor.is_some_and(|cursor| cursor.head_number >= head)
    }
}

/// What happens on the chain while a process does its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beat {
    /// A block is mined, and three seconds pass.
    Block,
    /// A block is mined whose base fee keeps out what was signed before.
    ExpensiveBlock,
    /// Nothing.
    Nothing,
}

impl Process {
    /// Lets the chain go on until the crash point has killed the process.
    pub async fn dies(self, world: &World) {
        self.dies_while(world, Beat::Block).await;
    }

    pub async fn dies_while(mut self, world: &World, beat: Beat) {
        let end = Instant::now() + WAIT_MAX;
        for _ in 0..BEATS_MAX {
            if Instant::now() >= end {
                break;
            }
            tokio::select! {
                status = self.0.wait() => {
                    let signal = status.unwrap().signal();
                    assert_eq!(signal, Some(Signal::SIGKILL as i32));
                    return;
                }
                () = world.beat(beat) => {}
            }
        }
        panic!(
            "the crash point was not reached within {BEATS_MAX} beats and {WAIT_MAX:?}: {:?}",
            world.states().await
        );
    }

    /// Lets the chain go on until `done`, with the process alive.
    pub async fn until(&mut self, world: &World, done: impl AsyncFn(&World) -> bool) {
        self.until_while(world, Beat::Block, done).await;
    }

    pub async fn until_while(
        &mut self,
        world: &World,
        beat: Beat,
        done: impl AsyncFn(&World) -> bool,
    ) {
        let end = Instant::now() + WAIT_MAX;
        for _ in 0..BEATS_MAX {
            if done(world).await {
                return;
            }
            if Instant::now() >= end {
                break;
            }
            if let Some(status) = self.0.try_wait().unwrap() {
                panic!("the settler ended: {status}");
            }
            world.beat(beat).await;
        }
        panic!(
            "it did not come to that within {BEATS_MAX} beats and {WAIT_MAX:?}: {:?}",
            world.states().await
        );
    }

    /// Lets so many blocks pass, with the process alive.
    pub async fn alive_for(&mut self, world: &World, beats: usize) {
        for _ in 0..beats {
            assert!(self.0.try_wait().unwrap().is_none(), "the settler ended");
            world.beat(Beat::Block).await;
        }
    }

    pub fn id(&self) -> u32 {
        self.0.id().expect("it runs")
    }

    /// Ends it as a power cut would.
    pub async fn kill(mut self) {
        self.0.kill().await.unwrap();
    }
}
