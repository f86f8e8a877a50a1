//! A chain of its own for each test, ended with it.

use std::{path::PathBuf, process::Stdio};

use alloy::{
    primitives::{Address, B256},
    providers::{Provider as _, RootProvider},
};
use comptoir_settler::chain::provider;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};
use url::Url;

pub struct Anvil {
    _process: Child,
    pub url: Url,
    pub node: RootProvider,
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
    pub async fn start(options: &[&str]) -> Self {
        let mut process = Command::new(binary())
            .args(["--port", "0", "--host", "127.0.0.1", "--hardfork", "osaka"])
            .args(options)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .expect("anvil: run `make setup`, or set ANVIL");
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let url: Url = loop {
            let line = lines
                .next_line()
                .await
                .unwrap()
                .expect("anvil says where it listens");
            if let Some(address) = line.strip_prefix("Listening on ") {
                break format!("http://{address}").parse().unwrap();
            }
        };
        // Read on, or anvil would wait for a reader.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let node = provider(url.clone()).unwrap();
        Self {
            _process: process,
            url,
            node,
        }
    }

    pub async fn ask(&self, method: &'static str, params: Value) -> Value {
        self.node
            .raw_request(method.into(), params)
            .await
            .unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    pub async fn mine(&self, blocks: u64) {
        self.ask("anvil_mine", json!([format!("{blocks:#x}")]))
            .await;
    }

    /// Lets so much time pass on the chain, and mines a block that shows it.
    pub async fn pass(&self, seconds: u64) {
        self.ask("evm_increaseTime", json!([seconds])).await;
        self.mine(1).await;
    }

    /// Replaces the newest blocks by empty ones.
    pub async fn reorganise(&self, depth: u64) {
        self.ask("anvil_reorg", json!([depth, []])).await;
    }

    /// Blocks are mined only when they are asked for.
    pub async fn hold_back(&self) {
        self.ask("evm_setAutomine", json!([false])).await;
    }

    pub async fn mine_by_itself(&self) {
        self.ask("evm_setAutomine", json!([true])).await;
    }

    pub async fn drop_transaction(&self, hash: B256) {
        self.ask("anvil_dropTransaction", json!([hash])).await;
    }

    /// What the next block asks for a unit of gas, in wei.
    pub async fn next_base_fee(&self, wei: u64) {
        self.ask(
            "anvil_setNextBlockBaseFeePerGas",
            json!([format!("{wei:#x}")]),
        )
        .await;
    }

    /// Forgets every transaction that waits.
    pub async fn drop_transactions(&self) {
        self.ask("anvil_dropAllTransactions", json!([])).await;
    }

    pub async fn set_ether(&self, account: Address, wei: u128) {
        self.ask("anvil_setBalance", json!([account, format!("{wei:#x}")]))
            .await;
    }

    /// Transactions of an account that are mined.
    pub async fn nonce_of(&self, account: Address) -> u64 {
        self.node.get_transaction_count(account).await.unwrap()
    }
}
