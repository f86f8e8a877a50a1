//! Puts the chain-facing service together.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use comptoir_http::server::{self, Limits};
use comptoir_settler::{BatchPolicy, Config, Finality, fees::FeePolicy, health::Health};
use comptoir_store::{assets, pool::ServiceRole};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    clock,
    config::SettlerArgs,
    parts::{self, Running},
};
use crate::client::wallet::Wallet;

/// How long a signature may take: long enough for a vault in another region.
const SIGNER_TIMEOUT: Duration = Duration::from_secs(10);
const WEI_PER_GWEI: u128 = 1_000_000_000;

/// Runs it until a signal.
///
/// # Errors
/// When it cannot start, or the node is on another chain.
pub async fn run(args: SettlerArgs) -> anyhow::Result<()> {
    let stop = super::until_signal()?;
    parts::serve_metrics(args.common.metrics_listen, &stop).await?;
    start(args, stop).await?.ended().await
}

/// Starts it, with its health on a listener; it ends when `stop` is cancelled.
///
/// # Errors
/// When a part does not come up, or no asset is registered.
pub async fn start(args: SettlerArgs, stop: CancellationToken) -> anyhow::Result<Running> {
    let db = parts::connect(&args.common, ServiceRole::Settler).await?;
    clock::follow(&db, &stop).await?;
    let asset = assets::current(&mut *db.acquire().await?)
        .await
        .context("no contract is registered: run `comptoir admin deploy-contracts`")?;
    let objects = parts::objects(&args.common)?;
    let care = &args.care;
    let config = Config {
        rpcs: args.endpoints.all(),
        rpc_timeout: Duration::from_secs(care.rpc_timeout_s),
        signer: Arc::new(Wallet::read(&args.key_file)?.signer()),
        signer_timeout: SIGNER_TIMEOUT,
        start_block: args.start_block,
        finality: args.finality_depth.map_or(Finality::Tags, Finality::Depth),
        finality_stall: Duration::from_secs(care.finality_stall_s),
        head_stale: Duration::from_secs(care.head_stale_s),
        batches: BatchPolicy {
            interval: Duration::from_secs(args.batch_after_s),
            receipts: args.batch_receipts,
            value_base: args.batch_value_base,
        },
        fees: FeePolicy {
            tip_floor_wei: wei(care.tip_floor_gwei),
            ceiling_wei: wei(care.fee_ceiling_gwei),
            spend_per_day_wei: wei(care.spend_per_day_gwei),
            bump_after_blocks: care.bump_after_blocks,
        },
        poll: Duration::from_millis(args.poll_ms),
        holder: format!("{}-{}", std::process::id(), uuid::Uuid::now_v7()),
    };
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("listen on {}", args.listen))?;
    let address = listener.local_addr()?;
    let health = Arc::new(Health::default());
    let router = comptoir_settler::health::router(Arc::clone(&health), super::now);
    let serving = server::serve(
        listener,
        router,
        Limits::default(),
        stop.clone().cancelled_owned(),
    );
    let settling = comptoir_settler::run(
        (db, objects, asset),
        config,
        super::now,
        health,
        stop.clone(),
    );
    tracing::info!(%address, contract = %asset.contract, "settler runs");
    Ok(Running::spawn("settler", address, async move {
        let (served, settled) = tokio::join!(serving, async {
            let settled = settling.await;
            stop.cancel();
            settled
        });
        settled?;
        Ok(served?)
    }))
}

fn wei(gwei: u64) -> u128 {
    u128::from(gwei) * WEI_PER_GWEI
}
