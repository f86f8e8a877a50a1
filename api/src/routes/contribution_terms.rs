//! `/v1/datasets/{dataset}/contribution-terms`: on what terms a dataset's owner takes contributions.

use axum::{
    extract::State,
    response::{IntoResponse as _, Response},
};
use comptoir_domain::{asset::Asset, contribution::Terms, id::DatasetId};
use comptoir_store::{
    assets,
    contributions::{self, TermsVersion},
    datasets, limits,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::accounts::in_task;
use crate::{
    AppState, Problem,
    auth::{Caller, Identity, needs},
    etag::Conditions,
    extract::{Json, Path},
    limiting::limited,
    money::MoneyBody,
    quoting::no_asset,
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(find_contribution_terms, set_contribution_terms))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewContributionTerms {
    /// What each row earns when it is accepted; the platform takes nothing of it.
    reward_per_row: MoneyBody,
    /// What all contributors together get of your side of later sales, in millionths, by their accepted rows.
    #[schema(maximum = 1_000_000)]
    pool_ppm: u32,
    /// Most rows of one contribution.
    #[schema(minimum = 1, maximum = 1_000_000_000)]
    rows_max: u64,
    /// Is anything taken now?
    is_open: bool,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ContributionTermsObject {
    ContributionTerms,
}

#[derive(Serialize, ToSchema)]
#[schema(as = ContributionTerms)]
struct ContributionTermsBody {
    object: ContributionTermsObject,
    #[schema(value_type = String)]
    dataset: DatasetId,
    /// Which terms of the dataset, from 1. A contribution keeps those that it was made under.
    number: i32,
    /// What each row earns when it is accepted.
    reward_per_row: MoneyBody,
    /// What all contributors together get of the seller's side of later sales, in millionths, by their accepted rows.
    pool_ppm: u32,
    /// Most rows of one contribution.
    rows_max: u64,
    /// Is anything taken now?
    is_open: bool,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

impl ContributionTermsBody {
    fn new(it: &TermsVersion, asset: &Asset) -> Self {
        Self {
            object: ContributionTermsObject::ContributionTerms,
            dataset: it.dataset,
            number: it.number,
            reward_per_row: MoneyBody::new(it.terms.reward, asset),
            pool_ppm: it.terms.pool_ppm,
            rows_max: it.terms.rows_max,
            is_open: it.terms.is_open,
            created_at: it.created_at,
        }
    }
}

/// On what terms a dataset that is yours, or listed, takes contributions. 404 where nobody was ever invited.
#[utoipa::path(
    get, path = "/v1/datasets/{dataset}/contribution-terms", tag = "contributions",
    security(("session" = []), ("api_key" = ["datasets:read"])),
    params(("dataset" = String, Path)),
    responses(
        (status = 200, body = ContributionTermsBody, headers(("ETag" = String))),
        (status = 304),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn find_contribution_terms(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsRead>,
    Path(dataset): Path<DatasetId>,
    conditions: Conditions,
) -> Result<Response, Problem> {
    let mut connection = caller.read(&state).await?;
    let known = datasets::find(&mut connection, caller.account, dataset).await?;
    known.ok_or_else(Problem::not_found)?;
    let terms = contributions::terms(&mut connection, dataset).await?;
    let terms = terms.ok_or_else(Problem::not_found)?;
    let asset = assets::find(&mut connection, terms.asset_id)
        .await
        .map_err(no_asset)?;
    Ok(conditions.answer(ContributionTermsBody::new(&terms, &asset)))
}

/// Says on what terms a dataset of yours takes contributions. What was offered before keeps its terms. The same again change nothing.
#[utoipa::path(
    put, path = "/v1/datasets/{dataset}/contribution-terms", tag = "contributions",
    security(("session" = []), ("api_key" = ["datasets:write"])),
    params(("dataset" = String, Path)),
    request_body = NewContributionTerms,
    responses(
        (status = 200, body = ContributionTermsBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn set_contribution_terms(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsWrite>,
    Path(dataset): Path<DatasetId>,
    Json(body): Json<NewContributionTerms>,
) -> Result<Response, Problem> {
    let identity = Identity::clone(&caller);
    in_task(async move {
        let mut tx = identity.begin(&state).await?;
        limits::refuse_frozen(&mut tx, identity.account)
            .await
            .map_err(limited)?;
        let found = datasets::lock(&mut tx, identity.account, dataset).await?;
        found.ok_or_else(Problem::not_found)?;
        let asset = assets::current(&mut tx).await.map_err(no_asset)?;
        let terms = terms(&body, &asset)?;
        // Whoever pays rewards has an address that pays them.
        identity.owner()?;
        let of = (asset.id, terms);
        let set = contributions::set_terms(&mut tx, dataset, of, state.now()).await?;
        tx.commit().await?;
        Ok(Json(ContributionTermsBody::new(&set, &asset)).into_response())
    })
    .await
}

fn terms(body: &NewContributionTerms, asset: &Asset) -> Result<Terms, Problem> {
    let terms = Terms {
        reward: body.reward_per_row.amount_of(asset, "/reward_per_row")?,
        pool_ppm: body.pool_ppm,
        rows_max: body.rows_max,
        is_open: body.is_open,
    };
    Problem::refuse(terms.refusals())?;
    Ok(terms)
}
