//! Accounts and administrators, through the API.

use anyhow::Context as _;
use clap::{Args, Subcommand};
use reqwest::{Method, header};
use serde_json::{Map, Value, json};

use crate::{
    args::ListArgs,
    client::{Context, http, jobs::filtered},
};

const ROW: &[&str] = &["id", "email", "roles", "address", "frozen_at", "created_at"];
const DETAIL: &[&str] = &[
    "id",
    "email",
    "roles",
    "address",
    "frozen_at",
    "frozen_reason",
    "balance.available",
    "balance.held",
    "balance.held_back",
    "balance.payable",
    "usage.open_jobs",
    "usage.jobs_today",
    "usage.storage_bytes",
    "usage.api_keys",
    "usage.sessions",
    "usage.workers",
    "limits.open_jobs.limit",
    "limits.jobs_per_day.limit",
    "limits.storage_bytes.limit",
    "created_at",
];
const LIMITS: &[&str] = &[
    "open_jobs.limit",
    "open_jobs.own",
    "jobs_per_day.limit",
    "jobs_per_day.own",
    "storage_bytes.limit",
    "storage_bytes.own",
];
const ADMIN: &[&str] = &["id", "email", "created_at"];
const EVENT: &[&str] = &[
    "id",
    "created_at",
    "actor",
    "action",
    "subject",
    "account_id",
    "ip",
];

/// What administrators do with accounts.
#[derive(Debug, Subcommand)]
pub enum Accounts {
    /// Accounts, newest first.
    List {
        #[command(flatten)]
        page: ListArgs,
        /// Those whose e-mail begins so.
        #[arg(long)]
        email: Option<String>,
        /// The one that is bound to this address.
        #[arg(long)]
        address: Option<String>,
        /// Those with this role: `user`, `provider`, `platform`.
        #[arg(long)]
        role: Option<String>,
        /// Those that are frozen.
        #[arg(long)]
        frozen: bool,
    },
    /// One account: what it may do and has.
    Get {
        /// Its id.
        id: String,
    },
    /// Holds an account: it cannot submit, withdraw or make keys, and its workers get no leases.
    Freeze {
        /// Its id.
        id: String,
        /// Why, for the audit log.
        #[arg(long)]
        reason: String,
    },
    /// Lets a frozen account go on.
    Unfreeze {
        /// Its id.
        id: String,
        /// Why, for the audit log.
        #[arg(long)]
        reason: String,
    },
    /// Shows an account's limits, or sets those that are named; `default` goes back to the deployment's.
    Limits(LimitsArgs),
}

/// The limits of an account.
#[derive(Debug, Args)]
pub struct LimitsArgs {
    /// The account's id.
    pub id: String,
    /// Jobs that have not ended.
    #[arg(long)]
    pub open_jobs: Option<String>,
    /// Jobs submitted on one day (UTC).
    #[arg(long)]
    pub jobs_per_day: Option<String>,
    /// Bytes of the blobs that it may read.
    #[arg(long)]
    pub storage_bytes: Option<String>,
}

/// What administrators do with each other.
#[derive(Debug, Subcommand)]
pub enum Admins {
    /// The administrators.
    List,
    /// Takes the role away. `comptoir admin bootstrap` gives it.
    Remove {
        /// The account's id.
        id: String,
    },
}

/// Which events of the audit log.
#[derive(Debug, Args)]
pub struct EventsArgs {
    #[command(flatten)]
    pub page: ListArgs,
    /// Those that concern one account.
    #[arg(long)]
    pub account: Option<String>,
}

