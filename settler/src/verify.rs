//! Checks a document against the chain. No server of ours is asked.

use std::collections::HashMap;

use alloy::{
    eips::BlockId,
    primitives::{Address, B256},
    providers::{Provider as _, RootProvider},
    rpc::types::Filter,
    sol_types::SolEvent as _,
    transports::TransportError,
};
use comptoir_contracts_bindings::Settlement::{self, BatchCommitted};
use comptoir_domain::{
    asset::Asset,
    settlement::{AccountDocument, Domain, Header, Mismatch, ReceiptDocument, Verified},
};
use url::Url;

use crate::chain::{ChainError, from_contract, provider};

/// Batches that the contract keeps.
const RING: u64 = 64;
/// Headers that are asked for with one question.
const HEADERS_MAX: u64 = 100;

/// Where the chain holds what a document says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnChain {
    /// What the document proves.
    pub verified: Verified,
    /// Is the batch still in the contract's ring? If not, it was found by the chain of headers.
    pub in_ring: bool,
    /// Has its window passed?
    pub active: bool,
    /// Headers that were followed to reach the ring.
    pub headers_followed: u64,
}

/// Why a document proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// Its parts do not fit together.
    #[error("the document contradicts itself")]
    Document(#[from] Mismatch),
    /// The contract holds another batch under this number, or none.
    #[error("the contract does not hold batch {batch} with hash {expected}")]
    NotOnChain {
        /// The number.
        batch: u64,
        /// The header's hash, by the document.
        expected: B256,
    },
    /// The header of a later batch, by which this one hangs on the ring, was not found.
    #[error("the header with hash {0} is not in the contract's events")]
    HeaderMissing(B256),
    /// The chain cannot be read.
    #[error("read the chain")]
    Chain(#[from] ChainError),
}

impl From<TransportError> for VerifyError {
    fn from(error: TransportError) -> Self {
        Self::Chain(error.into())
    }
}

impl From<alloy::contract::Error> for VerifyError {
    fn from(error: alloy::contract::Error) -> Self {
        Self::Chain(error.into())
    }
}

/// Checks a receipt: everything it says of itself, then that the chain holds its batch.
///
/// # Errors
/// When anything does not fit.
pub async fn receipt(rpc: Url, document: &ReceiptDocument) -> Result<OnChain, VerifyError> {
    let verified = document.verify()?;
    on_chain(rpc, document.chain_id, document.contract, verified).await
}

/// Checks an account's leaf: everything it says of itself, then that the chain holds its batch.
///
/// # Errors
/// When anything does not fit.
pub async fn account(rpc: Url, document: &AccountDocument) -> Result<OnChain, VerifyError> {
    let verified = document.verify()?;
    on_chain(rpc, document.chain_id, document.contract, verified).await
}

/// Checks that the chain holds a batch, or held it.
///
/// # Errors
/// When it does not, or cannot be read.
pub async fn batch(
    rpc: Url,
    asset: &Asset,
    number: u64,
    hash: B256,
) -> Result<OnChain, VerifyError> {
    let verified = Verified {
        leaf: B256::ZERO,
        header_hash: hash,
        batch: number,
    };
    on_chain(rpc, asset.chain_id, asset.contract, verified).await
}

async fn on_chain(
    rpc: Url,
    chain_id: u64,
    contract: Address,
    verified: Verified,
) -> Result<OnChain, VerifyError> {
    let provider = provider(rpc)?;
    let found = provider.get_chain_id().await?;
    if found != chain_id {
        return Err(ChainError::WrongChain {
            expected: chain_id,
            found,
        }
        .into());
    }
    let head = provider
        .get_block(BlockId::latest())
        .await?
        .ok_or(ChainError::NoBlock(BlockId::latest()))?;
    let at = BlockId::hash(head.header.hash);
    let settlement = Settlement::new(contract, &provider);
    let last = settlement.lastBatch().block(at).call().await?;
    let absent = VerifyError::NotOnChain {
        batch: verified.batch,
        expected: verified.header_hash,
    };
    if verified.batch == 0 || verified.batch > last {
        return Err(absent);
    }
    if last - verified.batch < RING {
        let kept = settlement
            .committedBatch(verified.batch)
            .block(at)
            .call()
            .await?;
        if kept.hash != verified.header_hash {
            return Err(absent);
        }
        let active = head.header.timestamp >= kept.activeAt.to::<u64>();
        return Ok(OnChain {
            verified,
            in_ring: true,
            active,
            headers_followed: 0,
        });
    }
    // From the oldest batch that the contract still knows, down by `prevHash`.
    let oldest = last - (RING - 1);
    let known = settlement.batchHash(oldest).block(at).call().await?;
    let domain = Domain::new(chain_id, contract);
    let headers =
        headers_down(&provider, domain, contract, (oldest, known), verified.batch).await?;
    let hash = headers.last().map_or(known, |header| header.prev_hash);
    if hash == verified.header_hash {
        // What has left the ring was claimable before it could.
        Ok(OnChain {
            verified,
            in_ring: false,
            active: true,
            headers_followed: headers.len() as u64,
        })
    } else {
        Err(absent)
    }
}

/// The headers from batch `from` down to the one after `to`. Each is taken by the hash that the one above it names, and hashed
/// again, so that a node could leave one out but not make one up.
pub(crate) async fn headers_down(
    provider: &RootProvider,
    domain: Domain,
    contract: Address,
    (from, mut hash): (u64, B256),
    to: u64,
) -> Result<Vec<Header>, VerifyError> {
    let mut number = from;
    let mut down = Vec::new();
    while number > to {
        let low = number.saturating_sub(HEADERS_MAX - 1).max(to + 1);
        let headers = headers(provider, contract, low, number).await?;
        while number >= low {
            let header = headers
                .get(&hash)
                .map(from_contract)
                .filter(|header| header.hash(&domain) == hash);
            let header = header
                .filter(|header| header.id == number)
                .ok_or(VerifyError::HeaderMissing(hash))?;
            hash = header.prev_hash;
            number -= 1;
            down.push(header);
        }
    }
    Ok(down)
}

async fn headers(
    provider: &RootProvider,
    contract: Address,
    from: u64,
    to: u64,
) -> Result<HashMap<B256, Settlement::Header>, VerifyError> {
    let ids: Vec<B256> = (from..=to)
        .map(|id| B256::from(alloy::primitives::U256::from(id)))
        .collect();
    let filter = Filter::new()
        .address(contract)
        .event_signature(BatchCommitted::SIGNATURE_HASH)
        .topic2(ids)
        .from_block(0)
        .to_block(alloy::eips::BlockNumberOrTag::Latest);
    let mut headers = HashMap::new();
    for log in provider.get_logs(&filter).await? {
        let Ok(event) = BatchCommitted::decode_log(&log.inner) else {
            continue;
        };
        headers.insert(event.hash, event.data.header);
    }
    Ok(headers)
}
