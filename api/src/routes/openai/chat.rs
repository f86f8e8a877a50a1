//! `POST /v1/chat/completions`: a conversation that a model goes on with.

use std::convert::Infallible;

use axum::{
    extract::{DefaultBodyLimit, Request, State},
    http::StatusCode,
    response::{
        IntoResponse as _, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use comptoir_domain::id::{CallId, ModelId};
use comptoir_text::{
    FinishReason,
    chat::{Message, Role},
};
use futures::{StreamExt as _, stream};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{ErrorBody, told};
use crate::{
    AppState, Problem,
    auth::{Caller, needs},
    calls::{self, Callable, Piece, Pieces, Prompt, WishFields, Written, read_json},
    extract::Query,
    routes::version_query::VersionQuery,
};

/// Bytes of a body: messages of 2 MiB, in JSON that spells most of their characters.
const BODY_BYTES_MAX: usize = 8 << 20;
/// What a stream ends with, as these clients expect it.
const DONE: &str = "[DONE]";

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create_chat_completion))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

/// A conversation, and how its answer is written. Fields that are not known are ignored.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = ChatCompletionRequest)]
struct ChatRequest {
    /// The model's id.
    model: String,
    /// What was said: 4,096 messages at most, of 2 MiB together.
    messages: Vec<MessageBody>,
    /// Tokens that are written at most. Left out: as many as the model's context has room for.
    #[serde(default)]
    #[schema(minimum = 1)]
    max_completion_tokens: Option<u32>,
    /// The older name of `max_completion_tokens`.
    #[serde(default)]
    #[schema(minimum = 1)]
    max_tokens: Option<u32>,
    /// How many answers: one.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 1)]
    n: Option<u32>,
    /// Is the answer sent as it comes?
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    stream_options: Option<StreamOptions>,
    #[serde(flatten)]
    wish: WishFields,
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = ChatStreamOptions)]
struct StreamOptions {
    /// Is what was counted sent in a chunk of its own, without choices? Left out: it is in the chunk that says why the answer ended.
    #[serde(default)]
    include_usage: Option<bool>,
}

/// Who says what.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = ChatCompletionMessage)]
struct MessageBody {
    role: RoleBody,
    content: ContentBody,
}

#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[schema(as = ChatCompletionRole)]
#[serde(rename_all = "snake_case")]
enum RoleBody {
    System,
    /// What newer clients call `system`.
    Developer,
    User,
    Assistant,
}

/// A text, or parts of one.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = ChatCompletionContent)]
#[serde(untagged)]
enum ContentBody {
    Text(String),
    Parts(Vec<PartBody>),
}

/// A part of a message: a text.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = ChatCompletionPart)]
#[serde(tag = "type", rename_all = "snake_case")]
enum PartBody {
    Text { text: String },
}

impl From<MessageBody> for Message {
    fn from(it: MessageBody) -> Self {
        Self {
            role: match it.role {
                RoleBody::System | RoleBody::Developer => Role::System,
                RoleBody::User => Role::User,
                RoleBody::Assistant => Role::Assistant,
            },
            content: match it.content {
                ContentBody::Text(text) => text,
                ContentBody::Parts(parts) => {
                    let texts = parts.into_iter().map(|PartBody::Text { text }| text);
                    texts.collect()
                }
            },
        }
    }
}

/// An answer, and what it cost.
#[derive(Serialize, ToSchema)]
struct ChatCompletion {
    #[schema(value_type = String)]
    id: CallId,
    object: CompletionObject,
    /// When it was asked for, in seconds since 1970.
    created: i64,
    #[schema(value_type = String)]
    model: ModelId,
    choices: [Choice; 1],
    usage: ChatUsage,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[schema(as = ChatCompletionObject)]
enum CompletionObject {
    #[serde(rename = "chat.completion")]
    Completion,
}

#[derive(Serialize, ToSchema)]
#[schema(as = ChatChoice)]
struct Choice {
    index: u32,
    message: Answer,
    #[schema(value_type = String, pattern = "^(stop|length)$")]
    finish_reason: FinishReason,
}

#[derive(Serialize, ToSchema)]
#[schema(as = ChatAnswer)]
struct Answer {
    #[schema(value_type = String, pattern = "^assistant$")]
    role: Role,
    content: String,
}

/// What was counted, and what that costs.
#[derive(Debug, Clone, Serialize, ToSchema)]
struct ChatUsage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    /// In base units, exactly.
    cost: String,
    /// The receipt of the charge that it will be part of; none where it is free.
    #[schema(required = true)]
    receipt: Option<String>,
}

/// A piece of an answer.
#[derive(Serialize)]
struct Chunk {
    id: CallId,
    object: &'static str,
    created: i64,
    model: ModelId,
    choices: Vec<ChunkChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<ChatUsage>,
}

#[derive(Serialize)]
struct ChunkChoice {
    index: u32,
    delta: Delta,
    finish_reason: Option<FinishReason>,
}

#[derive(Default, Serialize)]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<Role>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

