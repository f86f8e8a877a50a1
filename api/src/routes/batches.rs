//! `/v1/batches`: what was settled, for everybody to recompute.

use alloy_primitives::B256;
use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use comptoir_domain::{
    asset::Asset,
    id::{AccountId, BatchId},
    scope::Scopes,
    settlement::{self, Header},
};
use comptoir_store::{
    assets,
    batches::{self, Batch, Filter},
};
use serde::Serialize;
use sqlx::PgConnection;
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use crate::{
    AppState, Problem,
    auth::{Credential, Identity},
    etag::Conditions,
    extract::Path,
    page::{List, Page, PageQuery},
    quoting::no_asset,
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_batches))
        .routes(routes!(find_batch))
        .routes(routes!(batch_leaves))
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum BatchObject {
    Batch,
}

/// Where a batch is on its way.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum BatchState {
    /// Its leaves are published.
    Sealed,
    /// Its transaction is signed.
    Signed,
    /// Its transaction was sent.
    Broadcast,
    /// The contract holds it.
    Mined,
    /// The contract holds it, and that is unlikely to change.
    Safe,
    /// The contract holds it for good.
    Anchored,
    /// Its window has passed: claims can be proven against it.
    Claimable,
    /// The guardian vetoed it; its receipts are in another batch.
    Cancelled,
    /// The contract holds something else.
    Halted,
}

impl From<settlement::BatchState> for BatchState {
    fn from(state: settlement::BatchState) -> Self {
        use settlement::BatchState as S;
        match state {
            S::Sealed => Self::Sealed,
            S::Signed => Self::Signed,
            S::Broadcast => Self::Broadcast,
            S::Mined => Self::Mined,
            S::Safe => Self::Safe,
            S::Anchored => Self::Anchored,
            S::Claimable => Self::Claimable,
            S::Cancelled => Self::Cancelled,
            S::Halted => Self::Halted,
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = Batch)]
struct BatchBody {
    #[schema(value_type = String, example = "bat_01h455vb4pex5vsknk084sn02q")]
    id: BatchId,
    object: BatchObject,
    /// Its number on the chain.
    number: u64,
    state: BatchState,
    /// EIP-155 chain id.
    chain_id: u64,
    /// The settlement contract.
    contract: String,
    /// The hash of the header, which the contract keeps.
    #[schema(value_type = String)]
    hash: B256,
    header: Header,
    receipt_count: u64,
    account_count: u64,
    /// Where the leaf file is; its SHA-256 is the header's `data_hash`.
    leaves_url: String,
    leaves_bytes: u64,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    /// When claims can be proven against it; known once the contract holds it.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    active_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    anchored_at: Option<OffsetDateTime>,
}

impl BatchBody {
    fn new(batch: &Batch, asset: &Asset) -> Self {
        Self {
            id: batch.id,
            object: BatchObject::Batch,
            number: batch.header.id,
            state: batch.state.into(),
            chain_id: asset.chain_id,
            contract: asset.contract.to_string(),
            hash: batch.hash,
            header: batch.header,
            receipt_count: batch.header.receipt_count,
            account_count: batch.account_count,
            leaves_url: format!("/v1/batches/{}/leaves", batch.id),
            leaves_bytes: batch.data_bytes,
            created_at: batch.sealed_at,
            active_at: batch.active_at,
            anchored_at: batch.anchored_at,
        }
    }
}

/// Nobody in particular: batches are the same for everybody, and so are the cursors of their list.
fn anyone() -> Identity {
    Identity {
        account: AccountId(Uuid::nil()),
        address: None,
        scopes: Scopes::default(),
        credential: Credential::Nothing,
    }
}

/// Every batch, newest first; vetoed ones too.
#[utoipa::path(
    get, path = "/v1/batches", tag = "settlement",
    params(PageQuery),
    responses(
        (status = 200, body = Page<BatchBody>),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn list_batches(
    State(state): State<AppState>,
    list: List,
) -> Result<Page<BatchBody>, Problem> {
    let anyone = anyone();
    let before: Option<BatchId> = list.position(&state, &anyone)?;
    let mut connection = state.db.acquire().await?;
    let asset = assets::current(&mut connection).await.map_err(no_asset)?;
    let rows = batches::list(
        &mut connection,
        asset.id,
        Filter {
            before,
            limit: list.fetch(),
        },
    )
    .await?;
    Ok(list.page(
        &state,
        &anyone,
        rows,
        |row| row.id,
        |row| BatchBody::new(&row, &asset),
    ))
}

/// One batch, by its id or by its number on the chain.
#[utoipa::path(
    get, path = "/v1/batches/{id}", tag = "settlement",
    params(("id" = String, Path, description = "`bat_…`, or a number: then of the batch that was not vetoed")),
    responses(
        (status = 200, body = BatchBody, headers(("ETag" = String))),
        (status = 304),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn find_batch(
    State(state): State<AppState>,
    Path(id): Path<String>,
    conditions: Conditions,
) -> Result<Response, Problem> {
    let mut connection = state.db.acquire().await?;
    let (batch, asset) = find(&mut connection, &id).await?;
    Ok(conditions.answer(BatchBody::new(&batch, &asset)))
}

/// The leaf file: everything that the roots of the batch are made of, byte by byte as its `data_hash` says.
///
/// JSON Lines in RFC 8785 form: the header, the receipts by index, the accounts by address.
#[utoipa::path(
    get, path = "/v1/batches/{id}/leaves", tag = "settlement",
    params(("id" = String, Path, description = "`bat_…`, or a number: then of the batch that was not vetoed")),
    responses(
        (status = 200, body = String, content_type = "application/jsonl", headers(("ETag" = String))),
        (status = 304),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn batch_leaves(
    State(state): State<AppState>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (batch, _) = find(&mut *state.db.acquire().await?, &id).await?;
    let tag =
        HeaderValue::try_from(format!("\"{}\"", batch.data_hash())).expect("a digest is ASCII");
    let asked = headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|it| it.to_str().ok());
    let known = asked
        .flat_map(|list| list.split(','))
        .map(str::trim)
        .any(|it| it == "*" || it.as_bytes() == tag.as_bytes());
    let mut response = if known {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let bytes = state
            .objects
            .stream(batch.data_hash(), None)
            .await
            .map_err(|error| Problem::internal(&error))?;
        let mut response = Body::from_stream(bytes).into_response();
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/jsonl"),
        );
        response
            .headers_mut()
            .insert(header::CONTENT_LENGTH, HeaderValue::from(batch.data_bytes));
        response
    };
    response.headers_mut().insert(header::ETAG, tag);
    Ok(response)
}

async fn find(connection: &mut PgConnection, id: &str) -> Result<(Batch, Asset), Problem> {
    let asset = assets::current(connection).await.map_err(no_asset)?;
    let batch = match (id.parse::<BatchId>(), id.parse::<u64>()) {
        (Ok(id), _) => batches::find(connection, id).await?,
        (_, Ok(number)) => batches::find_number(connection, asset.id, number).await?,
        _ => None,
    };
    Ok((batch.ok_or_else(Problem::not_found)?, asset))
}
