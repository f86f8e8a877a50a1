//! Takedowns of all accounts, through the API.

use clap::Subcommand;
use serde_json::json;

use crate::{
    args::ListArgs,
    client::{Context, jobs::filtered, takedowns::TAKEDOWN},
};

/// What administrators do with takedowns.
#[derive(Debug, Subcommand)]
pub enum Takedowns {
    /// Takedowns of all accounts, newest first; `filed` waits for you, and `contested` does.
    List {
        #[command(flatten)]
        page: ListArgs,
        /// Those in this state.
        #[arg(long)]
        state: Option<String>,
    },
    /// One takedown, with the words of both sides.
    Get {
        /// Its id.
        id: String,
    },
    /// Blocks the dataset; its seller has 14 days to contest that.
    Freeze(TakedownArgs),
    /// Sees no reason to block the dataset.
    Dismiss(TakedownArgs),
    /// Blocks the dataset for good; what was held back goes to who paid.
    Uphold(TakedownArgs),
    /// Gives the dataset back; what was held back goes to who earned it.
    Reject(TakedownArgs),
}

/// Which takedown, and why.
#[derive(Debug, clap::Args)]
pub struct TakedownArgs {
    /// Its id.
    pub id: String,
    /// Why; both sides read it, and it is in the audit log.
    #[arg(long)]
    pub reason: String,
}

/// Runs a verb on takedowns.
///
/// # Errors
/// When the service refuses.
pub async fn run(context: &Context, verb: &Takedowns) -> anyhow::Result<()> {
    let api = context.api().await?;
    let (args, action) = match verb {
        Takedowns::List { page, state } => {
            let path = filtered("/v1/admin/takedowns", page, &[("state", state)]);
            context.output.list(&api.get(&path).await?, TAKEDOWN);
            return Ok(());
        }
        Takedowns::Get { id } => {
            let takedown = api.get(&format!("/v1/admin/takedowns/{id}")).await?;
            context.output.object(&takedown, TAKEDOWN);
            return Ok(());
        }
        Takedowns::Freeze(args) => (args, "freeze"),
        Takedowns::Dismiss(args) => (args, "dismiss"),
        Takedowns::Uphold(args) => (args, "uphold"),
        Takedowns::Reject(args) => (args, "reject"),
    };
    let path = format!("/v1/admin/takedowns/{}/{action}", args.id);
    let takedown = api.post(&path, &json!({ "reason": args.reason })).await?;
    context.output.object(&takedown, TAKEDOWN);
    Ok(())
}
