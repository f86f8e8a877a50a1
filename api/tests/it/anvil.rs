//! A chain of its own for a test, ended with it.

use std::{path::PathBuf, process::Stdio};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};
use url::Url;

/// A local chain with the identifier 31337.
pub struct Anvil {
    _process: Child,
    pub url: Url,
}

/// `$ANVIL`, the packages of `contracts/`, or the PATH.
fn binary() -> PathBuf {
    if let Some(binary) = std::env::var_os("ANVIL") {
        return binary.into();
    }
    let arch = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let package = format!("../contracts/node_modules/@foundry-rs/anvil-linux-{arch}/bin/anvil");
    let package = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(package);
    if package.exists() {
        package
    } else {
        "anvil".into()
    }
}

impl Anvil {
    pub async fn start() -> Self {
        let mut process = Command::new(binary())
            .args(["--port", "0", "--host", "127.0.0.1"])
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .expect("anvil: run `make setup`, or set ANVIL");
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let url = loop {
            let line = lines.next_line().await.unwrap();
            let line = line.expect("anvil says where it listens");
            if let Some(address) = line.strip_prefix("Listening on ") {
                break format!("http://{address}").parse().unwrap();
            }
        };
        // Read on, or anvil would wait for a reader.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self {
            _process: process,
            url,
        }
    }
}
