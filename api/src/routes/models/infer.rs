//! `POST /v1/models/{model}/infer`: one call of a model, in tensors or texts.

use axum::{
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use comptoir_domain::{
    atto::Atto,
    id::{CallId, ModelId, ModelVersionId, ReceiptId},
    model::{Manifest, Usage},
};
use comptoir_text::Applied;
use comptoir_wire::calls::{CALL_BYTES_MAX, Tensor};
use serde::{Serialize, Serializer, ser::SerializeMap as _};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    AppState, FieldError, Problem,
    auth::{Caller, needs},
    calls::{self, Answered, Callable, TextsBody, read_body},
    extract::{Path, Query},
    routes::version_query::VersionQuery,
    tensors::{self, Nested, Port, Refusals, Sent, read_file, write_file},
};

/// The content type of safetensors files.
const SAFETENSORS: &str = "application/x-safetensors";

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(infer))
        .layer(DefaultBodyLimit::max(CALL_BYTES_MAX))
}

/// Either inputs or texts.
#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "it documents what is read straight into tensors")]
enum InferBody {
    Tensors(InferTensors),
    Texts(InferTexts),
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "it documents what is read straight into tensors")]
struct InferTensors {
    /// Inputs by name: an array of rows each, nested as the version's `schema` says.
    #[schema(value_type = Object, example = json!({"x": [[0.0, 1.0]]}))]
    inputs: (),
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "it documents what is read straight into tensors")]
struct InferTexts {
    /// Where the version takes texts: 2,048 at most, of 2 MiB together.
    texts: TextsBody,
    /// Cut texts that have more tokens than the version takes? Otherwise they are refused.
    #[schema(default = false)]
    truncate: Option<bool>,
}

/// What came out, and what it cost.
#[derive(Serialize, ToSchema)]
struct Inferred<'a> {
    #[schema(value_type = String, example = "call_01h455vb4pex5vsknk084sn02q")]
    id: CallId,
    #[schema(value_type = String)]
    model: ModelId,
    #[schema(value_type = String)]
    version: ModelVersionId,
    /// Outputs by name: an array of rows each. A number that JSON has no word for is `null`. Left out of a call of texts that has results.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>, nullable = false)]
    outputs: Option<Named<'a>>,
    /// What the version makes of each row, where its manifest says so: in calls of texts, and in all calls where it takes none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    results: Option<Vec<ResultBody<'a>>>,
    usage: UsageBody,
}

/// What became of a row: an embedding or the numbers of all classes in their order, or the largest of them.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum ResultBody<'a> {
    Vector(&'a [f32]),
    Ranked(Vec<RankedBody<'a>>),
}

/// A class and its number.
#[derive(Serialize, ToSchema)]
struct RankedBody<'a> {
    /// Its place among the classes.
    index: u32,
    score: f32,
    /// What it is called, where the version says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    label: Option<&'a str>,
}

impl<'a> ResultBody<'a> {
    fn of(manifest: &'a Manifest, applied: &'a Applied) -> Self {
        let output = manifest.result.as_ref().map(|it| &it.output);
        let labels = manifest.labels.as_ref();
        let labels = labels.filter(|it| Some(&it.output) == output);
        match applied {
            Applied::Vector(numbers) => Self::Vector(numbers),
            Applied::Ranked(ranked) => {
                let ranked = ranked.iter().map(|it| RankedBody {
                    index: it.index,
                    score: it.score,
                    label: labels.and_then(|labels| it.label(labels)),
                });
                Self::Ranked(ranked.collect())
            }
        }
    }
}

/// What was counted of a call, and what that costs.
#[derive(Serialize, ToSchema)]
pub(super) struct UsageBody {
    rows: u64,
    input_tokens: u64,
    output_tokens: u64,
    /// Multiply-adds.
    #[schema(value_type = String, pattern = "^(0|[1-9][0-9]*)$")]
    madds: String,
    /// In base units, exactly: `7.000000001`. It is charged with the calls beside it, rounded down once.
    #[schema(value_type = String)]
    cost: String,
    /// The receipt of the charge that the call is part of: it is there once that is made, within a minute or so. Calls that together come to less
    /// than a base unit are charged with later ones, and have none; nor has a free call.
    #[schema(value_type = Option<String>)]
    receipt: Option<ReceiptId>,
}

/// Tensors by name.
struct Named<'a> {
    callable: &'a Callable,
    tensors: &'a [Tensor],
}

impl Serialize for Named<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(Some(self.tensors.len()))?;
        for (port, tensor) in self.callable.facts.outputs.iter().zip(self.tensors) {
            map.serialize_entry(&port.name, &Nested(tensor))?;
        }
        map.end()
    }
}

