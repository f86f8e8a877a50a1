//! Stuck jobs, workers, and what waits to go out, through the API.

use clap::Subcommand;
use serde_json::json;

use crate::{
    args::ListArgs,
    client::{Context, jobs::filtered},
};

const STUCK: &[&str] = &[
    "id",
    "account_id",
    "state",
    "stuck",
    "status_reason",
    "attempts",
    "waiting_since",
    "last_event_at",
    "deadline_at",
];
const UNSTUCK: &[&str] = &["id", "leases_taken_back"];
const WORKER: &[&str] = &[
    "id",
    "account_id",
    "name",
    "control",
    "control_reason",
    "barred_at",
    "open_attempts",
    "accepted_attempts",
    "failed_attempts",
    "last_seen_at",
];
const OUTBOX: &[&str] = &[
    "open_jobs",
    "busy_workers",
    "verdicts.count",
    "verdicts.oldest_at",
    "receipts.count",
    "receipts.oldest_at",
    "releases.count",
    "releases.oldest_at",
    "transactions.count",
    "transactions.oldest_at",
    "notices.count",
    "notices.oldest_at",
    "notices_given_up.count",
];

/// What administrators do with stuck jobs.
#[derive(Debug, Subcommand)]
pub enum Jobs {
    /// Jobs of all accounts that wait or loop beyond bounds.
    Stuck {
        #[command(flatten)]
        page: ListArgs,
        /// A replica that could be leased has waited for so many seconds [default: 900].
        #[arg(long)]
        waiting_s: Option<String>,
        /// A replica was tried so often [default: 3].
        #[arg(long)]
        attempts: Option<String>,
        /// The results are all there, and nothing has happened for so many seconds [default: 600].
        #[arg(long)]
        silent_s: Option<String>,
    },
    /// Takes the leases on a job back and sends it to the queue.
    Requeue {
        /// Its id.
        id: String,
        /// Why, for the audit log.
        #[arg(long)]
        reason: String,
    },
    /// Ends a job, the operator at fault: everything that is held for it goes back.
    Fail {
        /// Its id.
        id: String,
        /// Why; its owner reads it.
        #[arg(long)]
        reason: String,
    },
}

/// What administrators do with workers.
#[derive(Debug, Subcommand)]
pub enum Workers {
    /// Workers of all accounts.
    List {
        #[command(flatten)]
        page: ListArgs,
        /// Those of this account.
        #[arg(long)]
        account: Option<String>,
        /// Those that are `draining` or `quarantined`.
        #[arg(long)]
        control: Option<String>,
    },
    /// One worker.
    Get {
        /// Its id.
        id: String,
    },
    /// Gives a worker nothing more; it finishes what it has.
    Drain(WorkerArgs),
    /// Gives a worker nothing more, and what it has to others.
    Quarantine(WorkerArgs),
    /// Lets a worker work again.
    Restore(WorkerArgs),
    /// Lets a worker work again that was barred because others refuted its result.
    LiftBar(WorkerArgs),
    /// Takes a worker out for good.
    Disable(WorkerArgs),
}

/// Which worker, and why.
#[derive(Debug, clap::Args)]
pub struct WorkerArgs {
    /// Its id.
    pub id: String,
    /// Why, for the audit log.
    #[arg(long)]
    pub reason: String,
}

/// What administrators do with what waits to go out.
#[derive(Debug, Subcommand)]
pub enum Outbox {
    /// What waits, and since when.
    Show,
    /// Tells everybody who waits to look again.
    WakeUps {
        /// Why, for the audit log.
        #[arg(long)]
        reason: String,
    },
    /// Has messages sent that wait for another attempt or were given up.
    Notices {
        /// Why, for the audit log.
        #[arg(long)]
        reason: String,
    },
}

/// Runs a verb on jobs.
///
/// # Errors
/// When the service refuses.
pub async fn run_jobs(context: &Context, verb: &Jobs) -> anyhow::Result<()> {
    let api = context.api().await?;
    let (id, action, reason) = match verb {
        Jobs::Stuck {
            page,
            waiting_s,
            attempts,
            silent_s,
        } => {
            let filters = [
                ("waiting_s", waiting_s),
                ("attempts", attempts),
                ("silent_s", silent_s),
            ];
            let path = filtered("/v1/admin/jobs/stuck", page, &filters);
            context.output.list(&api.get(&path).await?, STUCK);
            return Ok(());
        }
        Jobs::Requeue { id, reason } => (id, "requeue", reason),
        Jobs::Fail { id, reason } => (id, "fail", reason),
    };
    let path = format!("/v1/admin/jobs/{id}/{action}");
    let job = api.post(&path, &json!({ "reason": reason })).await?;
    context.output.object(&job, UNSTUCK);
    Ok(())
}

/// Runs a verb on workers.
///
/// # Errors
/// When the service refuses.
pub async fn run_workers(context: &Context, verb: &Workers) -> anyhow::Result<()> {
    let api = context.api().await?;
    let (args, action) = match verb {
        Workers::List {
            page,
            account,
            control,
        } => {
            let filters = [("account_id", account), ("control", control)];
            let path = filtered("/v1/admin/workers", page, &filters);
            context.output.list(&api.get(&path).await?, WORKER);
            return Ok(());
        }
        Workers::Get { id } => {
            let worker = api.get(&format!("/v1/admin/workers/{id}")).await?;
            context.output.object(&worker, WORKER);
            return Ok(());
        }
        Workers::Drain(args) => (args, "drain"),
        Workers::Quarantine(args) => (args, "quarantine"),
        Workers::Restore(args) => (args, "restore"),
        Workers::LiftBar(args) => (args, "lift-bar"),
        Workers::Disable(args) => (args, "disable"),
    };
    let path = format!("/v1/admin/workers/{}/{action}", args.id);
    let worker = api.post(&path, &json!({ "reason": args.reason })).await?;
    context.output.object(&worker, WORKER);
    Ok(())
}

/// Runs a verb on what waits to go out.
///
/// # Errors
/// When the service refuses.
pub async fn run_outbox(context: &Context, verb: &Outbox) -> anyhow::Result<()> {
    let api = context.api().await?;
    let replayed = match verb {
        Outbox::Show => None,
        Outbox::WakeUps { reason } => Some(("wake-ups", reason)),
        Outbox::Notices { reason } => Some(("notices", reason)),
    };
    if let Some((what, reason)) = replayed {
        let path = format!("/v1/admin/outbox/{what}/replay");
        api.post(&path, &json!({ "reason": reason })).await?;
    }
    context
        .output
        .object(&api.get("/v1/admin/outbox").await?, OUTBOX);
    Ok(())
}
