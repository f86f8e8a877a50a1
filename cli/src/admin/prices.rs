//! Prices: published in the database itself, or from a time on through the API.

use anyhow::Context as _;
use clap::{Args, Subcommand};
use comptoir_domain::{
    amount::Amount,
    audit::{Action, Actor, Event},
    job::Device,
    price::Rate,
};
use comptoir_store::{assets, audit, prices};
use serde_json::json;
use sqlx::Connection as _;

use super::{OperatorArg, connect, refunds::asset};
use crate::{
    args::ListArgs,
    client::{Context, idempotency_key, jobs::list_path},
};

const PRICE: &[&str] = &[
    "id",
    "device",
    "rate_nano",
    "minimum",
    "platform_ppm",
    "in_force",
    "effective_at",
];

/// What administrators do with prices.
#[derive(Debug, Subcommand)]
pub enum Prices {
    /// Every published price, those to come too.
    List(ListArgs),
    /// Publishes a price from a time on. Quotes made before keep theirs.
    Publish(FuturePrice),
}

/// A price to come.
#[derive(Debug, Args)]
pub struct FuturePrice {
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
    /// From when on, such as `2027-01-01T00:00:00Z`.
    #[arg(long)]
    pub effective_at: String,
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
    #[command(flatten)]
    pub operator: OperatorArg,
}

/// Runs a verb.
///
/// # Errors
/// When the service refuses.
pub async fn run(context: &Context, verb: &Prices) -> anyhow::Result<()> {
    let api = context.api().await?;
    match verb {
        Prices::List(page) => {
            let prices = api.get(&list_path("/v1/admin/prices", page)).await?;
            context.output.list(&prices, PRICE);
        }
        Prices::Publish(args) => {
            let (asset, decimals) = asset(&api).await?;
            let minimum =
                json!({ "amount": args.minimum_base, "asset": asset, "decimals": decimals });
            let body = json!({
                "device": args.device,
                "rate_nano": args.rate_nano,
                "minimum": minimum,
                "platform_ppm": args.platform_ppm,
                "effective_at": args.effective_at,
            });
            let price = api
                .create("/v1/admin/prices", &idempotency_key(), &body)
                .await?;
            context.output.object(&price, PRICE);
        }
    }
    Ok(())
}

/// Publishes a price at once, in the database itself: for a deployment that has no administrator yet.
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
    let mut tx = connection.begin().await?;
    let asset = assets::current(&mut tx).await?;
    let published = prices::publish(&mut tx, asset.id, price).await?;
    let actor = Actor::Operator(args.operator.operator);
    let event = Event::new(
        actor,
        Action::PricePublished,
        format!("price {}", published.id),
    )
    .with("device", device.as_str())
    .with("rate_nano", args.rate_nano.to_string())
    .with("minimum_base", args.minimum_base.to_string())
    .with("platform_ppm", args.platform_ppm);
    audit::append(&mut tx, &event, context.now).await?;
    tx.commit().await?;
    let report = serde_json::to_value(published)?;
    context.output.object(
        &report,
        &["id", "device", "rate_nano", "minimum_base", "platform_ppm"],
    );
    Ok(())
}
