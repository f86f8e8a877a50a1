//! Deploys the contracts and leaves nothing behind: three keys hold the three roles, the deployer none.

use std::time::Duration;

use alloy::{
    consensus::{SignableTransaction as _, TxEip1559, TxEnvelope},
    eips::{BlockId, eip2718::Encodable2718 as _},
    network::TxSignerSync as _,
    primitives::{Address, B256, Bytes, TxKind, U256},
    providers::{Provider as _, RootProvider},
    rpc::types::{TransactionReceipt, TransactionRequest},
    signers::local::PrivateKeySigner,
};
use comptoir_contracts_bindings::{ComptoirToken, Settlement, TimelockController};
use url::Url;

use crate::{
    chain::{ChainError, provider},
    fees::FeePolicy,
};

/// How often a receipt is asked for.
const RECEIPT_EVERY: Duration = Duration::from_millis(100);
/// How long it may take to be mined.
const RECEIPT_WITHIN: Duration = Duration::from_mins(3);

/// The token that is settled in.
#[derive(Debug, Clone, Copy)]
pub enum Token {
    /// One that exists.
    Existing(Address),
    /// A new one, whose whole first supply goes to `holder`; the timelock may mint up to the cap.
    New {
        /// Who receives the first supply.
        holder: Address,
        /// How much it is, in base units.
        initial_supply: U256,
        /// Most there can ever be, in base units.
        cap: U256,
    },
}

/// What is deployed.
#[derive(Debug, Clone)]
pub struct Deployment {
    /// The token.
    pub token: Token,
    /// Who proposes and executes what the timelock does: the operators' multisig.
    pub admin: Address,
    /// How long the timelock waits.
    pub timelock_delay: Duration,
    /// Whose key commits batches.
    pub settler: Address,
    /// Whose key vetoes them.
    pub guardian: Address,
    /// The contract's windows.
    pub windows: Windows,
    /// How far payables may grow.
    pub caps: Caps,
}

/// The contract's windows, in seconds.
#[derive(Debug, Clone, Copy)]
pub struct Windows {
    /// From a commit until its batch is active.
    pub window: u32,
    /// Silence after which anyone can freeze.
    pub escape_after: u32,
    /// From an exit's request until anyone can freeze over it.
    pub exit_deadline: u32,
}

impl Windows {
    /// Short enough to watch.
    pub const DEVELOPMENT: Self = Self {
        window: 20,
        escape_after: 3_600,
        exit_deadline: 3_600,
    };
    /// Six hours, two weeks, three weeks.
    pub const MAINNET: Self = Self {
        window: 21_600,
        escape_after: 1_209_600,
        exit_deadline: 1_814_400,
    };
}

/// How far payables may grow, in base units.
#[derive(Debug, Clone, Copy)]
pub struct Caps {
    /// By one batch.
    pub per_batch: u128,
    /// By all batches of a day.
    pub per_day: u128,
}

/// What was deployed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deployed {
    /// The chain.
    pub chain_id: u64,
    /// The token.
    pub token: Address,
    /// Its `symbol()`.
    pub symbol: String,
    /// Its `decimals()`.
    pub decimals: u8,
    /// The timelock, which is the contract's ADMIN.
    pub timelock: Address,
    /// The settlement contract.
    pub settlement: Address,
    /// The block before the settlement contract: where an indexer begins.
    pub start_block: u64,
}

