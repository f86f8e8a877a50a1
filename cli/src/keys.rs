//! The keys of the embedded default: made on first use, one file each, readable by their owner alone.

use std::path::Path;

use anyhow::Context as _;
use comptoir_api::auth::keys::Secrets;
use comptoir_http::jwt::SigningKey;

use crate::{client::wallet::Wallet, secret};

/// The chain keys of one deployment. Roles are different keys; the contract's deployment asserts it.
pub struct ChainKeys {
    /// Deploys, then renounces. Holds the token's first supply on a local chain.
    pub deployer: Wallet,
    /// Proposes to the timelock that administers the contract.
    pub admin: Wallet,
    /// Commits batches.
    pub settler: Wallet,
    /// Vetoes batches, pauses.
    pub guardian: Wallet,
    /// Owns fees and dust.
    pub platform: Wallet,
}

impl ChainKeys {
    /// Reads the key files of a folder; makes what is missing.
    ///
    /// # Errors
    /// When a file can be neither read nor written.
    pub fn read_or_create(folder: &Path) -> anyhow::Result<Self> {
        let key = |name: &str| Wallet::read_or_create(&folder.join(format!("{name}.key")));
        create_folder(folder)?;
        Ok(Self {
            deployer: key("deployer")?,
            admin: key("admin")?,
            settler: key("settler")?,
            guardian: key("guardian")?,
            platform: key("platform")?,
        })
    }
}

/// What the services sign and hash with.
pub struct ServiceKeys {
    /// Signs access tokens of clients and workers: Ed25519, PKCS#8 in PEM.
    pub signing_pem: String,
    /// Peppers API keys and signs cursors.
    pub pepper: [u8; 32],
}

impl ServiceKeys {
    /// Reads `jwt.pem` and `pepper` of a folder; makes what is missing.
    ///
    /// # Errors
    /// When a file can be neither read nor written, or holds something else.
    pub fn read_or_create(folder: &Path) -> anyhow::Result<Self> {
        create_folder(folder)?;
        let jwt = folder.join("jwt.pem");
        if !jwt.exists() {
            secret::write(&jwt, &SigningKey::generate_pem())?;
        }
        secret::read_or_create(&folder.join("pepper"))?;
        Self::read(folder)
    }

    /// Reads `jwt.pem` and `pepper` of a folder.
    ///
    /// # Errors
    /// When a file is missing or holds something else.
    pub fn read(folder: &Path) -> anyhow::Result<Self> {
        let text = |name: &str| {
            let path = folder.join(name);
            std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
        };
        let signing_pem = text("jwt.pem")?;
        let mut pepper = [0; 32];
        alloy::hex::decode_to_slice(text("pepper")?.trim(), &mut pepper)
            .context("`pepper` does not hold 64 hexadecimal digits")?;
        Ok(Self {
            signing_pem,
            pepper,
        })
    }
}

impl ServiceKeys {
    /// What the API makes its keys from.
    ///
    /// # Errors
    /// When `jwt.pem` holds no key.
    pub fn secrets(&self) -> anyhow::Result<Secrets<'_>> {
        let signing = SigningKey::from_pem(&self.signing_pem).context("jwt.pem")?;
        Ok(Secrets {
            signing,
            other_public_keys: &[],
            pepper: &self.pepper,
        })
    }
}

fn create_folder(folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))
}
