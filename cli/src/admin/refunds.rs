//! Refunds, through the API: one administrator proposes, another approves.

use clap::Subcommand;
use serde_json::{Value, json};

use crate::{
    args::ListArgs,
    client::{Context, http::Api, idempotency_key, jobs::filtered},
    output::base_units,
};

const REFUND: &[&str] = &[
    "id",
    "state",
    "job_id",
    "account_id",
    "amount",
    "reason",
    "proposed_by",
    "decided_by",
    "created_at",
    "expires_at",
];

/// What administrators do with refunds.
#[derive(Debug, Subcommand)]
pub enum Refunds {
    /// Refunds, newest first.
    List {
        #[command(flatten)]
        page: ListArgs,
        /// Those in this state: `proposed`, `posted`, `cancelled`, `expired`.
        #[arg(long)]
        state: Option<String>,
        /// Those of this job.
        #[arg(long)]
        job: Option<String>,
    },
    /// One refund.
    Get {
        /// Its id.
        id: String,
    },
    /// Proposes to give back what a job was charged.
    Propose {
        /// The job's id.
        job: String,
        /// How many tokens [default: all that is left of the charge].
        #[arg(long)]
        tokens: Option<String>,
        /// Why, for the audit log.
        #[arg(long)]
        reason: String,
        /// Makes a repeated proposal one refund [default: random].
        #[arg(long)]
        idempotency_key: Option<String>,
    },
    /// Approves what another administrator proposed: the money is given back at once.
    Approve {
        /// Its id.
        id: String,
        /// Makes a repeated approval one [default: random].
        #[arg(long)]
        idempotency_key: Option<String>,
    },
    /// Takes a proposal off.
    Cancel {
        /// Its id.
        id: String,
    },
}

/// Runs a verb.
///
/// # Errors
/// When the service refuses.
pub async fn run(context: &Context, verb: &Refunds) -> anyhow::Result<()> {
    let api = context.api().await?;
    let refund = match verb {
        Refunds::List { page, state, job } => {
            let filters = [("state", state), ("job_id", job)];
            let path = filtered("/v1/admin/refunds", page, &filters);
            context.output.list(&api.get(&path).await?, REFUND);
            return Ok(());
        }
        Refunds::Get { id } => api.get(&format!("/v1/admin/refunds/{id}")).await?,
        Refunds::Propose {
            job,
            tokens,
            reason,
            idempotency_key: key,
        } => {
            let mut body = json!({ "job_id": job, "reason": reason });
            if let Some(tokens) = tokens {
                body["amount"] = money(&api, tokens).await?;
            }
            let key = key.clone().unwrap_or_else(idempotency_key);
            api.create("/v1/admin/refunds", &key, &body).await?
        }
        Refunds::Approve {
            id,
            idempotency_key: key,
        } => {
            let key = key.clone().unwrap_or_else(idempotency_key);
            let path = format!("/v1/admin/refunds/{id}/approve");
            api.create(&path, &key, &json!({})).await?
        }
        Refunds::Cancel { id } => {
            let path = format!("/v1/admin/refunds/{id}/cancel");
            api.post(&path, &json!({})).await?
        }
    };
    context.output.object(&refund, REFUND);
    Ok(())
}

/// So many tokens of the deployment's asset, which any published price names.
pub(super) async fn money(api: &Api, tokens: &str) -> anyhow::Result<Value> {
    let (asset, decimals) = asset(api).await?;
    let amount = base_units(tokens, decimals)?;
    Ok(json!({ "amount": amount, "asset": asset, "decimals": decimals }))
}

/// The deployment's asset and its decimals, which any published price names.
pub(super) async fn asset(api: &Api) -> anyhow::Result<(Value, usize)> {
    let prices = api.get("/v1/prices?limit=1").await?;
    let minimum = &prices["data"][0]["minimum"];
    let decimals = minimum["decimals"]
        .as_u64()
        .and_then(|it| it.try_into().ok());
    let decimals =
        decimals.ok_or_else(|| anyhow::anyhow!("no price is published, so no token is known"))?;
    Ok((minimum["asset"].clone(), decimals))
}