/// Why nothing, or not all, was deployed.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    /// Two roles on one key, or a role on the deployer's.
    #[error("admin, settler, guardian and deployer must be four different keys: {0} appears twice")]
    KeysOverlap(Address),
    /// The deployment is there, but not as it should be.
    #[error("after the deployment {0}")]
    Assertion(&'static str),
    /// A transaction failed.
    #[error("transaction {0} failed")]
    Failed(B256),
    /// A transaction was not mined in time.
    #[error("transaction {0} was not mined")]
    NotMined(B256),
    /// The key did not sign.
    #[error("sign a transaction")]
    Sign(#[from] alloy::signers::Error),
    /// The chain.
    #[error("use the chain")]
    Chain(#[from] ChainError),
}

impl From<alloy::transports::TransportError> for DeployError {
    fn from(error: alloy::transports::TransportError) -> Self {
        Self::Chain(error.into())
    }
}

impl From<alloy::contract::Error> for DeployError {
    fn from(error: alloy::contract::Error) -> Self {
        Self::Chain(error.into())
    }
}

/// An account that sends transactions one after the other and waits for each.
#[derive(Debug, Clone)]
pub struct Sender {
    provider: RootProvider,
    signer: PrivateKeySigner,
}

impl Sender {
    /// An account on the chain of a node.
    ///
    /// # Errors
    /// When the HTTP client cannot be made.
    pub fn new(rpc: Url, signer: PrivateKeySigner) -> Result<Self, DeployError> {
        Ok(Self {
            provider: provider(rpc)?,
            signer,
        })
    }

    /// Its address.
    #[must_use]
    pub const fn address(&self) -> Address {
        self.signer.address()
    }

    /// The node.
    #[must_use]
    pub const fn provider(&self) -> &RootProvider {
        &self.provider
    }

    /// Calls a contract and waits until that is mined.
    ///
    /// # Errors
    /// When the call would fail, fails, or is not mined.
    pub async fn call(
        &self,
        to: Address,
        calldata: Bytes,
    ) -> Result<TransactionReceipt, DeployError> {
        self.transact(TxKind::Call(to), calldata).await
    }

    /// Creates a contract and waits until that is mined.
    ///
    /// # Errors
    /// When the constructor fails, or it is not mined.
    pub async fn create(&self, code: Bytes) -> Result<Address, DeployError> {
        let receipt = self.transact(TxKind::Create, code).await?;
        receipt
            .contract_address
            .ok_or(DeployError::Failed(receipt.transaction_hash))
    }

    async fn transact(&self, to: TxKind, input: Bytes) -> Result<TransactionReceipt, DeployError> {
        let from = self.address();
        let mut request = TransactionRequest::default()
            .from(from)
            .input(input.clone().into());
        request.to = Some(to);
        let gas = self
            .provider
            .estimate_gas(request)
            .block(BlockId::latest())
            .await?;
        let head = self
            .provider
            .get_block(BlockId::latest())
            .await?
            .ok_or(ChainError::NoBlock(BlockId::latest()))?;
        let base_fee = u128::from(head.header.base_fee_per_gas.unwrap_or_default());
        let fees = FeePolicy::default().estimate(base_fee, 0);
        let mut transaction = TxEip1559 {
            chain_id: self.provider.get_chain_id().await?,
            nonce: self.provider.get_transaction_count(from).await?,
            gas_limit: gas + gas / 5,
            max_fee_per_gas: fees.cap_wei,
            max_priority_fee_per_gas: fees.tip_wei,
            to,
            value: U256::ZERO,
            access_list: alloy::eips::eip2930::AccessList::default(),
            input,
        };
        let signature = self.signer.sign_transaction_sync(&mut transaction)?;
        let envelope = TxEnvelope::Eip1559(transaction.into_signed(signature));
        let hash = *envelope.tx_hash();
        drop(
            self.provider
                .send_raw_transaction(&envelope.encoded_2718())
                .await?,
        );
        let receipt = tokio::time::timeout(RECEIPT_WITHIN, self.receipt(hash)).await;
        let receipt = receipt.map_err(|_| DeployError::NotMined(hash))??;
        if receipt.status() {
            Ok(receipt)
        } else {
            Err(DeployError::Failed(hash))
        }
    }

    async fn receipt(&self, hash: B256) -> Result<TransactionReceipt, DeployError> {
        loop {
            if let Some(receipt) = self.provider.get_transaction_receipt(hash).await? {
                return Ok(receipt);
            }
            tokio::time::sleep(RECEIPT_EVERY).await;
        }
    }
}

/// Deploys token (where it is new), timelock and settlement contract, and checks what came of it.
///
/// # Errors
/// When two roles share a key, a transaction fails, or the result is not as it should be.
pub async fn deploy(
    rpc: Url,
    deployer: PrivateKeySigner,
    plan: &Deployment,
) -> Result<Deployed, DeployError> {
    let sender = Sender::new(rpc, deployer)?;
    let keys = [plan.admin, plan.settler, plan.guardian, sender.address()];
    for (place, key) in keys.iter().enumerate() {
        if keys[..place].contains(key) {
            return Err(DeployError::KeysOverlap(*key));
        }
    }
    let node = sender.provider().clone();
    let delay = U256::from(plan.timelock_delay.as_secs());
    // No admin of its own: from its first block on, only what was proposed and waited for happens.
    let timelock = TimelockController::deploy_builder(
        &node,
        delay,
        vec![plan.admin],
        vec![plan.admin],
        Address::ZERO,
    );
    let timelock = sender.create(timelock.calldata().clone()).await?;
    let token = match plan.token {
        Token::Existing(token) => token,
        Token::New {
            holder,
            initial_supply,
            cap,
        } => {
            let token = ComptoirToken::deploy_builder(&node, timelock, holder, initial_supply, cap);
            sender.create(token.calldata().clone()).await?
        }
    };
    let start_block = node.get_block_number().await?;
    let roles = Settlement::Roles {
        admin: timelock,
        settler: plan.settler,
        guardian: plan.guardian,
    };
    let windows = Settlement::Windows {
        window: plan.windows.window,
        escapeAfter: plan.windows.escape_after,
        exitDeadline: plan.windows.exit_deadline,
    };
    let caps = Settlement::Caps {
        perBatch: plan.caps.per_batch,
        perDay: plan.caps.per_day,
    };
    let settlement = Settlement::deploy_builder(&node, token, roles, windows, caps);
    let settlement = sender.create(settlement.calldata().clone()).await?;
    assert_roles(&node, settlement, timelock, plan, sender.address()).await?;
    let erc20 = ComptoirToken::new(token, &node);
    Ok(Deployed {
        chain_id: node.get_chain_id().await?,
        token,
        symbol: erc20.symbol().call().await?,
        decimals: erc20.decimals().call().await?,
        timelock,
        settlement,
        start_block,
    })
}

async fn assert_roles(
    node: &RootProvider,
    settlement: Address,
    timelock: Address,
    plan: &Deployment,
    deployer: Address,
) -> Result<(), DeployError> {
    let contract = Settlement::new(settlement, node);
    let roles = [
        (contract.ADMIN().call().await?, timelock),
        (contract.SETTLER().call().await?, plan.settler),
        (contract.GUARDIAN().call().await?, plan.guardian),
    ];
    for (role, holder) in roles {
        if !contract.hasRole(role, holder).call().await? {
            return Err(DeployError::Assertion("a role is not on its key"));
        }
        if contract.hasRole(role, deployer).call().await? {
            return Err(DeployError::Assertion("the deployer holds a role"));
        }
    }
    let controller = TimelockController::new(timelock, node);
    let admin_role = controller.DEFAULT_ADMIN_ROLE().call().await?;
    if controller.hasRole(admin_role, deployer).call().await? {
        return Err(DeployError::Assertion("the deployer holds the timelock"));
    }
    Ok(())
}
