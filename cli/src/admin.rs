//! What operators do by command: roles, contracts, prices.

use std::{path::PathBuf, time::Duration};

use alloy::primitives::{Address, U256};
use anyhow::Context as _;
use clap::{Args, ValueEnum};
use comptoir_api::auth::{
    keys::{Keys, random},
    password::Hasher,
};
use comptoir_domain::{
    amount::Amount, credential::Email, digest::Sha256, id::JoinTokenId, job::Device,
    join_token::JoinToken, price::Rate,
};
use comptoir_settler::deploy::{self, Caps, Deployed, Deployment, Token, Windows};
use comptoir_store::{
    accounts, assets,
    join_tokens::{self, NewJoinToken},
    prices, reconciliation,
};
use serde_json::json;
use sqlx::{Connection as _, PgConnection};
use time::OffsetDateTime;
use url::Url;

use crate::{
    client::{Context, wallet::Wallet},
    exit::{Exit, coded},
    keys::ServiceKeys,
    output::base_units,
    secret,
    service::parts,
};

/// How long a join token holds.
const TOKEN_LIFETIME: time::Duration = time::Duration::DAY;
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
}

/// Whose worker joins.
#[derive(Debug, Args)]
pub struct JoinTokenArgs {
    /// The account's e-mail.
    #[arg(long)]
    pub email: String,
    /// What the token is called.
    #[arg(long, default_value = "worker")]
    pub name: String,
    /// How many workers may join with it.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub max_uses: u16,
    /// The folder with the services' `jwt.pem` and `pepper`.
    #[arg(long, env = "COMPTOIR_KEYS")]
    pub keys: PathBuf,
    /// How clients reach the API.
    #[arg(long, env = "COMPTOIR_PUBLIC_URL")]
    pub public_url: Url,
}

/// A price for one kind of device.
#[derive(Debug, Args)]
pub struct PriceArgs {
    /// `cpu` or `cuda`.
    #[arg(long)]
    pub device: String,
    /// Nano base units per 10^9 multiply-adds.
    #[arg(long)]
    pub rate_nano: Rate,
    /// The least that a job costs, in base units.
    #[arg(long)]
    pub minimum_base: Amount,
    /// The platform's share, in millionths; 200000 at most.
    #[arg(long)]
    pub platform_ppm: u32,
}

/// Gives an account the role `platform`; makes the account where there is none, with a password that is printed once.
///
/// # Errors
/// When the text is no e-mail address, or the database refuses.
pub async fn bootstrap(context: &Context, email: &str) -> anyhow::Result<()> {
    let email: Email = email.parse()?;
    let mut connection = connect().await?;
    let mut report = json!({ "email": email.as_str(), "role": "platform", "password": null });
    if !accounts::grant_platform_role(&mut connection, &email).await? {
        let password = secret::random_hex()?;
        let hash = Hasher::default().hash(password.clone()).await;
        let hash = hash.map_err(|_| coded(Exit::Failure, "the password could not be hashed"))?;
        accounts::create(&mut connection, &email, &hash, context.now).await?;
        accounts::grant_platform_role(&mut connection, &email).await?;
        report["password"] = password.into();
    }
    context
        .output
        .object(&report, &["email", "role", "password"]);
    Ok(())
}

/// Makes a join token for an account.
///
/// # Errors
/// With [`Exit::NotFound`] when no account has that e-mail; with [`Exit::Refused`] when it has no address to be paid at.
pub async fn join_token(context: &Context, args: JoinTokenArgs) -> anyhow::Result<()> {
    let email: Email = args.email.parse()?;
    let keys = ServiceKeys::read(&args.keys)?;
    let server =
        Sha256::of_document(&Keys::new(keys.secrets()?, &parts::origin(&args.public_url))?.jwks())?;
    let mut connection = connect().await?;
    let found = accounts::find_password(&mut connection, &email).await?;
    let (account, _) = found.ok_or_else(|| {
        coded(
            Exit::NotFound,
            format!("no account has the e-mail {}", args.email),
        )
    })?;
    let account = accounts::find(&mut connection, account)
        .await?
        .context("the account is gone")?;
    if account.address.is_none() {
        return Err(coded(
            Exit::Refused,
            format!(
                "{} has no address to be paid at: it must bind one first",
                args.email
            ),
        ));
    }
    let token = JoinToken::new(server, JoinTokenId::generate(), random());
    let new = NewJoinToken {
        id: token.id,
        account: account.id,
        name: &args.name,
        secret: token.secret_sha256(),
        max_uses: args.max_uses,
        expires_at: context.now.saturating_add(TOKEN_LIFETIME),
    };
    let mut tx = connection.begin().await?;
    join_tokens::create(&mut tx, &new, context.now).await?;
    tx.commit().await?;
    context.output.object(
        &json!({ "id": token.id, "token": token.reveal() }),
        &["id", "token"],
    );
    Ok(())
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
    register(&mut connection, &result, args.platform, context.now).await?;
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
) -> anyhow::Result<comptoir_domain::asset::Asset> {
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

/// Publishes a price.
///
/// # Errors
/// When there is no asset yet, or the price is out of bounds.
pub async fn publish_price(context: &Context, args: PriceArgs) -> anyhow::Result<()> {
    let device = Device::parse(&args.device)
        .with_context(|| format!("a device is `cpu` or `cuda`, not `{}`", args.device))?;
    let price = prices::NewPrice {
        device,
        rate_nano: args.rate_nano,
        minimum: args.minimum_base,
        platform_ppm: args.platform_ppm,
        effective_at: context.now,
    };
    let mut connection = connect().await?;
    let asset = assets::current(&mut connection).await?;
    let published = prices::publish(&mut connection, asset.id, price).await?;
    let report = serde_json::to_value(published)?;
    context.output.object(
        &report,
        &["id", "device", "rate_nano", "minimum_base", "platform_ppm"],
    );
    Ok(())
}

/// Lets settling go on. Prints why it stood still.
///
/// # Errors
/// With [`Exit::Refused`] when it does not stand still.
pub async fn resume_settling(context: &Context) -> anyhow::Result<()> {
    let mut connection = connect().await?;
    let asset = assets::current(&mut connection).await?;
    let halt = reconciliation::open_halt(&mut connection, asset.id).await?;
    let halt = halt.ok_or_else(|| coded(Exit::Refused, "settling does not stand still"))?;
    reconciliation::clear_halt(&mut connection, asset.id, context.now).await?;
    let report = json!({ "resumed": true, "reason": halt.reason, "detail": halt.detail });
    context
        .output
        .object(&report, &["resumed", "reason", "detail"]);
    Ok(())
}

async fn connect() -> anyhow::Result<PgConnection> {
    let url = std::env::var("DATABASE_URL").context("DATABASE_URL is not set")?;
    PgConnection::connect(&url)
        .await
        .context("connect to the database")
}
