//! `/v2`: the Open Inference Protocol (<https://github.com/kserve/open-inference-protocol>), version 2 over HTTP, with its binary tensor
//! extension, so that clients of other inference servers call models here. Fields that are not known are ignored, and errors are
//! `{"error": "…"}`, as the protocol says.

mod body;
mod datatype;

use std::sync::Arc;

use axum::{
    Json,
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use comptoir_domain::{
    fit::RowShape,
    id::{ModelId, ModelVersionId},
};
use comptoir_http::dialect::Dialect;
use comptoir_wire::calls::CALL_BYTES_MAX;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use self::body::{Asking, Written};
use crate::{
    AppState, Problem,
    auth::{Caller, Need, needs},
    calls::{self, Callable, Target, read_body},
    extract::Path,
    tensors::Port,
};

/// How long the JSON part of a body with binary tensors is.
const JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(server_live))
        .routes(routes!(server_ready))
        .routes(routes!(server_metadata))
        .routes(routes!(model_metadata))
        .routes(routes!(version_metadata))
        .routes(routes!(model_ready))
        .routes(routes!(version_ready))
        .routes(routes!(infer_model))
        .routes(routes!(infer_version))
        .layer(DefaultBodyLimit::max(CALL_BYTES_MAX))
}

/// Problems in the words of the protocol.
pub(crate) const DIALECT: Dialect = Dialect {
    body: |problem| json!({ "error": problem.message() }),
    status: |status| status,
    is_beside: false,
};

/// What went wrong, as [`DIALECT`] says it.
#[derive(ToSchema)]
#[schema(as = InferenceProtocolError)]
#[expect(dead_code, reason = "it documents what every problem becomes here")]
struct ErrorBody {
    error: String,
}

/// What a model takes or gives. A size of -1 is the number of rows.
#[derive(Serialize, ToSchema)]
struct TensorMetadata {
    name: String,
    datatype: &'static str,
    shape: Vec<i64>,
}

/// What a model is.
#[derive(Serialize, ToSchema)]
struct ModelMetadata {
    #[schema(value_type = String)]
    name: ModelId,
    #[schema(value_type = Vec<String>)]
    versions: [ModelVersionId; 1],
    platform: &'static str,
    inputs: Vec<TensorMetadata>,
    outputs: Vec<TensorMetadata>,
}

/// Is the server alive?
#[utoipa::path(
    get, path = "/v2/health/live", tag = "inference-protocol", security(()),
    responses((status = 200, body = Object)),
)]
async fn server_live() -> Json<Value> {
    Json(json!({ "live": true }))
}

/// Can the server answer calls?
#[utoipa::path(
    get, path = "/v2/health/ready", tag = "inference-protocol", security(()),
    responses((status = 200, body = Object), (status = 503, body = ErrorBody)),
)]
async fn server_ready(State(state): State<AppState>) -> Result<Json<Value>, Problem> {
    if state.calls.has_hosts() {
        Ok(Json(json!({ "ready": true })))
    } else {
        let problem = Problem::unavailable("No worker that hosts models is connected");
        Err(problem.retry_after(1))
    }
}

/// What the server is.
#[utoipa::path(
    get, path = "/v2", tag = "inference-protocol", security(()),
    responses((status = 200, body = Object)),
)]
async fn server_metadata() -> Json<Value> {
    Json(json!({
        "name": "comptoir",
        "version": env!("CARGO_PKG_VERSION"),
        "extensions": ["binary_tensor_data"],
    }))
}

/// What a model takes and gives, in its newest version that is recommended.
#[utoipa::path(
    get, path = "/v2/models/{model}", tag = "inference-protocol", security(("session" = []), ("api_key" = ["models:read"])),
    params(("model" = String, Path)),
    responses((status = 200, body = ModelMetadata), (status = "4XX", body = ErrorBody)),
)]
async fn model_metadata(
    State(state): State<AppState>,
    caller: Caller<needs::ModelsRead>,
    Path(model): Path<ModelId>,
) -> Result<Json<ModelMetadata>, Problem> {
    let callable = find(&state, &caller, (model, None)).await?;
    Ok(Json(ModelMetadata::of(&callable)?))
}

