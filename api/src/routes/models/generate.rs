//! `POST /v1/models/{model}/generate`: a text that a model writes, whole or as it comes.

use std::convert::Infallible;

use axum::{
    extract::{DefaultBodyLimit, Request, State},
    http::StatusCode,
    response::{
        IntoResponse as _, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use comptoir_domain::id::{CallId, ModelId, ModelVersionId};
use comptoir_text::{FinishReason, chat::Message};
use futures::stream;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::infer::UsageBody;
use crate::{
    AppState, Problem,
    auth::{Caller, needs},
    calls::{self, Callable, Piece, Pieces, Prompt, WishFields, Written, read_json},
    extract::{Path, Query},
    routes::version_query::VersionQuery,
};

/// Bytes of a body: a prompt of 2 MiB, in JSON that spells most of its characters.
const BODY_BYTES_MAX: usize = 8 << 20;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(generate))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

/// What a text goes on from, and how it is written: either a prompt or messages.
#[derive(Debug, Deserialize, ToSchema)]
struct GenerateRequest {
    /// A text that is gone on from.
    #[serde(default)]
    #[schema(nullable = false)]
    prompt: Option<String>,
    /// A conversation that is answered, where the version says how it becomes a prompt.
    #[serde(default)]
    #[schema(value_type = Option<Vec<MessageBody>>, nullable = false)]
    messages: Option<Vec<Message>>,
    /// Tokens that are written at most. Left out: as many as the version's context has room for.
    #[serde(default)]
    #[schema(minimum = 1, nullable = false)]
    tokens_max: Option<u32>,
    /// Is the text sent as it comes? As server-sent events: `text` with `{"text"}`, and at last `end` with everything but the text, or `error` with a problem.
    #[serde(default)]
    stream: bool,
    #[serde(flatten)]
    wish: WishFields,
}

/// Who says what.
#[derive(ToSchema)]
#[schema(as = ChatMessage)]
#[expect(dead_code, reason = "it documents what is read into a `Message`")]
struct MessageBody {
    role: RoleBody,
    content: String,
}

#[derive(ToSchema)]
#[schema(as = ChatRole, rename_all = "snake_case")]
#[expect(dead_code, reason = "it documents what is read into a `Role`")]
enum RoleBody {
    System,
    User,
    Assistant,
}

/// What was written, and what it cost.
#[derive(Serialize, ToSchema)]
struct Generated {
    #[schema(value_type = String, example = "call_01h455vb4pex5vsknk084sn02q")]
    id: CallId,
    #[schema(value_type = String)]
    model: ModelId,
    #[schema(value_type = String)]
    version: ModelVersionId,
    /// What follows the prompt. Left out where it was sent as it came.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    text: Option<String>,
    #[schema(value_type = FinishBody)]
    finish_reason: FinishReason,
    usage: UsageBody,
}

/// Why it ended: at a stop or a token that ends it, or for its length.
#[derive(ToSchema)]
#[schema(as = FinishReason, rename_all = "snake_case")]
#[expect(dead_code, reason = "it documents `FinishReason`")]
enum FinishBody {
    Stop,
    Length,
}

/// Have a text written
///
/// By a version that declares `generation`. Tokens of the prompt and of what was written are counted by the service; the text costs what they come to, once it
/// is there. A text that fails costs nothing. Who hangs up pays for what was written until then.
#[utoipa::path(
    post, path = "/v1/models/{model}/generate", tag = "calls", security(("session" = []), ("api_key" = ["models:call"])),
    params(("model" = String, Path), VersionQuery),
    request_body = GenerateRequest,
    responses(
        (status = 200, content((Generated = "application/json"), (String = "text/event-stream")), headers(
            ("comptoir-call" = String, description = "The call"),
            ("comptoir-cost" = String, description = "What it costs, in base units; not of a text that is sent as it comes, whose last event says it"),
            ("comptoir-receipt" = String, description = "The receipt of the charge that it is part of, once that is made; none for a free call, nor for a text that is sent as it comes"),
        )),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`no_worker`, `version_not_served`, `service_unavailable`: try again after `Retry-After`", body = Problem, content_type = "application/problem+json"),
        (status = 504, description = "`call_timeout`", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn generate(
    State(state): State<AppState>,
    caller: Caller<needs::ModelsCall>,
    Path(model): Path<ModelId>,
    Query(query): Query<VersionQuery>,
    request: Request,
) -> Result<Response, Problem> {
    let callable = Callable::find(&state, caller.account, query.of(model)).await?;
    let asked: GenerateRequest = read_json(request, &state).await?;
    let is_streamed = asked.stream;
    let prompt = asked.prompt()?;
    let tokens_max = (asked.tokens_max, "/tokens_max");
    let wish = callable
        .wish(&state, prompt, tokens_max, &asked.wish)
        .await?;
    let pieces = calls::write(&state, &caller, wish).await?;
    let head = Head {
        id: pieces.id,
        model: callable.model.id,
        version: callable.version.id,
    };
    Ok(if is_streamed {
        let mut response = head.stream(pieces).into_response();
        calls::tell(response.headers_mut(), head.id, None);
        response
    } else {
        let (text, written) = pieces.whole().await?;
        let charged = (written.cost, written.receipt);
        let body = head.body(Some(text), &written);
        let mut response = (StatusCode::OK, axum::Json(body)).into_response();
        calls::tell(response.headers_mut(), head.id, Some(charged));
        response
    })
}

impl GenerateRequest {
    fn prompt(&self) -> Result<Prompt, Problem> {
        match (&self.prompt, &self.messages) {
            (Some(prompt), None) => Ok(Prompt::Text(prompt.clone())),
            (None, Some(messages)) => Ok(Prompt::Conversation(messages.clone())),
            (Some(_), Some(_)) | (None, None) => {
                let detail = "expected either `prompt` or `messages`";
                Err(Problem::invalid("/prompt", detail))
            }
        }
    }
}

/// What is known of a text before it is written.
#[derive(Clone, Copy)]
struct Head {
    id: CallId,
    model: ModelId,
    version: ModelVersionId,
}

/// A piece of a text, as it is sent.
#[derive(Serialize)]
struct TextPiece<'a> {
    text: &'a str,
}

impl Head {
    fn body(self, text: Option<String>, written: &Written) -> Generated {
        let Written {
            finish,
            usage,
            cost,
            receipt,
        } = *written;
        Generated {
            id: self.id,
            model: self.model,
            version: self.version,
            text,
            finish_reason: finish,
            usage: UsageBody::of(usage, cost, receipt),
        }
    }

    fn stream(self, pieces: Pieces) -> Sse<impl stream::Stream<Item = Result<Event, Infallible>>> {
        let events = stream::unfold(pieces, move |mut pieces| async move {
            let event = match pieces.next().await? {
                Piece::Text(text) => event("text", &TextPiece { text: &text }),
                Piece::Over(written) => event("end", &self.body(None, &written)),
                Piece::Failed(problem) => event("error", &*problem),
            };
            Some((Ok(event), pieces))
        });
        Sse::new(events).keep_alive(KeepAlive::default())
    }
}

fn event(name: &'static str, data: &impl Serialize) -> Event {
    let event = Event::default().event(name).json_data(data);
    event.expect("numbers and texts have a JSON form")
}
