//! The audit log for whoever runs the service: read, and compared with what the batches say of it.

use anyhow::Context as _;
use clap::{Args, Subcommand};
use comptoir_domain::{audit::Record, id::AccountId};
use comptoir_settler::{
    audit_log::{self, AuditLogError},
    verify::VerifyError,
};
use comptoir_store::{assets, audit, objects::Objects};
use serde_json::json;
use sqlx::{Connection as _, PgConnection};
use url::Url;

use crate::{
    client::Context,
    exit::{Exit, coded},
};

/// What can be done with the log: nothing that changes it.
#[derive(Debug, Subcommand)]
pub enum AuditLog {
    /// Its events, newest first.
    List(ListArgs),
    /// Computes its chain of hashes again and compares it with the heads in the leaf files of the batches.
    Verify(VerifyArgs),
}

/// Which events.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Those that concern one account.
    #[arg(long)]
    pub account: Option<AccountId>,
    /// Those before this number.
    #[arg(long)]
    pub before: Option<u64>,
    /// So many at most.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub limit: u16,
}

/// What the log is compared with.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Where the leaf files are kept.
    #[arg(long, env = "COMPTOIR_OBJECTS_URL")]
    pub objects_url: Url,
    /// An Ethereum RPC endpoint that you trust, to compare the newest anchored batch with the contract as well.
    #[arg(long, env = "ETH_RPC_URL")]
    pub rpc: Option<Url>,
}

/// Runs a verb.
///
/// # Errors
/// When the database refuses; with [`Exit::NotVerified`] when the log is not what it was.
pub async fn run(context: &Context, verb: AuditLog) -> anyhow::Result<()> {
    let url = std::env::var("DATABASE_URL").context("DATABASE_URL is not set")?;
    let mut connection = PgConnection::connect(&url)
        .await
        .context("connect to the database")?;
    match verb {
        AuditLog::List(args) => list(context, &mut connection, &args).await,
        AuditLog::Verify(args) => verify(context, &mut connection, args).await,
    }
}

async fn list(
    context: &Context,
    connection: &mut PgConnection,
    args: &ListArgs,
) -> anyhow::Result<()> {
    let fetch = i64::from(args.limit) + 1;
    let mut entries = audit::list(connection, args.account, args.before, fetch).await?;
    let has_more = entries.len() > usize::from(args.limit);
    entries.truncate(args.limit.into());
    let next = entries.last().filter(|_| has_more).map(|it| it.number);
    let rows: Vec<_> = entries
        .into_iter()
        .map(|entry| row(entry.number, entry.record))
        .collect();
    let page = json!({
        "object": "list",
        "data": rows,
        "has_more": has_more,
        "next_cursor": next,
    });
    let fields = ["number", "at", "actor", "action", "subject", "ip"];
    context.output.list(&page, &fields);
    Ok(())
}

fn row(number: u64, record: Record) -> serde_json::Value {
    let mut row = serde_json::to_value(record).expect("a record has a JSON form");
    row["number"] = number.into();
    row
}

async fn verify(
    context: &Context,
    connection: &mut PgConnection,
    args: VerifyArgs,
) -> anyhow::Result<()> {
    let objects = Objects::open(&args.objects_url).context("open the object store")?;
    let asset = assets::current(connection).await?;
    let log = audit_log::verify(connection, &objects, &asset, args.rpc)
        .await
        .map_err(|error| {
            let not_read = matches!(
                error,
                AuditLogError::Database(_) | AuditLogError::Log(audit::VerifyError::Database(_))
            );
            let exit = if not_read {
                Exit::Failure
            } else if matches!(error, AuditLogError::Chain(VerifyError::Chain(_))) {
                Exit::Unavailable
            } else {
                Exit::NotVerified
            };
            coded(exit, format!("{:#}", anyhow::Error::from(error)))
        })?;
    let report = json!({
        "verified": true,
        "events": log.events,
        "head": log.head,
        "batches": log.batches,
        "sealed_events": log.sealed_events,
        "on_chain_batch": log.on_chain,
    });
    let fields = [
        "verified",
        "events",
        "head",
        "batches",
        "sealed_events",
        "on_chain_batch",
    ];
    context.output.object(&report, &fields);
    Ok(())
}
