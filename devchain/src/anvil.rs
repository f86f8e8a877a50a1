//! A chain of its own for a test, ended with it. What cannot be is a panic: the test has failed.

use std::process::Stdio;

use alloy::{
    primitives::{Address, B256},
    providers::{Provider as _, ProviderBuilder, RootProvider},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};
use url::Url;

/// A local chain with the identifier 31337, at the newest rules of mainnet. Each transaction makes a block.
#[derive(Debug)]
pub struct Anvil {
    _process: Child,
    /// Where it answers.
    pub url: Url,
    /// It, to be asked.
    pub node: RootProvider,
}

impl Anvil {
    /// Starts it on a free port.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start(options: &[&str]) -> Self {
        let program = super::find().expect("anvil: run `make setup`, or set ANVIL");
        let mut process = Command::new(program)
            .args(["--port", "0", "--host", "127.0.0.1", "--hardfork", "osaka"])
            .args(options)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .expect("anvil starts");
        let output = process.stdout.take().expect("its output is piped");
        let mut lines = BufReader::new(output).lines();
        let url: Url = loop {
            let line = lines.next_line().await.ok().flatten();
            let line = line.expect("anvil says where it listens");
            if let Some(address) = line.strip_prefix("Listening on ") {
                let url = format!("http://{address}").parse();
                break url.expect("an address makes a URL");
            }
        };
        // Read on, or anvil would wait for a reader.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let node = ProviderBuilder::new()
            .disable_recommended_fillers()
            .connect_http(url.clone());
        Self {
            _process: process,
            url,
            node,
        }
    }

    /// Asks it anything.
    ///
    /// # Panics
    /// When it answers with an error.
    pub async fn ask(&self, method: &'static str, params: Value) -> Value {
        self.node
            .raw_request(method.into(), params)
            .await
            .unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// Mines so many blocks.
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

    /// Each transaction makes a block again.
    pub async fn mine_by_itself(&self) {
        self.ask("evm_setAutomine", json!([true])).await;
    }

    /// Forgets a transaction that waits.
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

    /// Gives an account so much ether, whatever it has.
    pub async fn set_ether(&self, account: Address, wei: u128) {
        self.ask("anvil_setBalance", json!([account, format!("{wei:#x}")]))
            .await;
    }

    /// Transactions of an account that are mined.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn nonce_of(&self, account: Address) -> u64 {
        let count = self.node.get_transaction_count(account).await;
        count.expect("anvil answers")
    }
}
