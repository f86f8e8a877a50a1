//! `comptoir up`, started by a test.

use std::{
    io::{BufRead as _, BufReader},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
};

use comptoir_cli::embedded::open_to_others;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::harness::{binary, checkout};

/// The command, with everything embedded and on free ports.
pub fn up(folder: &Path) -> Command {
    let mut command = Command::new(binary("comptoir"));
    command
        .current_dir(checkout())
        .args(["up", "--api-port", "0", "--scheduler-port", "0", "--folder"])
        .arg(folder)
        .env_remove("DATABASE_URL")
        .env_remove("REDIS_URL")
        .env_remove("ETH_RPC_URL")
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command
}

/// A node that has said where it answers.
pub struct Node {
    process: Child,
    pub api: String,
    pub chain: String,
    pub contract: String,
}

impl Node {
    pub fn start(folder: &Path) -> Self {
        let mut process = up(folder).spawn().unwrap();
        let said: Vec<String> = BufReader::new(process.stdout.take().unwrap())
            .lines()
            .map(Result::unwrap)
            .take_while(|line| !line.starts_with("Ctrl-C"))
            .collect();
        let value = |name: &str| {
            let line = said.iter().find(|line| line.starts_with(name));
            let line = line.unwrap_or_else(|| panic!("no {name} in {said:?}"));
            line.split_whitespace().nth(1).unwrap().to_owned()
        };
        Self {
            api: value("api"),
            chain: value("chain"),
            contract: value("contract"),
            process,
        }
    }

    pub fn answers(&self) -> bool {
        let address = self.api.trim_start_matches("http://").trim_end_matches('/');
        TcpStream::connect(address).is_ok()
    }

    pub fn end(&mut self, signal: Signal) {
        let pid = Pid::from_raw(self.process.id().try_into().unwrap());
        kill(pid, signal).unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Node {
    /// A test that failed leaves the node running; one that passed may have ended it.
    fn drop(&mut self) {
        if self.process.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.end(Signal::SIGTERM);
        }
    }
}

/// A folder below which root's Postgres user may pass.
pub fn reachable_folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    open_to_others(folder.path()).unwrap();
    folder
}
