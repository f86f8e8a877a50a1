//! `/v1/library`: what an account has a right to, and until when.

use axum::extract::State;
use comptoir_domain::{
    id::{ContributionId, DatasetId, DatasetVersionId, EntitlementId, PurchaseId},
    offer::Allows,
    purchase::EntitlementState,
};
use comptoir_store::entitlements::{self, Owned};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    AppState, Problem,
    auth::{Caller, needs},
    page::{List, Page, PageQuery},
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list_library))
}

#[derive(Deserialize, ToSchema, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct LibraryFilter {
    /// Those in this state alone.
    state: Option<EntitlementState>,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum EntitlementObject {
    Entitlement,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Entitlement)]
struct EntitlementBody {
    #[schema(value_type = String, example = "ent_01h455vb4pex5vsknk084sn02q")]
    id: EntitlementId,
    object: EntitlementObject,
    #[schema(value_type = String)]
    dataset: DatasetId,
    /// What its seller calls it.
    title: String,
    /// The version; `null`: every version, future ones too.
    #[schema(required = true, value_type = Option<String>)]
    version: Option<DatasetVersionId>,
    /// What gave it; `null`: a contribution did.
    #[schema(required = true, value_type = Option<String>)]
    purchase: Option<PurchaseId>,
    /// The contribution to a dataset of yours that gave it; `null`: a purchase did.
    #[schema(required = true, value_type = Option<String>)]
    contribution: Option<ContributionId>,
    allows: Allows,
    state: EntitlementState,
    #[serde(with = "time::serde::rfc3339")]
    starts_at: OffsetDateTime,
    /// Until when, or when it was ended; `null`: for good.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    ends_at: Option<OffsetDateTime>,
}

impl From<Owned> for EntitlementBody {
    fn from(it: Owned) -> Self {
        Self {
            id: it.id,
            object: EntitlementObject::Entitlement,
            dataset: it.dataset,
            title: it.title,
            version: it.version,
            purchase: it.purchase,
            contribution: it.contribution,
            allows: it.allows,
            state: it.state,
            starts_at: it.starts_at,
            ends_at: it.ends_at,
        }
    }
}

/// What you have a right to, or had, newest first. It stays here when its dataset is withdrawn.
#[utoipa::path(
    get, path = "/v1/library", tag = "market", security(("session" = []), ("api_key" = ["purchases:read"])),
    params(LibraryFilter, PageQuery),
    responses(
        (status = 200, body = Page<EntitlementBody>),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn list_library(
    State(state): State<AppState>,
    caller: Caller<needs::PurchasesRead>,
    list: List<LibraryFilter>,
) -> Result<Page<EntitlementBody>, Problem> {
    let before: Option<EntitlementId> = list.position(&state, &caller)?;
    let (account, filter, now) = (caller.account, list.filter.state, state.now());
    let mut connection = caller.read(&state).await?;
    let rows =
        entitlements::list(&mut connection, account, filter, before, now, list.fetch()).await?;
    Ok(list.page(&state, &caller, rows, |row| row.id, EntitlementBody::from))
}
