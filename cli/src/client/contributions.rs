//! Contributions: inviting others to add to a dataset, offering a version, and answering.

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use super::{Context, http, idempotency_key, jobs::list_path, money};
use crate::args::ListArgs;

const CONTRIBUTION: &[&str] = &[
    "id", "state", "dataset", "version", "files", "rows", "reward", "note", "reason", "receipt",
];
const TERMS: &[&str] = &[
    "dataset",
    "number",
    "reward_per_row",
    "pool_ppm",
    "rows_max",
    "is_open",
];

/// The verbs of contributions, among those of datasets.
#[derive(Debug, Subcommand)]
pub enum Contribution {
    /// Says on what terms a dataset of yours takes contributions.
    Invite {
        /// The dataset.
        id: String,
        /// What each accepted row earns, in tokens.
        #[arg(long, default_value = "0")]
        reward_per_row: String,
        /// What contributors get of your side of later sales together, in millionths.
        #[arg(long, default_value_t = 0)]
        pool_ppm: u32,
        /// Most rows of one contribution.
        #[arg(long, default_value_t = 1_000_000)]
        rows_max: u64,
        /// Take nothing for now.
        #[arg(long)]
        closed: bool,
    },
    /// Offers a ready version of yours to the dataset of somebody else.
    Contribute {
        /// The dataset that it is offered to.
        id: String,
        /// The version, of a dataset of yours.
        #[arg(long)]
        version: String,
        /// Words to the owner.
        #[arg(long)]
        note: Option<String>,
    },
    /// What was offered to a dataset [default: what you offered], newest first.
    Contributions {
        /// The dataset.
        #[arg(long)]
        dataset: Option<String>,
        #[command(flatten)]
        page: ListArgs,
    },
    /// Accepts a contribution: the reward is paid at once.
    Accept {
        /// The contribution.
        id: String,
        /// What you expect to pay, in tokens.
        #[arg(long)]
        reward: String,
    },
    /// Rejects a contribution.
    Reject {
        /// The contribution.
        id: String,
        /// Why; the contributor reads it.
        #[arg(long)]
        reason: String,
    },
    /// Takes back a contribution of yours that was not answered.
    TakeBack {
        /// The contribution.
        id: String,
    },
}

/// Does what is asked.
///
/// # Errors
/// When the service refuses.
pub async fn run(context: &Context, api: &http::Api, verb: &Contribution) -> anyhow::Result<()> {
    let output = context.output;
    let answered = match verb {
        Contribution::Invite {
            id,
            reward_per_row,
            pool_ppm,
            rows_max,
            closed,
        } => {
            let mut reward = api.get("/v1/balance").await?["available"].take();
            reward["amount"] = money::parse(reward_per_row, &reward)?.into();
            let terms = json!({ "reward_per_row": reward, "pool_ppm": pool_ppm, "rows_max": rows_max, "is_open": !closed });
            let path = format!("/v1/datasets/{id}/contribution-terms");
            let set = api
                .send(api.request(Method::PUT, &path).json(&terms))
                .await?;
            output.object(&http::json(set).await?, TERMS);
            return Ok(());
        }
        Contribution::Contributions { dataset, page } => {
            let path = match dataset {
                Some(id) => format!("/v1/datasets/{id}/contributions"),
                None => "/v1/contributions".to_owned(),
            };
            output.list(&api.get(&list_path(&path, page)).await?, CONTRIBUTION);
            return Ok(());
        }
        Contribution::Contribute { id, version, note } => {
            let path = format!("/v1/datasets/{id}/contributions");
            let body = json!({ "version": version, "note": note });
            api.create(&path, &idempotency_key(), &body).await?
        }
        Contribution::Accept { id, reward } => accept(api, id, reward).await?,
        Contribution::Reject { id, reason } => {
            let path = format!("/v1/contributions/{id}/reject");
            api.post(&path, &json!({ "reason": reason })).await?
        }
        Contribution::TakeBack { id } => {
            let path = format!("/v1/contributions/{id}/withdraw");
            api.post(&path, &json!({})).await?
        }
    };
    output.object(&answered, CONTRIBUTION);
    Ok(())
}

async fn accept(api: &http::Api, id: &str, tokens: &str) -> anyhow::Result<Value> {
    let path = format!("/v1/contributions/{id}");
    let mut expected = api.get(&path).await?["reward"].take();
    expected["amount"] = money::parse(tokens, &expected)?.into();
    let body = json!({ "expected_reward": expected });
    let key = idempotency_key();
    Ok(api.create(&format!("{path}/accept"), &key, &body).await?)
}
