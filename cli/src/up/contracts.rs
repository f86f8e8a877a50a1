//! The contracts of a local node: found where they are registered, deployed on a new chain.

use std::time::Duration;

use alloy::{
    primitives::{Address, U256},
    providers::{Provider as _, ProviderBuilder, ext::AnvilApi as _},
};
use anyhow::{Context as _, bail};
use comptoir_contracts_bindings::Settlement;
use comptoir_domain::{amount::Amount, asset::Asset, job::Device, price::Rate};
use comptoir_settler::deploy::{self, Caps, Deployment, Token, Windows};
use comptoir_store::{
    assets::{self, AssetError},
    prices,
};
use sqlx::{Connection as _, PgConnection};
use url::Url;

use super::{Node, TOKEN};
use crate::{admin, embedded::Embedded, keys::ChainKeys, service};

/// Ether for every key that sends transactions on the local chain.
const ETHER_BASE: u128 = 1_000 * TOKEN;
/// Prices of the local chain: 10 tokens per 10^12 multiply-adds on a CPU, at least 0.01 tokens a job.
const RATE_NANO: u128 = 10_000_000 * TOKEN;
const MINIMUM_BASE: u128 = TOKEN / 100;
/// Of the chain's own accounts, so many are given so many tokens: whoever tries this with curl alone sells with one, and buys with another.
const WALLETS: usize = 2;
const WALLET_BASE: u128 = 100 * TOKEN;
/// The platform's share on the local chain: 5 %.
const PLATFORM_PPM: u32 = 50_000;

/// The registered contract, if the chain knows it; new ones where nothing is registered yet. With it the block that an
/// indexer begins after; one that has begun knows better.
pub(super) async fn find_or_deploy(
    embedded: &Embedded,
    keys: &ChainKeys,
) -> anyhow::Result<(Asset, u64)> {
    let mut connection = PgConnection::connect(&embedded.urls.database).await?;
    match assets::current(&mut connection).await {
        Ok(asset) => {
            let provider = ProviderBuilder::new().connect_http(embedded.urls.ethereum.parse()?);
            if provider.get_code_at(asset.contract).await?.is_empty() {
                bail!(
                    "the chain does not know our contract {}: it is not the chain that the database was used with; \
                     start with that chain, or with --reset to begin anew",
                    asset.contract
                );
            }
            Ok((asset, 0))
        }
        Err(AssetError::NoneRegistered) => {
            deploy(&mut connection, &embedded.urls.ethereum, keys).await
        }
        Err(error) => Err(error.into()),
    }
}

async fn deploy(
    connection: &mut PgConnection,
    rpc: &str,
    keys: &ChainKeys,
) -> anyhow::Result<(Asset, u64)> {
    for key in [
        &keys.deployer,
        &keys.settler,
        &keys.guardian,
        &keys.admin,
        &keys.platform,
    ] {
        fund(rpc, key.address()).await?;
    }
    let plan = Deployment {
        token: Token::New {
            holder: keys.deployer.address(),
            initial_supply: U256::from(1_000_000 * TOKEN),
            cap: U256::from(1_000_000_000 * TOKEN),
        },
        admin: keys.admin.address(),
        timelock_delay: Duration::from_hours(48),
        settler: keys.settler.address(),
        guardian: keys.guardian.address(),
        windows: Windows::DEVELOPMENT,
        caps: Caps {
            per_batch: 100_000 * TOKEN,
            per_day: 1_000_000 * TOKEN,
        },
    };
    let deployed = deploy::deploy(rpc.parse()?, keys.deployer.signer(), &plan)
        .await
        .context("deploy the contracts")?;
    give_to_wallets(rpc, deployed.token, keys).await?;
    let now = service::now();
    let asset = admin::register(connection, &deployed, keys.platform.address(), now).await?;
    for device in [Device::Cpu, Device::Cuda] {
        let price = prices::NewPrice {
            device,
            rate_nano: Rate::from_nano(RATE_NANO).context("the rate is out of bounds")?,
            minimum: Amount::from_base(MINIMUM_BASE).context("the minimum is out of bounds")?,
            platform_ppm: PLATFORM_PPM,
            effective_at: now,
        };
        prices::publish(connection, asset.id, price).await?;
    }
    Ok((asset, deployed.start_block))
}

/// Gives accounts whose keys the chain itself has tokens of the first supply.
async fn give_to_wallets(rpc: &str, token: Address, keys: &ChainKeys) -> anyhow::Result<()> {
    let rpc = rpc.parse()?;
    let provider = ProviderBuilder::new().connect_http(Url::clone(&rpc));
    for wallet in provider.get_accounts().await?.into_iter().take(WALLETS) {
        let sent = keys.deployer.send_tokens(&rpc, token, wallet, WALLET_BASE);
        sent.await.context("give tokens to the chain's accounts")?;
    }
    Ok(())
}

/// Gives an address ether on a local chain.
///
/// # Errors
/// When the chain is not anvil.
pub async fn fund(rpc: &str, address: Address) -> anyhow::Result<()> {
    let provider = ProviderBuilder::new().connect_http(rpc.parse()?);
    provider
        .anvil_set_balance(address, U256::from(ETHER_BASE))
        .await
        .context("only a local anvil chain gives ether away; fund the keys in `keys/` and deploy with `comptoir admin deploy-contracts`")
}

/// Gas of the transaction that committed a batch.
///
/// # Errors
/// When the chain has no such batch.
pub async fn commit_gas(node: &Node, batch: u64) -> anyhow::Result<u64> {
    let provider = ProviderBuilder::new()
        .connect_http(node.embedded_ethereum().parse()?)
        .erased();
    let settlement = Settlement::new(node.asset.contract, provider.clone());
    let topic = alloy::primitives::B256::left_padding_from(&batch.to_be_bytes());
    let events = settlement
        .event_filter::<Settlement::BatchCommitted>()
        .from_block(0)
        .topic2(topic)
        .query()
        .await?;
    let (_, log) = events
        .last()
        .with_context(|| format!("batch {batch} is not on the chain"))?;
    let hash = log
        .transaction_hash
        .context("an event without a transaction")?;
    let receipt = provider
        .get_transaction_receipt(hash)
        .await?
        .context("a transaction without a receipt")?;
    Ok(receipt.gas_used)
}
