//! `comptoir admin import-batches`: brings a restored database up to the chain.

use anyhow::Context as _;
use clap::Args;
use comptoir_settler::{Finality, chain::RPC_TIMEOUT, import};
use comptoir_store::{assets, pool::ServiceRole};
use serde_json::json;

use crate::{
    client::Context,
    service::{
        config::{Common, Endpoints},
        parts,
    },
};

/// Which chain, and what is final on it.
#[derive(Debug, Args)]
pub struct ImportArgs {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub endpoints: Endpoints,
    /// Blocks after which a block is final [default: the chain's own `finalized` tag].
    #[arg(long, env = "COMPTOIR_FINALITY_DEPTH")]
    pub finality_depth: Option<u64>,
}

/// Takes in the batches that the contract has and the database does not.
///
/// # Errors
/// When a settler runs, or anything does not fit; the database stays as it is.
pub async fn import_batches(context: &Context, args: ImportArgs) -> anyhow::Result<()> {
    let db = parts::connect(&args.common, ServiceRole::Settler).await?;
    let asset = assets::current(&mut *db.acquire().await?).await?;
    let objects = parts::objects(&args.common)?;
    let finality = args.finality_depth.map_or(Finality::Tags, Finality::Depth);
    let imported = import::import(
        (db, objects, asset),
        (&args.endpoints.all(), RPC_TIMEOUT),
        finality,
        context.now,
    )
    .await
    .context("import batches")?;
    let report = json!({
        "batches": imported.batches,
        "receipts": imported.receipts,
        "released_base": imported.released,
        "last_batch": imported.last,
    });
    context.output.object(
        &report,
        &["batches", "receipts", "released_base", "last_batch"],
    );
    Ok(())
}
