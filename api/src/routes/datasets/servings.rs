//! `…/servings`: which bytes of a dataset were handed out, for its seller.

use axum::extract::State;
use comptoir_domain::id::{
    AccountId, DatasetFileId, DatasetId, DatasetServingId, DatasetVersionId, PurchaseId,
};
use comptoir_store::{
    dataset_servings::{self, Serving},
    datasets,
};
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    AppState, Problem,
    auth::{Caller, needs},
    extract::Path,
    page::{List, Page, PageQuery},
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list_dataset_servings))
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum DatasetServingObject {
    DatasetServing,
}

#[derive(Serialize, ToSchema)]
#[schema(as = DatasetServing)]
struct DatasetServingBody {
    #[schema(value_type = String, example = "dss_01h455vb4pex5vsknk084sn02q")]
    id: DatasetServingId,
    object: DatasetServingObject,
    /// To whom.
    #[schema(value_type = String)]
    reader: AccountId,
    #[schema(value_type = String)]
    version: DatasetVersionId,
    #[schema(value_type = String)]
    file: DatasetFileId,
    /// By what right; `null`: it was your own reading, or a sample.
    #[schema(required = true, value_type = Option<String>)]
    purchase: Option<PurchaseId>,
    /// From which byte on.
    first_byte: u64,
    /// How many were asked for; the reader may have gone before the last.
    bytes: u64,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

impl From<Serving> for DatasetServingBody {
    fn from(it: Serving) -> Self {
        Self {
            id: it.id,
            object: DatasetServingObject::DatasetServing,
            reader: it.served.account,
            version: it.served.version,
            file: it.served.file,
            purchase: it.served.purchase,
            first_byte: it.served.first_byte,
            bytes: it.served.bytes,
            created_at: it.created_at,
        }
    }
}

/// Which bytes of your dataset were handed out, newest first: one row for each request.
#[utoipa::path(
    get, path = "/v1/datasets/{dataset}/servings", tag = "datasets", security(("session" = []), ("api_key" = ["datasets:read"])),
    params(("dataset" = String, Path), PageQuery),
    responses(
        (status = 200, body = Page<DatasetServingBody>),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn list_dataset_servings(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsRead>,
    Path(dataset): Path<DatasetId>,
    list: List,
) -> Result<Page<DatasetServingBody>, Problem> {
    let before: Option<DatasetServingId> = list.position(&state, &caller)?;
    let mut connection = caller.read(&state).await?;
    let found = datasets::find(&mut connection, caller.account, dataset).await?;
    found
        .filter(|it| it.account == caller.account)
        .ok_or_else(Problem::not_found)?;
    let rows = dataset_servings::list(&mut connection, dataset, before, list.fetch()).await?;
    Ok(list.page(
        &state,
        &caller,
        rows,
        |row| row.id,
        DatasetServingBody::from,
    ))
}
