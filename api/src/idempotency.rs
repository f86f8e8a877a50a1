//! An effect happens once per `Idempotency-Key`: the reply is kept in the transaction of the effect,
//! and a repeated request is answered with it.

use axum::{
    body::Body,
    extract::{FromRequest, Request},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use comptoir_domain::{digest::Sha256, id::AccountId};
use comptoir_http::extract::{parse_json, read_body};
use comptoir_store::{
    PgTransaction,
    idempotency::{self, RequestKey, StoredReply},
};
use futures::future::BoxFuture;
use serde::{Serialize, de::DeserializeOwned};
use time::Duration;
use tracing::Instrument as _;

use crate::{
    AppState, Problem,
    auth::{Identity, keys::Keys},
};

/// Carries the client's key.
pub const HEADER: HeaderName = HeaderName::from_static("idempotency-key");
/// Tells a repeated answer from the first.
pub const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// Longest key.
const KEY_LENGTH_MAX: usize = 255;
/// How long a reply is kept. Money is involved in most, so all are kept as long as money's.
pub(crate) const KEPT_FOR: Duration = Duration::days(30);
/// Seconds after which a client may ask again about a request that is being worked on.
const RETRY_AFTER_SECONDS: u32 = 1;

/// What makes two requests of one caller the same one.
#[derive(Debug, Clone)]
pub struct Key {
    method: Method,
    path: String,
    chosen: String,
    body_sha256: Sha256,
}

impl Key {
    /// The key as it is kept.
    pub(crate) fn of(&self, account: AccountId) -> RequestKey<'_> {
        RequestKey {
            account,
            method: self.method.as_str(),
            path: &self.path,
            key: &self.chosen,
        }
    }
}

/// A JSON body of a request that may be repeated safely: a POST that creates something or moves money.
#[derive(Debug)]
pub struct IdempotentJson<T> {
    /// To be given to [`run`].
    pub key: Key,
    /// What is asked for.
    pub body: T,
}

impl<T: DeserializeOwned> FromRequest<AppState> for IdempotentJson<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, Problem> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let headers = request.headers().clone();
        let chosen = chosen_key(&headers)?;
        let bytes = read_body(request, state).await?;
        let body = parse_json(&headers, &bytes)?;
        let key = Key {
            method,
            path,
            chosen,
            body_sha256: Sha256::of(&bytes),
        };
        Ok(Self { key, body })
    }
}

fn chosen_key(headers: &HeaderMap) -> Result<String, Problem> {
    let mut values = headers.get_all(HEADER).iter();
    let key = values.next().and_then(|value| value.to_str().ok());
    match key {
        Some(key) if is_key(key) && values.next().is_none() => Ok(key.to_owned()),
        _ => Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "idempotency_key_missing",
            "One Idempotency-Key of 1 to 255 printable ASCII characters is needed",
        )),
    }
}

/// A header may hold a tab as well.
fn is_key(key: &str) -> bool {
    (1..=KEY_LENGTH_MAX).contains(&key.len()) && !key.contains(char::is_control)
}

/// The answer to a request that had its effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    status: StatusCode,
    location: Option<String>,
    body: Vec<u8>,
}

impl Reply {
    /// Something was created, and is found at `location`: 201.
    #[must_use]
    pub fn created(location: impl Into<String>, body: &impl Serialize) -> Self {
        Self {
            location: Some(location.into()),
            ..Self::new(StatusCode::CREATED, body)
        }
    }

    /// Something was done: 200.
    #[must_use]
    pub fn ok(body: &impl Serialize) -> Self {
        Self::new(StatusCode::OK, body)
    }

    /// The reply as it is kept: readable to nobody but us, for this request.
    pub(crate) fn keep(&self, keys: &Keys, account: AccountId, key: &Key) -> StoredReply {
        StoredReply {
            status: self.status.as_u16(),
            location: self.location.clone(),
            body: keys.seal_reply(&context(&key.of(account)), &self.body),
            request_sha256: key.body_sha256,
        }
    }