/// Go on with a conversation
///
/// As clients of `OpenAI` ask for it, of a model that writes texts and says how a conversation becomes a prompt. A text that fails costs nothing. Who hangs up pays for
/// what was written until then.
#[utoipa::path(
    post, path = "/v1/chat/completions", tag = "openai", security(("session" = []), ("api_key" = ["models:call"])),
    params(VersionQuery),
    request_body = ChatRequest,
    responses(
        (status = 200, content((ChatCompletion = "application/json"), (String = "text/event-stream")), headers(
            ("comptoir-call" = String, description = "The call"),
            ("comptoir-cost" = String, description = "What it costs, in base units; not of an answer that is sent as it comes, whose last chunk says it"),
            ("comptoir-receipt" = String, description = "The receipt of the charge that it will be part of; none where it is free, nor for an answer that is sent as it comes"),
        )),
        (status = "4XX", body = ErrorBody),
        (status = "5XX", body = ErrorBody),
    ),
)]
async fn create_chat_completion(
    State(state): State<AppState>,
    caller: Caller<needs::ModelsCall>,
    Query(query): Query<VersionQuery>,
    request: Request,
) -> Result<Response, Problem> {
    let asked: ChatRequest = read_json(request, &state).await?;
    if asked.n.is_some_and(|it| it != 1) {
        return Err(Problem::invalid("/n", "one answer is written at a time"));
    }
    let target = query.of_named(&asked.model)?;
    let callable = Callable::find(&state, caller.account, target).await?;
    let tokens_max = match (asked.max_completion_tokens, asked.max_tokens) {
        (None, Some(older)) => (Some(older), "/max_tokens"),
        (newer, _) => (newer, "/max_completion_tokens"),
    };
    let messages = asked.messages.into_iter().map(Message::from);
    let prompt = Prompt::Conversation(messages.collect());
    let wish = callable
        .wish(&state, prompt, tokens_max, &asked.wish)
        .await?;
    let created = state.now().unix_timestamp();
    let pieces = calls::write(&state, &caller, wish).await?;
    let head = Head {
        id: pieces.id,
        created,
        model: callable.model.id,
    };
    Ok(if asked.stream.unwrap_or_default() {
        let options = asked.stream_options;
        let is_apart = options.and_then(|it| it.include_usage).unwrap_or_default();
        let mut response = head.stream(pieces, is_apart).into_response();
        calls::tell(response.headers_mut(), head.id, None);
        response
    } else {
        let (text, written) = pieces.whole().await?;
        let body = head.completion(text, &written);
        let mut response = (StatusCode::OK, axum::Json(body)).into_response();
        let charged = (written.cost, written.receipt);
        calls::tell(response.headers_mut(), head.id, Some(charged));
        response
    })
}

/// What is known of an answer before it is written.
#[derive(Clone, Copy)]
struct Head {
    id: CallId,
    created: i64,
    model: ModelId,
}

impl Head {
    fn completion(self, content: String, written: &Written) -> ChatCompletion {
        ChatCompletion {
            id: self.id,
            object: CompletionObject::Completion,
            created: self.created,
            model: self.model,
            choices: [Choice {
                index: 0,
                message: Answer {
                    role: Role::Assistant,
                    content,
                },
                finish_reason: written.finish,
            }],
            usage: ChatUsage::of(written),
        }
    }

    fn chunk(self, delta: Delta, finish_reason: Option<FinishReason>) -> Chunk {
        let choice = ChunkChoice {
            index: 0,
            delta,
            finish_reason,
        };
        Chunk {
            id: self.id,
            object: "chat.completion.chunk",
            created: self.created,
            model: self.model,
            choices: vec![choice],
            usage: None,
        }
    }

    /// The events of what comes next. With `is_apart`, what was counted has a chunk of its own.
    fn events(self, piece: Piece, is_apart: bool) -> Vec<Event> {
        match piece {
            Piece::Text(text) => {
                let delta = Delta {
                    content: Some(text),
                    role: None,
                };
                vec![event(&self.chunk(delta, None))]
            }
            Piece::Over(written) => {
                let mut last = self.chunk(Delta::default(), Some(written.finish));
                let usage = Some(ChatUsage::of(&written));
                let done = Event::default().data(DONE);
                if is_apart {
                    let counted = Chunk {
                        choices: Vec::new(),
                        usage,
                        ..self.chunk(Delta::default(), None)
                    };
                    vec![event(&last), event(&counted), done]
                } else {
                    last.usage = usage;
                    vec![event(&last), done]
                }
            }
            Piece::Failed(problem) => vec![event(&told(&problem))],
        }
    }

    fn stream(
        self,
        pieces: Pieces,
        is_apart: bool,
    ) -> Sse<impl stream::Stream<Item = Result<Event, Infallible>>> {
        let begin = Delta {
            role: Some(Role::Assistant),
            content: Some(String::new()),
        };
        let begin = stream::iter([event(&self.chunk(begin, None))]);
        let events = stream::unfold(pieces, move |mut pieces| async move {
            let piece = pieces.next().await?;
            Some((stream::iter(self.events(piece, is_apart)), pieces))
        });
        let events = begin.chain(events.flatten()).map(Ok);
        Sse::new(events).keep_alive(KeepAlive::default())
    }
}

impl ChatUsage {
    fn of(written: &Written) -> Self {
        let (read, wrote) = (written.usage.input_tokens, written.usage.output_tokens);
        Self {
            prompt_tokens: read,
            completion_tokens: wrote,
            total_tokens: read.saturating_add(wrote),
            cost: written.cost.decimal(),
            receipt: written.receipt.map(|it| it.to_string()),
        }
    }
}

fn event(data: &impl Serialize) -> Event {
    let event = Event::default().json_data(data);
    event.expect("numbers and texts have a JSON form")
}
