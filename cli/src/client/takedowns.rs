//! Takedowns: saying that a dataset must not be here, and contesting that.

use clap::{Subcommand, ValueEnum};
use serde_json::json;

use super::{Context, http, idempotency_key, jobs::filtered};
use crate::args::ListArgs;

pub(crate) const TAKEDOWN: &[&str] = &[
    "id",
    "state",
    "dataset",
    "seller",
    "claimant",
    "ground",
    "statement",
    "answer",
    "reason",
    "due_at",
    "ended_at",
];

/// Why a dataset must not be here.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Ground {
    /// It holds works of somebody who did not allow it.
    Copyright,
    /// It holds data of persons who did not allow it.
    PersonalData,
    /// To hold it, or to hand it out, is against a law.
    Illegal,
    /// It harms who reads it.
    Malware,
    /// The statement says it.
    Other,
}

/// The verbs of takedowns, among those of datasets.
#[derive(Debug, Subcommand)]
pub enum Takedown {
    /// Says that a dataset of somebody else must not be here; an operator looks at it.
    TakeDown {
        /// The dataset.
        id: String,
        /// Why.
        #[arg(long)]
        ground: Ground,
        /// What is wrong, where, who you are to say so, and how you are reached; the seller and the operator read it.
        #[arg(long)]
        statement: String,
    },
    /// Takedowns that you filed, newest first.
    Takedowns {
        /// Those of your datasets instead.
        #[arg(long)]
        received: bool,
        /// Those in this state alone: `filed`, `frozen`, `contested`, `upheld`, `rejected`, `dismissed` or `withdrawn`.
        #[arg(long)]
        state: Option<String>,
        #[command(flatten)]
        page: ListArgs,
    },
    /// Says that the freeze of a dataset of yours is wrong.
    Contest {
        /// The takedown.
        id: String,
        /// Why; who filed it and the operator read it.
        #[arg(long)]
        statement: String,
    },
    /// Takes back a takedown of yours that is not decided.
    Retract {
        /// The takedown.
        id: String,
    },
}

/// Does what is asked.
///
/// # Errors
/// When the service refuses.
pub async fn run(context: &Context, api: &http::Api, verb: &Takedown) -> anyhow::Result<()> {
    let output = context.output;
    let answered = match verb {
        Takedown::Takedowns {
            received,
            state,
            page,
        } => {
            let side = if *received { "received" } else { "filed" };
            let side = Some(side.to_owned());
            let path = filtered("/v1/takedowns", page, &[("side", &side), ("state", state)]);
            output.list(&api.get(&path).await?, TAKEDOWN);
            return Ok(());
        }
        Takedown::TakeDown {
            id,
            ground,
            statement,
        } => {
            let path = format!("/v1/datasets/{id}/takedowns");
            let ground = ground
                .to_possible_value()
                .map(|it| it.get_name().replace('-', "_"));
            let body = json!({ "ground": ground, "statement": statement });
            api.create(&path, &idempotency_key(), &body).await?
        }
        Takedown::Contest { id, statement } => {
            let path = format!("/v1/takedowns/{id}/contest");
            api.post(&path, &json!({ "statement": statement })).await?
        }
        Takedown::Retract { id } => {
            let path = format!("/v1/takedowns/{id}/withdraw");
            api.post(&path, &json!({})).await?
        }
    };
    output.object(&answered, TAKEDOWN);
    Ok(())
}