/// Call a model
///
/// One call, in tensors: JSON arrays, or a safetensors file (`application/x-safetensors`), which is exact and faster. The answer is in the same
/// form, unless `Accept` asks for the other; a file has the outputs of the program. A version that says how texts become its inputs takes
/// `texts`, too. A call is committed before it is answered; what is not answered costs nothing. A caller that
/// hangs up pays for what was computed.
#[utoipa::path(
    post, path = "/v1/models/{model}/infer", tag = "calls", security(("session" = []), ("api_key" = ["models:call"])),
    params(("model" = String, Path), VersionQuery),
    request_body(content(
        (InferBody = "application/json"),
        (Vec<u8> = "application/x-safetensors"),
    )),
    responses(
        (status = 200, content((Inferred = "application/json"), (Vec<u8> = "application/x-safetensors")), headers(
            ("comptoir-call" = String, description = "The call"),
            ("comptoir-cost" = String, description = "What it costs, in base units"),
            ("comptoir-receipt" = String, description = "The receipt of the charge that it is part of, once that is made; none for a free call"),
        )),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`no_worker`, `version_not_served`, `service_unavailable`: try again after `Retry-After`", body = Problem, content_type = "application/problem+json"),
        (status = 504, description = "`call_timeout`", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn infer(
    State(state): State<AppState>,
    caller: Caller<needs::ModelsCall>,
    Path(model): Path<ModelId>,
    Query(query): Query<VersionQuery>,
    request: Request,
) -> Result<Response, Problem> {
    let callable = Callable::find(&state, caller.account, query.of(model)).await?;
    let headers = request.headers().clone();
    let form = Form::of_body(&headers)?;
    let answer_form = Form::wanted(&headers, form);
    let (body, permit) = read_body(request, &state).await?;
    let sent = callable.sent(form, &body)?;
    drop((body, permit));
    let asked = match sent {
        Sent::Tensors(inputs) => callable.ask_tensors(inputs)?,
        Sent::Texts(asking) => callable.ask_texts(&state, asking).await?,
    };
    let is_of_texts = asked.texts.is_some();
    let answered = calls::answer(&state, &caller, asked).await?;
    Ok(answer_form.answer(&callable, &answered, is_of_texts))
}

/// The form of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Json,
    File,
}

impl Form {
    fn of_body(headers: &HeaderMap) -> Result<Self, Problem> {
        let kind = headers.get(header::CONTENT_TYPE);
        if kind.is_some_and(|it| it == SAFETENSORS) {
            return Ok(Self::File);
        }
        comptoir_http::extract::require_json(headers)
            .map(|()| Self::Json)
            .map_err(|_| {
                let detail = format!("The body is application/json or {SAFETENSORS}");
                Problem::unsupported_media_type(&detail)
            })
    }

    fn wanted(headers: &HeaderMap, sent: Self) -> Self {
        let accepted = headers.get(header::ACCEPT).and_then(|it| it.to_str().ok());
        match accepted {
            Some(it) if it.contains(SAFETENSORS) => Self::File,
            Some(it) if it.contains("application/json") => Self::Json,
            Some(_) | None => sent,
        }
    }

    fn answer(self, callable: &Callable, answered: &Answered, is_of_texts: bool) -> Response {
        let tensors = &answered.outputs.tensors;
        let results = answered.results.as_ref();
        let mut response = match self {
            Self::File => {
                let names = callable.facts.outputs.iter().map(|it| it.name.as_str());
                let file = write_file(names.zip(tensors));
                let kind = [(header::CONTENT_TYPE, HeaderValue::from_static(SAFETENSORS))];
                (StatusCode::OK, kind, file).into_response()
            }
            Self::Json => axum::Json(Inferred {
                id: answered.id,
                model: callable.model.id,
                version: callable.version.id,
                outputs: (!is_of_texts || results.is_none()).then_some(Named { callable, tensors }),
                results: results.map(|results| {
                    let manifest = &callable.version.manifest;
                    let results = results.iter();
                    results.map(|it| ResultBody::of(manifest, it)).collect()
                }),
                usage: UsageBody::of(answered.usage, answered.cost, answered.receipt),
            })
            .into_response(),
        };
        answered.tell(response.headers_mut());
        response
    }
}

impl UsageBody {
    pub(super) fn of(usage: Usage, cost: Atto, receipt: Option<ReceiptId>) -> Self {
        let Usage {
            rows,
            input_tokens,
            output_tokens,
            madds,
        } = usage;
        Self {
            rows,
            input_tokens,
            output_tokens,
            madds: madds.to_string(),
            cost: cost.decimal(),
            receipt,
        }
    }
}

impl Callable {
    fn sent(&self, form: Form, body: &[u8]) -> Result<Sent, Problem> {
        let ports = Port::all(&self.facts.inputs);
        let ports = ports.ok_or_else(|| Problem::internal(&sqlx::Error::RowNotFound))?;
        let read = match form {
            Form::Json => tensors::read_body(body, &ports),
            Form::File => read_file(body, &ports).map(Sent::Tensors),
        };
        read.map_err(refused)
    }
}

fn refused(refusals: Refusals) -> Problem {
    let fields = refusals.into_iter();
    Problem::invalid_fields(fields.map(|(pointer, detail)| FieldError::new(pointer, detail)))
}
