//! The user's own key: binds an address, deposits, claims. It never leaves this machine.

use std::path::Path;

use alloy::{
    network::EthereumWallet,
    primitives::{Address, B256, U256},
    providers::{DynProvider, Provider as _, ProviderBuilder},
    signers::{SignerSync as _, local::PrivateKeySigner},
};
use anyhow::{Context as _, bail};
use comptoir_contracts_bindings::{ComptoirToken, Settlement};
use url::Url;

use crate::{
    exit::{Exit, coded},
    secret,
};

/// A private key of the user's.
pub struct Wallet {
    signer: PrivateKeySigner,
}

/// Gas used and where, for the user's records.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    /// The transaction.
    pub hash: B256,
    /// Gas that it used.
    pub gas: u64,
}

impl Wallet {
    /// A fresh key, not saved.
    #[must_use]
    pub fn random() -> Self {
        Self {
            signer: PrivateKeySigner::random(),
        }
    }

    /// Reads a key file: 32 bytes in hexadecimal.
    ///
    /// # Errors
    /// When the file is missing or holds no key.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let signer = text.trim().parse().map_err(|_| {
            anyhow::anyhow!(
                "{} does not hold a private key of 64 hexadecimal digits",
                path.display()
            )
        })?;
        Ok(Self { signer })
    }

    /// Reads a key file, or makes one.
    ///
    /// # Errors
    /// When the file can be neither read nor written.
    pub fn read_or_create(path: &Path) -> anyhow::Result<Self> {
        if !path.exists() {
            Self::random().write(path)?;
        }
        Self::read(path)
    }

    /// Writes the key to a file that only its owner may read.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        secret::write(path, &alloy::hex::encode(self.signer.to_bytes()))
    }

    /// The address of the key.
    #[must_use]
    pub const fn address(&self) -> Address {
        self.signer.address()
    }

    /// The key itself, for a transaction builder.
    #[must_use]
    pub fn signer(&self) -> PrivateKeySigner {
        self.signer.clone()
    }

    /// An EIP-191 signature of a text, in hexadecimal.
    ///
    /// # Errors
    /// When the key cannot sign.
    pub fn sign_message(&self, message: &str) -> anyhow::Result<String> {
        let signature = self.signer.sign_message_sync(message.as_bytes())?;
        Ok(alloy::hex::encode_prefixed(signature.as_bytes()))
    }

    /// A connection to the chain that signs with this key.
    #[must_use]
    pub fn connect(&self, rpc: &Url) -> DynProvider {
        ProviderBuilder::new()
            .wallet(EthereumWallet::from(self.signer.clone()))
            .connect_http(rpc.clone())
            .erased()
    }

    /// Sends tokens to somebody.
    ///
    /// # Errors
    /// When the chain refuses.
    pub async fn send_tokens(
        &self,
        rpc: &Url,
        token: Address,
        to: Address,
        base: u128,
    ) -> anyhow::Result<Sent> {
        let token = ComptoirToken::new(token, self.connect(rpc));
        let transfer = token.transfer(to, U256::from(base));
        mined(transfer.send().await.context("send tokens")?).await
    }

    /// Approves and deposits, for the wallet's own account.
    ///
    /// # Errors
    /// When the chain refuses: no tokens, no gas, frozen, an exit open.
    pub async fn deposit(
        &self,
        rpc: &Url,
        token: Address,
        contract: Address,
        base: u128,
    ) -> anyhow::Result<Sent> {
        let provider = self.connect(rpc);
        let token = ComptoirToken::new(token, provider.clone());
        let amount = U256::from(base);
        let balance = token
            .balanceOf(self.address())
            .call()
            .await
            .context("read the token balance")?;
        if balance < amount {
            let message = format!(
                "{} holds {balance} base units of the token, less than {amount}",
                self.address()
            );
            return Err(coded(Exit::InsufficientFunds, message));
        }
        let approval = token
            .approve(contract, amount)
            .send()
            .await
            .context("approve")?;
        approval
            .get_receipt()
            .await
            .context("wait for the approval")?;
        let settlement = Settlement::new(contract, provider);
        let deposit = settlement.deposit(self.address(), amount);
        mined(deposit.send().await.context("deposit")?).await
    }
}

/// Waits until a transaction is mined, and refuses one that reverted.
///
/// # Errors
/// When it reverted or never came in.
pub async fn mined(
    pending: alloy::providers::PendingTransactionBuilder<alloy::network::Ethereum>,
) -> anyhow::Result<Sent> {
    let receipt = pending
        .get_receipt()
        .await
        .context("wait for the transaction")?;
    if !receipt.status() {
        bail!("the transaction {} reverted", receipt.transaction_hash);
    }
    Ok(Sent {
        hash: receipt.transaction_hash,
        gas: receipt.gas_used,
    })
}
