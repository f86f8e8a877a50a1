//! Signatures of accounts that are contracts (EIP-1271): the contract says whether one is its own.

use std::{fmt, time::Duration};

use alloy::{
    primitives::{Address, B256, Bytes},
    providers::{DynProvider, Provider as _, ProviderBuilder},
    rpc::types::TransactionRequest,
    sol,
    sol_types::SolCall as _,
};
use tokio::sync::OnceCell;
use url::Url;

/// How long the node may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Gas that a contract may use to judge a signature.
const GAS_MAX: u64 = 1_000_000;
/// What a contract answers to a signature of its own: the selector, then zeros.
const MAGIC: [u8; 4] = [0x16, 0x26, 0xba, 0x7e];

sol! {
    function isValidSignature(bytes32 hash, bytes signature) external view returns (bytes4);
}

/// Asks the contracts of one chain.
pub struct ContractWallets {
    node: DynProvider,
    chain_id: OnceCell<u64>,
}

impl fmt::Debug for ContractWallets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContractWallets")
            .field("chain_id", &self.chain_id.get())
            .finish_non_exhaustive()
    }
}

/// The node did not answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Too slow.
    #[error("the Ethereum node did not answer in time")]
    Timeout,
    /// It could not be reached, or answered nonsense.
    #[error("ask the Ethereum node")]
    Transport(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl ContractWallets {
    /// Asks the node at this URL.
    #[must_use]
    pub fn new(rpc: Url) -> Self {
        Self {
            node: ProviderBuilder::default().connect_http(rpc).erased(),
            chain_id: OnceCell::new(),
        }
    }

    /// Does the contract at `address` on this chain take the signature for its own? An address without a contract takes
    /// none, and so does every address of another chain than the node's.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn take(
        &self,
        (chain_id, address): (u64, Address),
        hash: B256,
        signature: Bytes,
    ) -> Result<bool, AskError> {
        let asking = async {
            if self.chain_id().await? != chain_id {
                return Ok(false);
            }
            self.ask(address, hash, signature).await
        };
        match tokio::time::timeout(ANSWER_TIMEOUT, asking).await {
            Ok(answer) => answer,
            Err(_) => Err(AskError::Timeout),
        }
    }

    async fn chain_id(&self) -> Result<u64, AskError> {
        let asked = self.chain_id.get_or_try_init(|| self.node.get_chain_id());
        asked
            .await
            .copied()
            .map_err(|error| AskError::Transport(error.into()))
    }

    async fn ask(&self, address: Address, hash: B256, signature: Bytes) -> Result<bool, AskError> {
        let call = isValidSignatureCall { hash, signature };
        let request = TransactionRequest::default()
            .to(address)
            .gas_limit(GAS_MAX)
            .input(Bytes::from(call.abi_encode()).into());
        match self.node.call(request).await {
            Ok(answer) => {
                let mut expected = [0; 32];
                expected[..4].copy_from_slice(&MAGIC);
                Ok(answer.as_ref() == expected.as_slice())
            }
            // The contract reverted: it does not know the signature, or the question.
            Err(error) if error.is_error_resp() => Ok(false),
            Err(error) => Err(AskError::Transport(error.into())),
        }
    }
}
