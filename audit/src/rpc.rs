//! JSON-RPC to a node: one question, one answer, both bounded.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use serde_json::{Value, json};
use url::Url;

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(20);
/// The largest answer that is read.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// Why a node was of no use.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// It did not answer.
    #[error("the node does not answer")]
    Unreachable(#[source] reqwest::Error),
    /// It answered with an error.
    #[error("the node refuses {method}: {message}")]
    Refused {
        /// What was asked.
        method: &'static str,
        /// Its words.
        message: String,
        /// What a call that reverted returned.
        data: Option<String>,
    },
    /// The answer is longer than what is read.
    #[error("the node's answer to {0} is too long")]
    TooLong(&'static str),
    /// The answer is not what the method promises.
    #[error("the node's answer holds {0}")]
    Malformed(&'static str),
    /// It is a node of another chain.
    #[error("the node is on chain {found}, not {expected}")]
    WrongChain {
        /// The one that was meant.
        expected: u64,
        /// The node's.
        found: u64,
    },
}

/// A node of Ethereum.
#[derive(Debug)]
pub struct Node {
    client: reqwest::Client,
    url: Url,
    asked: AtomicU64,
}

impl Node {
    /// A node; nothing is asked yet.
    ///
    /// # Errors
    /// When no HTTP client can be made.
    pub fn new(url: Url) -> Result<Self, RpcError> {
        let client = reqwest::Client::builder().timeout(TIMEOUT).build();
        Ok(Self {
            client: client.map_err(RpcError::Unreachable)?,
            url,
            asked: AtomicU64::new(0),
        })
    }

    /// Asks a question.
    ///
    /// # Errors
    /// When the node does not answer, refuses, or answers with something else.
    pub async fn ask(&self, method: &'static str, params: Value) -> Result<Value, RpcError> {
        let id = self.asked.fetch_add(1, Ordering::Relaxed);
        let question = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
        let sent = self.client.post(self.url.clone()).json(&question).send();
        let mut reply = sent.await.map_err(RpcError::Unreachable)?;
        let mut body = Vec::new();
        while let Some(chunk) = reply.chunk().await.map_err(RpcError::Unreachable)? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(RpcError::TooLong(method));
            }
            body.extend_from_slice(&chunk);
        }
        let mut answer: Value =
            serde_json::from_slice(&body).map_err(|_| RpcError::Malformed("no JSON"))?;
        match answer.get_mut("error").map(Value::take) {
            None | Some(Value::Null) => {}
            Some(error) => {
                return Err(RpcError::Refused {
                    method,
                    message: error["message"].as_str().unwrap_or("no reason").to_owned(),
                    data: error["data"].as_str().map(str::to_owned),
                });
            }
        }
        let result = answer.get_mut("result").map(Value::take);
        result.ok_or(RpcError::Malformed("no result"))
    }

    /// The number of a quantity, such as a block or a balance of gas.
    ///
    /// # Errors
    /// As [`Self::ask`], or when the answer is no quantity.
    pub async fn quantity(&self, method: &'static str, params: Value) -> Result<u128, RpcError> {
        quantity(&self.ask(method, params).await?)
    }
}

/// A number in the hexadecimal form of JSON-RPC.
pub(crate) fn quantity(value: &Value) -> Result<u128, RpcError> {
    let digits = value.as_str().and_then(|text| text.strip_prefix("0x"));
    digits
        .and_then(|digits| u128::from_str_radix(digits, 16).ok())
        .ok_or(RpcError::Malformed("no quantity"))
}

/// A quantity that counts something.
pub(crate) fn count(value: &Value) -> Result<u64, RpcError> {
    u64::try_from(quantity(value)?).map_err(|_| RpcError::Malformed("no count"))
}
