//! The contracts of a deployment: deployed, and registered as what everything is paid in.

use std::{path::PathBuf, time::Duration};

use alloy::primitives::{Address, U256};
use anyhow::Context as _;
use clap::{Args, ValueEnum};
use comptoir_domain::{
    asset::Asset,
    audit::{Action, Actor, Event},
};
use comptoir_settler::deploy::{self, Caps, Deployed, Deployment, Token, Windows};
use comptoir_store::{assets, audit};
use serde_json::json;
use sqlx::{Connection as _, PgConnection};
use time::OffsetDateTime;
use url::Url;

use super::{OperatorArg, connect};
use crate::{
    client::{Context, wallet::Wallet},
    exit::{Exit, coded},
    output::base_units,
};

/// The least that the timelock waits for anything real: everyone must have time to leave first.
const TIMELOCK_HOURS_MIN: u64 = 48;
/// Decimals of the token that `deploy-contracts` deploys.
const DECIMALS: usize = 18;

/// Which windows the contract gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WindowsArg {
    /// 20 seconds, 1 hour, 1 hour.
    Development,
    /// 6 hours, 14 days, 21 days.
    Mainnet,
}

/// What is deployed, by whom, for whom.
#[derive(Debug, Args)]
pub struct DeployArgs {
    /// Ethereum JSON-RPC.
    #[arg(long, env = "ETH_RPC_URL")]
    pub rpc: Url,
    /// The key that pays for the deployment; it holds no role afterwards.
    #[arg(long)]
    pub deployer_key_file: PathBuf,
    /// Proposes to the timelock that administers the contract: a multisig.
    #[arg(long)]
    pub admin: Address,
    /// Commits batches.
    #[arg(long)]
    pub settler: Address,
    /// Vetoes batches and pauses.
    #[arg(long)]
    pub guardian: Address,
    /// Owns fees and dust.
    #[arg(long)]
    pub platform: Address,
    /// An ERC-20 token that exists [default: a new one].
    #[arg(long)]
    pub token: Option<Address>,
    /// First supply of a new token, to the deployer, in tokens.
    #[arg(long, default_value = "1000000")]
    pub supply: String,
    /// Most of a new token there can ever be, in tokens.
    #[arg(long, default_value = "1000000000")]
    pub cap: String,
    /// The contract's windows.
    #[arg(long, value_enum, default_value = "mainnet")]
    pub windows: WindowsArg,
    /// Hours that the timelock waits; 48 or more for anything real.
    #[arg(long, default_value_t = 48)]
    pub timelock_hours: u64,
    /// Most that one batch may release, in tokens.
    #[arg(long)]
    pub cap_per_batch: String,
    /// Most that one day may release, in tokens.
    #[arg(long)]
    pub cap_per_day: String,
    #[command(flatten)]
    pub operator: OperatorArg,
}

/// Deploys token, timelock and settlement contract, and registers the asset.
///
/// # Errors
/// When two roles share a key, the chain refuses, or the database does.
pub async fn deploy_contracts(context: &Context, args: DeployArgs) -> anyhow::Result<()> {
    let deployer = Wallet::read(&args.deployer_key_file)?;
    if args.windows == WindowsArg::Mainnet && args.timelock_hours < TIMELOCK_HOURS_MIN {
        let message =
            format!("mainnet windows need a timelock of {TIMELOCK_HOURS_MIN} hours or more");
        return Err(coded(Exit::Refused, message));
    }
    let amount =
        |tokens: &str| -> anyhow::Result<u128> { Ok(base_units(tokens, DECIMALS)?.parse()?) };
    let token = match args.token {
        Some(token) => Token::Existing(token),
        None => Token::New {
            holder: deployer.address(),
            initial_supply: U256::from(amount(&args.supply)?),
            cap: U256::from(amount(&args.cap)?),
        },
    };
    let plan = Deployment {
        token,
        admin: args.admin,
        timelock_delay: Duration::from_secs(args.timelock_hours * 3_600),
        settler: args.settler,
        guardian: args.guardian,
        windows: match args.windows {
            WindowsArg::Development => Windows::DEVELOPMENT,
            WindowsArg::Mainnet => Windows::MAINNET,
        },
        caps: Caps {
            per_batch: amount(&args.cap_per_batch)?,
            per_day: amount(&args.cap_per_day)?,
        },
    };
    let mut connection = connect().await?;
    let result = deploy::deploy(args.rpc, deployer.signer(), &plan)
        .await
        .context("deploy the contracts")?;
    let mut tx = connection.begin().await?;
    let asset = register(&mut tx, &result, args.platform, context.now).await?;
    let actor = Actor::Operator(args.operator.operator);
    let event = Event::new(actor, Action::AssetRegistered, asset.caip19())
        .with("contract", result.settlement.to_string())
        .with("platform", args.platform.to_string());
    audit::append(&mut tx, &event, context.now).await?;
    tx.commit().await?;
    let report = json!({
        "chain_id": result.chain_id,
        "token": result.token.to_string(),
        "timelock": result.timelock.to_string(),
        "contract": result.settlement.to_string(),
        "start_block": result.start_block,
    });
    context.output.object(
        &report,
        &["chain_id", "token", "timelock", "contract", "start_block"],
    );
    Ok(())
}

/// Makes what was deployed the asset that everything is paid in.
///
/// # Errors
/// When the database refuses.
pub async fn register(
    connection: &mut PgConnection,
    deployed: &Deployed,
    platform: Address,
    now: OffsetDateTime,
) -> anyhow::Result<Asset> {
    let asset = assets::NewAsset {
        chain_id: deployed.chain_id,
        token: deployed.token,
        contract: deployed.settlement,
        symbol: deployed.symbol.clone(),
        decimals: deployed.decimals,
        platform,
    };
    assets::register(connection, &asset, now)
        .await
        .context("register the asset")
}