/// Runs a verb on accounts.
///
/// # Errors
/// When the service refuses.
pub async fn run(context: &Context, verb: &Accounts) -> anyhow::Result<()> {
    let api = context.api().await?;
    match verb {
        Accounts::List {
            page,
            email,
            address,
            role,
            frozen,
        } => {
            let frozen = frozen.then(|| "true".to_owned());
            let filters = [
                ("email", email),
                ("address", address),
                ("role", role),
                ("frozen", &frozen),
            ];
            let path = filtered("/v1/admin/accounts", page, &filters);
            context.output.list(&api.get(&path).await?, ROW);
        }
        Accounts::Get { id } => {
            let account = api.get(&format!("/v1/admin/accounts/{id}")).await?;
            context.output.object(&account, DETAIL);
        }
        Accounts::Freeze { id, reason } => {
            let path = format!("/v1/admin/accounts/{id}/freeze");
            let account = api.post(&path, &json!({ "reason": reason })).await?;
            context.output.object(&account, ROW);
        }
        Accounts::Unfreeze { id, reason } => {
            let path = format!("/v1/admin/accounts/{id}/unfreeze");
            let account = api.post(&path, &json!({ "reason": reason })).await?;
            context.output.object(&account, ROW);
        }
        Accounts::Limits(args) => limits(context, args).await?,
    }
    Ok(())
}

async fn limits(context: &Context, args: &LimitsArgs) -> anyhow::Result<()> {
    let api = context.api().await?;
    let path = format!("/v1/admin/accounts/{}/limits", args.id);
    let read = api.send(api.request(Method::GET, &path)).await?;
    let tag = read.headers().get(header::ETAG).cloned();
    let mut limits = http::json(read).await?;
    let changes = patch(args)?;
    if !changes.is_empty() {
        let tag = tag.context("the limits came without an ETag")?;
        let request = api
            .request(Method::PATCH, &path)
            .header(header::IF_MATCH, tag)
            .header(header::CONTENT_TYPE, "application/merge-patch+json")
            .body(Value::Object(changes).to_string());
        limits = http::json(api.send(request).await?).await?;
    }
    context.output.object(&limits, LIMITS);
    Ok(())
}

/// What changes: a number, or `null` for the deployment's limit.
fn patch(args: &LimitsArgs) -> anyhow::Result<Map<String, Value>> {
    let named = [
        ("open_jobs", &args.open_jobs),
        ("jobs_per_day", &args.jobs_per_day),
        ("storage_bytes", &args.storage_bytes),
    ];
    let mut patch = Map::new();
    for (name, value) in named {
        let Some(value) = value else { continue };
        let limit = match value.as_str() {
            "default" => Value::Null,
            number => number
                .parse::<u64>()
                .with_context(|| format!("{name}: expected a number or `default`"))?
                .into(),
        };
        patch.insert(name.to_owned(), limit);
    }
    Ok(patch)
}

/// Runs a verb on administrators.
///
/// # Errors
/// When the service refuses.
pub async fn run_admins(context: &Context, verb: &Admins) -> anyhow::Result<()> {
    let api = context.api().await?;
    match verb {
        Admins::List => {
            let admins = api.get("/v1/admin/admins").await?;
            context.output.list(&admins, ADMIN);
        }
        Admins::Remove { id } => {
            let path = format!("/v1/admin/admins/{id}/remove");
            api.post(&path, &json!({})).await?;
            let admins = api.get("/v1/admin/admins").await?;
            context.output.list(&admins, ADMIN);
        }
    }
    Ok(())
}

/// The audit log of all accounts.
///
/// # Errors
/// When the service refuses.
pub async fn list_events(context: &Context, args: &EventsArgs) -> anyhow::Result<()> {
    let api = context.api().await?;
    let filters = [("account_id", &args.account)];
    let path = filtered("/v1/admin/audit-events", &args.page, &filters);
    context.output.list(&api.get(&path).await?, EVENT);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(open_jobs: &str) -> LimitsArgs {
        LimitsArgs {
            id: "acct_1".into(),
            open_jobs: Some(open_jobs.into()),
            jobs_per_day: None,
            storage_bytes: None,
        }
    }

    #[test]
    fn a_limit_is_a_number_or_the_deployments() {
        let json = |args| Value::Object(patch(&args).unwrap());
        assert_eq!(json(args("7")), json!({ "open_jobs": 7 }));
        assert_eq!(json(args("default")), json!({ "open_jobs": null }));
        assert!(patch(&args("-1")).is_err());
    }
}