/// What a version of a model takes and gives.
#[utoipa::path(
    get, path = "/v2/models/{model}/versions/{version}", tag = "inference-protocol", security(("session" = []), ("api_key" = ["models:read"])),
    params(("model" = String, Path), ("version" = String, Path)),
    responses((status = 200, body = ModelMetadata), (status = "4XX", body = ErrorBody)),
)]
async fn version_metadata(
    State(state): State<AppState>,
    caller: Caller<needs::ModelsRead>,
    Path((model, version)): Path<(ModelId, ModelVersionId)>,
) -> Result<Json<ModelMetadata>, Problem> {
    let callable = find(&state, &caller, (model, Some(version))).await?;
    Ok(Json(ModelMetadata::of(&callable)?))
}

/// Can a model be called?
#[utoipa::path(
    get, path = "/v2/models/{model}/ready", tag = "inference-protocol", security(("session" = []), ("api_key" = ["models:read"])),
    params(("model" = String, Path)),
    responses((status = 200, body = Object), (status = "4XX", body = ErrorBody), (status = 503, body = ErrorBody)),
)]
async fn model_ready(
    State(state): State<AppState>,
    caller: Caller<needs::ModelsRead>,
    Path(model): Path<ModelId>,
) -> Result<Json<Value>, Problem> {
    ready(&state, &caller, (model, None)).await
}

/// Can a version of a model be called?
#[utoipa::path(
    get, path = "/v2/models/{model}/versions/{version}/ready", tag = "inference-protocol",
    security(("session" = []), ("api_key" = ["models:read"])),
    params(("model" = String, Path), ("version" = String, Path)),
    responses((status = 200, body = Object), (status = "4XX", body = ErrorBody), (status = 503, body = ErrorBody)),
)]
async fn version_ready(
    State(state): State<AppState>,
    caller: Caller<needs::ModelsRead>,
    Path((model, version)): Path<(ModelId, ModelVersionId)>,
) -> Result<Json<Value>, Problem> {
    ready(&state, &caller, (model, Some(version))).await
}

async fn ready<N: Need>(
    state: &AppState,
    caller: &Caller<N>,
    of: (ModelId, Option<ModelVersionId>),
) -> Result<Json<Value>, Problem> {
    let callable = find(state, caller, of).await?;
    if !state.calls.can_host(callable.hosting.memory_bytes) {
        let problem = Problem::unavailable("No worker that has the memory for it is connected");
        return Err(problem.retry_after(1));
    }
    Ok(Json(json!({ "name": callable.model.id, "ready": true })))
}

/// Call a model
///
/// One call. Tensors are JSON arrays, nested or flat, or bytes behind the JSON part (`Inference-Header-Content-Length`).
#[utoipa::path(
    post, path = "/v2/models/{model}/infer", tag = "inference-protocol", security(("session" = []), ("api_key" = ["models:call"])),
    params(("model" = String, Path), ("Inference-Header-Content-Length" = Option<u32>, Header)),
    request_body(content((Object = "application/json"), (Vec<u8> = "application/octet-stream"))),
    responses(
        (status = 200, content((Object = "application/json"), (Vec<u8> = "application/octet-stream"))),
        (status = "4XX", body = ErrorBody),
        (status = "5XX", body = ErrorBody),
    ),
)]
async fn infer_model(
    State(state): State<AppState>,
    caller: Caller<needs::ModelsCall>,
    Path(model): Path<ModelId>,
    request: Request,
) -> Result<Response, Problem> {
    infer(&state, &caller, (model, None), request).await
}

