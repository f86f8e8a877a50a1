//! One node, and the contract seen through it. What it says is a vote, no more.

use std::time::Duration;

use alloy::{
    eips::BlockId,
    primitives::{Address, B256},
    providers::{Provider as _, ProviderBuilder, RootProvider},
    rpc::types::Filter,
};
use comptoir_contracts_bindings::Settlement::{self, SettlementInstance};
use comptoir_domain::settlement::event::Logged;
use comptoir_store::chain::Block;
use url::Url;

use super::{ChainError, RPC_TIMEOUT, Tip};
use crate::decode;

/// A node without fillers: nonce, fees and bytes are the settler's own.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// Its place, host and port: the rest of a URL may be a secret.
    pub name: String,
    pub provider: RootProvider,
    pub contract: Address,
    pub token: Address,
}

/// What an endpoint is called in logs and metrics.
pub(super) fn name(place: usize, rpc: &Url) -> String {
    let host = rpc.host_str().unwrap_or_default();
    match rpc.port_or_known_default() {
        Some(port) => format!("{place}/{host}:{port}"),
        None => format!("{place}/{host}"),
    }
}

/// A node without fillers and with the usual deadline.
///
/// # Errors
/// When the HTTP client cannot be made.
pub fn provider(rpc: Url) -> Result<RootProvider, ChainError> {
    provider_within(rpc, RPC_TIMEOUT)
}

pub(super) fn provider_within(rpc: Url, timeout: Duration) -> Result<RootProvider, ChainError> {
    let client = reqwest::Client::builder().timeout(timeout).build()?;
    Ok(ProviderBuilder::new()
        .disable_recommended_fillers()
        .connect_reqwest(client, rpc))
}

impl Endpoint {
    pub(super) fn settlement(&self) -> SettlementInstance<&RootProvider> {
        Settlement::new(self.contract, &self.provider)
    }

    pub(super) async fn chain_id(&self) -> Result<u64, ChainError> {
        Ok(self.provider.get_chain_id().await?)
    }

    pub(super) async fn find(&self, id: BlockId) -> Result<Option<Tip>, ChainError> {
        let found = self.provider.get_block(id).await?;
        Ok(found.map(|block| {
            let header = &block.header;
            Tip {
                block: Block {
                    number: header.number,
                    hash: header.hash,
                    parent_hash: header.parent_hash,
                },
                timestamp: header.timestamp,
                base_fee_wei: u128::from(header.base_fee_per_gas.unwrap_or_default()),
            }
        }))
    }

    pub(super) async fn tip(&self, id: BlockId) -> Result<Tip, ChainError> {
        self.find(id).await?.ok_or(ChainError::NoBlock(id))
    }

    pub(super) async fn events_of(&self, block: B256) -> Result<Vec<Logged>, ChainError> {
        self.events(&Filter::new().address(self.contract).at_block_hash(block))
            .await
    }

    pub(super) async fn events_between(
        &self,
        from: u64,
        to: u64,
    ) -> Result<Vec<Logged>, ChainError> {
        let filter = Filter::new().address(self.contract);
        self.events(&filter.from_block(from).to_block(to)).await
    }

    async fn events(&self, filter: &Filter) -> Result<Vec<Logged>, ChainError> {
        let mut events = Vec::new();
        for log in self.provider.get_logs(filter).await? {
            if log.address() != self.contract {
                return Err(ChainError::Malformed("a log of another contract"));
            }
            events.extend(decode::logged(&log)?);
        }
        events.sort_unstable_by_key(|logged| logged.event_seq);
        Ok(events)
    }
}
