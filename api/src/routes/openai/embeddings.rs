//! `POST /v1/embeddings`: vectors of texts.

use axum::{
    extract::{DefaultBodyLimit, Request, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use comptoir_domain::{id::ModelId, model::Given};
use comptoir_text::{Applied, Overlong};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{ErrorBody, ListObject};
use crate::{
    AppState, Problem,
    auth::{Caller, needs},
    calls::{self, Answered, Asking, Callable, Texts, TextsBody, read_json},
    extract::Query,
    routes::version_query::VersionQuery,
};

/// Bytes of a body: texts of 2 MiB, in JSON that spells most of their characters.
const BODY_BYTES_MAX: usize = 8 << 20;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create_embeddings))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

/// What is to be embedded. Fields that are not known are ignored.
#[derive(Deserialize, ToSchema)]
struct EmbeddingsRequest {
    /// The model's id.
    model: String,
    /// 2,048 texts at most, of 2 MiB together.
    #[schema(value_type = TextsBody)]
    input: Texts,
    /// How vectors are written.
    #[serde(default)]
    encoding_format: Option<EncodingFormat>,
    /// As many numbers as a vector of the model has, where it is given.
    #[serde(default)]
    dimensions: Option<u64>,
}

/// How vectors are written: as numbers, or as the base64 of their bytes, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum EncodingFormat {
    #[default]
    Float,
    Base64,
}

/// Vectors in the order of the texts, and what they cost.
#[derive(Serialize, ToSchema)]
struct Embeddings<'a> {
    object: ListObject,
    data: Vec<Embedded<'a>>,
    #[schema(value_type = String)]
    model: ModelId,
    usage: EmbeddingsUsage,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum EmbeddingObject {
    Embedding,
}

/// The vector of a text.
#[derive(Serialize, ToSchema)]
struct Embedded<'a> {
    object: EmbeddingObject,
    /// The text's place.
    index: usize,
    embedding: Vector<'a>,
}

#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum Vector<'a> {
    Numbers(&'a [f32]),
    Base64(String),
}

/// What was counted, and what that costs.
#[derive(Serialize, ToSchema)]
struct EmbeddingsUsage {
    prompt_tokens: u64,
    total_tokens: u64,
    /// In base units, exactly.
    #[schema(value_type = String)]
    cost: String,
}

/// Embed texts
///
/// As clients of `OpenAI` ask for it, of a model that makes an embedding of each text. One call: it is committed before it is answered, and what is not
/// answered costs nothing.
#[utoipa::path(
    post, path = "/v1/embeddings", tag = "openai", security(("session" = []), ("api_key" = ["models:call"])),
    params(VersionQuery),
    request_body = EmbeddingsRequest,
    responses(
        (status = 200, body = Embeddings, headers(
            ("comptoir-call" = String, description = "The call"),
            ("comptoir-cost" = String, description = "What it costs, in base units"),
            ("comptoir-receipt" = String, description = "The receipt of the charge that it will be part of; none where it is free"),
        )),
        (status = "4XX", body = ErrorBody),
        (status = "5XX", body = ErrorBody),
    ),
)]
async fn create_embeddings(
    State(state): State<AppState>,
    caller: Caller<needs::ModelsCall>,
    Query(query): Query<VersionQuery>,
    request: Request,
) -> Result<Response, Problem> {
    let asked: EmbeddingsRequest = read_json(request, &state).await?;
    let target = query.of_named(&asked.model)?;
    let callable = Callable::find(&state, caller.account, target).await?;
    asked.check(&callable)?;
    let asking = Asking {
        texts: asked.input,
        overlong: Overlong::Refuse,
        field: "input",
    };
    let call = callable.ask_texts(&state, asking).await?;
    let answered = calls::answer(&state, &caller, call).await?;
    let body = Embeddings::of(
        &callable,
        &answered,
        asked.encoding_format.unwrap_or_default(),
    );
    let mut response = (StatusCode::OK, axum::Json(body)).into_response();
    answered.tell(response.headers_mut());
    Ok(response)
}

impl EmbeddingsRequest {
    /// Refuses what the version does not make.
    fn check(&self, callable: &Callable) -> Result<(), Problem> {
        let manifest = &callable.version.manifest;
        let result = manifest.result.as_ref().filter(|_| manifest.text.is_some());
        let given = result.and_then(|it| it.given(&callable.facts, manifest.labels.as_ref()));
        let Some(Given::Embedding { dimensions }) = given else {
            let detail = "the model makes no embedding of a text";
            return Err(Problem::invalid("/model", detail));
        };
        if self.dimensions.is_some_and(|it| it != dimensions) {
            let detail = format!("the model's vectors have {dimensions} numbers, and are not cut");
            return Err(Problem::invalid("/dimensions", detail));
        }
        Ok(())
    }
}

impl<'a> Embeddings<'a> {
    fn of(callable: &Callable, answered: &'a Answered, format: EncodingFormat) -> Self {
        let vectors = answered.results.iter().flatten().filter_map(|it| match it {
            Applied::Vector(numbers) => Some(numbers),
            Applied::Ranked(_) => None,
        });
        let data = vectors.enumerate().map(|(index, numbers)| Embedded {
            object: EmbeddingObject::Embedding,
            index,
            embedding: Vector::of(numbers, format),
        });
        let tokens = answered.usage.input_tokens;
        Self {
            object: ListObject::List,
            data: data.collect(),
            model: callable.model.id,
            usage: EmbeddingsUsage {
                prompt_tokens: tokens,
                total_tokens: tokens,
                cost: answered.cost.decimal(),
            },
        }
    }
}

impl<'a> Vector<'a> {
    fn of(numbers: &'a [f32], format: EncodingFormat) -> Self {
        match format {
            EncodingFormat::Float => Self::Numbers(numbers),
            EncodingFormat::Base64 => {
                let bytes: Vec<u8> = numbers.iter().flat_map(|it| it.to_le_bytes()).collect();
                Self::Base64(BASE64_STANDARD.encode(bytes))
            }
        }
    }
}
