//! Admissions to gated models: asking, and answering who asks.

use clap::Subcommand;
use serde_json::json;

use super::{Context, http, idempotency_key, jobs::filtered};
use crate::args::ListArgs;

const ADMISSION: &[&str] = &[
    "id",
    "state",
    "model",
    "creator",
    "account",
    "note",
    "reason",
    "created_at",
    "answered_at",
];

/// The verbs of admissions, among those of models.
#[derive(Debug, Subcommand)]
pub enum Admission {
    /// Asks the creator of a gated model to let you call it.
    Request {
        /// The model.
        id: String,
        /// Words to the creator: who you are, and what for.
        #[arg(long)]
        note: Option<String>,
    },
    /// Admissions that you asked for, newest first.
    Admissions {
        /// Those to your models instead.
        #[arg(long)]
        received: bool,
        /// Those in this state alone: `requested`, `granted`, `denied` or `revoked`.
        #[arg(long)]
        state: Option<String>,
        /// Those to this model alone.
        #[arg(long)]
        model: Option<String>,
        #[command(flatten)]
        page: ListArgs,
    },
    /// Lets who asked call a model of yours.
    Grant {
        /// The admission.
        id: String,
    },
    /// Says no to who asked.
    Deny {
        /// The admission.
        id: String,
        /// Why; who asked reads it.
        #[arg(long)]
        reason: String,
    },
    /// Takes back that somebody calls a model of yours.
    Revoke {
        /// The admission.
        id: String,
        /// Why; who was let in reads it.
        #[arg(long)]
        reason: String,
    },
}

/// Does what is asked.
///
/// # Errors
/// When the service refuses.
pub async fn run(context: &Context, api: &http::Api, verb: &Admission) -> anyhow::Result<()> {
    let output = context.output;
    let answer = async |id: &str, act: &str, body| {
        let path = format!("/v1/admissions/{id}/{act}");
        api.post(&path, &body).await
    };
    let answered = match verb {
        Admission::Admissions {
            received,
            state,
            model,
            page,
        } => {
            let side = if *received { "received" } else { "asked" };
            let side = Some(side.to_owned());
            let filters = [("side", &side), ("state", state), ("model", model)];
            let path = filtered("/v1/admissions", page, &filters);
            output.list(&api.get(&path).await?, ADMISSION);
            return Ok(());
        }
        Admission::Request { id, note } => {
            let path = format!("/v1/models/{id}/admissions");
            let body = json!({ "note": note });
            api.create(&path, &idempotency_key(), &body).await?
        }
        Admission::Grant { id } => answer(id, "grant", json!({})).await?,
        Admission::Deny { id, reason } => answer(id, "deny", json!({ "reason": reason })).await?,
        Admission::Revoke { id, reason } => {
            answer(id, "revoke", json!({ "reason": reason })).await?
        }
    };
    output.object(&answered, ADMISSION);
    Ok(())
}