    fn new(status: StatusCode, body: &impl Serialize) -> Self {
        let body = serde_json::to_vec(body).expect("bodies have string keys and serialise");
        Self {
            status,
            location: None,
            body,
        }
    }
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        if let Some(location) = self
            .location
            .and_then(|location| HeaderValue::try_from(location).ok())
        {
            headers.insert(header::LOCATION, location);
        }
        response
    }
}

/// Runs `effect` in a transaction that also keeps its reply, or answers with the reply that was kept.
///
/// A refusal rolls everything back and is not kept: the same request may succeed later. The effect runs
/// in a task of its own, so a client that hangs up does not leave a transaction half done.
///
/// # Errors
/// What `effect` answers; 409 while another request holds the key; 422 for the key of another request.
pub async fn run<F>(
    state: &AppState,
    caller: &Identity,
    key: Key,
    effect: F,
) -> Result<Response, Problem>
where
    F: for<'t> FnOnce(&'t mut PgTransaction<'static>) -> BoxFuture<'t, Result<Reply, Problem>>
        + Send
        + 'static,
{
    let (state, caller) = (state.clone(), caller.clone());
    let work = async move { once(&state, &caller, &key, effect).await };
    let done = tokio::spawn(work.in_current_span()).await;
    done.map_err(|error| Problem::internal(&error))?
}

async fn once<F>(
    state: &AppState,
    caller: &Identity,
    key: &Key,
    effect: F,
) -> Result<Response, Problem>
where
    F: for<'t> FnOnce(&'t mut PgTransaction<'static>) -> BoxFuture<'t, Result<Reply, Problem>>
        + Send,
{
    let account = caller.account;
    let (now, request) = (state.now(), key.of(account));
    let mut tx = caller.begin(state).await?;
    if !idempotency::try_lock(&mut tx, &request).await? {
        return Err(in_progress());
    }
    if let Some(kept) = idempotency::find(&mut tx, &request, now).await? {
        // Awaited, not left to `drop`: the key is free again when the client has its answer.
        tx.rollback().await?;
        return replay(state, account, key, kept);
    }
    let reply = match effect(&mut tx).await {
        Ok(reply) => reply,
        Err(problem) => {
            tx.rollback().await?;
            return Err(problem);
        }
    };
    let kept = reply.keep(&state.keys, account, key);
    idempotency::keep(&mut tx, &request, &kept, now, now + KEPT_FOR).await?;
    tx.commit().await?;
    Ok(reply.into_response())
}

/// Another request holds the key: 409.
pub(crate) fn in_progress() -> Problem {
    Problem::new(
        StatusCode::CONFLICT,
        "idempotency_in_progress",
        "A request with this Idempotency-Key is being worked on",
    )
    .retry_after(RETRY_AFTER_SECONDS)
}

/// What a kept reply is sealed to.
fn context(request: &RequestKey<'_>) -> String {
    let RequestKey {
        account,
        method,
        path,
        key,
    } = request;
    format!("{account} {method} {path} {key}")
}

/// Answers a request with the reply that was kept.
///
/// # Errors
/// 422 for the key of another request.
pub(crate) fn replay(
    state: &AppState,
    account: AccountId,
    key: &Key,
    kept: StoredReply,
) -> Result<Response, Problem> {
    if kept.request_sha256 != key.body_sha256 {
        return Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "idempotency_key_reused",
            "The Idempotency-Key was used with another body",
        ));
    }
    let body = state
        .keys
        .open_reply(&context(&key.of(account)), &kept.body)
        .map_err(|error| Problem::internal(&error))?;
    let status = StatusCode::from_u16(kept.status).map_err(|error| Problem::internal(&error))?;
    let mut response = Reply {
        status,
        location: kept.location,
        body,
    }
    .into_response();
    response
        .headers_mut()
        .insert(REPLAYED, HeaderValue::from_static("true"));
    Ok(response)
}