/// Call a version of a model
///
/// As calling the model, whose newest version that is recommended answers otherwise.
#[utoipa::path(
    post, path = "/v2/models/{model}/versions/{version}/infer", tag = "inference-protocol",
    security(("session" = []), ("api_key" = ["models:call"])),
    params(("model" = String, Path), ("version" = String, Path), ("Inference-Header-Content-Length" = Option<u32>, Header)),
    request_body(content((Object = "application/json"), (Vec<u8> = "application/octet-stream"))),
    responses(
        (status = 200, content((Object = "application/json"), (Vec<u8> = "application/octet-stream"))),
        (status = "4XX", body = ErrorBody),
        (status = "5XX", body = ErrorBody),
    ),
)]
async fn infer_version(
    State(state): State<AppState>,
    caller: Caller<needs::ModelsCall>,
    Path((model, version)): Path<(ModelId, ModelVersionId)>,
    request: Request,
) -> Result<Response, Problem> {
    infer(&state, &caller, (model, Some(version)), request).await
}

async fn infer(
    state: &AppState,
    caller: &Caller<needs::ModelsCall>,
    of: (ModelId, Option<ModelVersionId>),
    request: Request,
) -> Result<Response, Problem> {
    let callable = find(state, caller, of).await?;
    let headers = request.headers().clone();
    let (body, permit) = read_body(request, state).await?;
    let ports = Port::all(&callable.facts.inputs).ok_or_else(unnamed)?;
    let Asking {
        id,
        inputs,
        outputs,
    } = Asking::read(&body, json_length(&headers)?, &ports)?;
    drop((body, permit));
    let wanted = outputs.of(&callable.facts.outputs)?;
    let asked = callable.ask_tensors(inputs)?;
    let answered = calls::answer(state, caller, asked).await?;
    let written = Written {
        id,
        callable: &callable,
        answered: &answered,
    };
    let (json, binary) = written.with(&wanted)?;
    let mut response = match binary {
        None => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
        Some(binary) => {
            let length = HeaderValue::from(json.len());
            let body = [json, binary].concat();
            let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
            let mut response = (StatusCode::OK, kind, body).into_response();
            response.headers_mut().insert(JSON_LENGTH, length);
            response
        }
    };
    answered.tell(response.headers_mut());
    Ok(response)
}

fn json_length(headers: &HeaderMap) -> Result<Option<usize>, Problem> {
    let Some(length) = headers.get(JSON_LENGTH) else {
        return Ok(None);
    };
    let length = length.to_str().ok().and_then(|it| it.parse().ok());
    let malformed = || Problem::malformed("Inference-Header-Content-Length is no number");
    length.map(Some).ok_or_else(malformed)
}

async fn find<N: Need>(
    state: &AppState,
    caller: &Caller<N>,
    (model, version): (ModelId, Option<ModelVersionId>),
) -> Result<Arc<Callable>, Problem> {
    Callable::find(state, caller.account, Target { model, version }).await
}

fn unnamed() -> Problem {
    Problem::internal(&sqlx::Error::RowNotFound)
}

impl ModelMetadata {
    fn of(callable: &Callable) -> Result<Self, Problem> {
        let tensors = |shapes: &[RowShape]| {
            let ports = Port::all(shapes).ok_or_else(unnamed)?;
            Ok::<_, Problem>(ports.iter().map(TensorMetadata::from).collect())
        };
        Ok(Self {
            name: callable.model.id,
            versions: [callable.version.id],
            platform: "pytorch_export",
            inputs: tensors(&callable.facts.inputs)?,
            outputs: tensors(&callable.facts.outputs)?,
        })
    }
}

impl From<&Port> for TensorMetadata {
    fn from(port: &Port) -> Self {
        let row = port.row.iter();
        let sizes = row.map(|size| i64::try_from(*size).unwrap_or(i64::MAX));
        Self {
            name: port.name.clone(),
            datatype: datatype::name(port.dtype),
            shape: std::iter::once(-1).chain(sizes).collect(),
        }
    }
}
