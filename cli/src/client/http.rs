//! The REST API as seen from the command line: one request, one JSON reply or one problem.

use std::sync::Arc;

use reqwest::{Client, Method, Request, RequestBuilder, Response, StatusCode, header};
use serde_json::Value;
use url::Url;

use super::profile::Session;

/// Largest reply that is read into memory.
const REPLY_BYTES_MAX: usize = 64 << 20;

/// Why a request gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Nobody answered.
    #[error("{url} does not answer")]
    Unreachable {
        /// Where.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
    /// The service said no.
    #[error("{message} ({code})")]
    Problem {
        /// HTTP status.
        status: u16,
        /// Stable code of the problem.
        code: String,
        /// Title and detail.
        message: String,
    },
    /// The reply is not what the API promises.
    #[error("the reply of {url} is not understood")]
    Unreadable {
        /// Where.
        url: String,
    },
    /// The service takes neither the access token nor what renews it.
    #[error("the session at {url} has ended: run `comptoir login`")]
    SignedOut {
        /// Where.
        url: String,
    },
    /// The session cannot be read from its file, or not be kept there.
    #[error("renew the session")]
    Unrenewed(#[source] anyhow::Error),
}

/// A connection to one service, with or without credentials.
#[derive(Debug, Clone)]
pub struct Api {
    base: Url,
    client: Client,
    credential: Option<Credential>,
}

/// What requests authenticate themselves with.
#[derive(Debug, Clone)]
enum Credential {
    /// Good or not, it stays.
    Bearer(String),
    /// Its token changes.
    Session(Arc<Session>),
}

impl Api {
    /// No request is sent.
    ///
    /// # Errors
    /// When no TLS backend can be set up.
    pub fn new(base: Url, bearer: Option<String>) -> anyhow::Result<Self> {
        let client = Client::builder()
            .user_agent(concat!("comptoir/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(std::time::Duration::from_secs(10))
            .build()?;
        Ok(Self {
            base,
            client,
            credential: bearer.map(Credential::Bearer),
        })
    }

    /// The same service with these credentials.
    #[must_use]
    pub fn with_bearer(&self, bearer: impl Into<String>) -> Self {
        Self {
            credential: Some(Credential::Bearer(bearer.into())),
            ..self.clone()
        }
    }

    /// The same service in this session, which is renewed once for a request that the service refuses: the token may end
    /// before its time, as when keys are rotated by force.
    #[must_use]
    pub fn with_session(&self, session: Session) -> Self {
        Self {
            credential: Some(Credential::Session(Arc::new(session))),
            ..self.clone()
        }
    }

    /// The same service without credentials.
    #[must_use]
    pub fn anonymous(&self) -> Self {
        Self {
            credential: None,
            ..self.clone()
        }
    }

    /// Where the service is.
    #[must_use]
    pub const fn base(&self) -> &Url {
        &self.base
    }

    /// A request with credentials, to be sent with [`Self::send`].
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let mut url = self.base.clone();
        let (path, query) = path
            .split_once('?')
            .map_or((path, None), |(path, query)| (path, Some(query)));
        url.set_path(path);
        url.set_query(query);
        let request = self.client.request(method, url);
        match &self.credential {
            Some(Credential::Bearer(bearer)) => request.bearer_auth(bearer),
            Some(Credential::Session(session)) => request.bearer_auth(session.token()),
            None => request,
        }
    }

    /// Sends it; a status of 400 and above is the problem it carries.
    ///
    /// # Errors
    /// [`ApiError`]
    pub async fn send(&self, request: RequestBuilder) -> Result<Response, ApiError> {
        let (client, request) = request.build_split();
        let request = request.map_err(|error| self.unreachable(error))?;
        // What streams its body can be sent once; whoever does asks for something else before.
        let again = request.try_clone();
        let mut response = self.execute(&client, request).await?;
        if response.status() == StatusCode::UNAUTHORIZED
            && let Some(Credential::Session(session)) = &self.credential
            && let Some(mut again) = again
        {
            let headers = again.headers_mut();
            let token = session
                .renew(self, headers.get(header::AUTHORIZATION))
                .await?;
            headers.insert(header::AUTHORIZATION, token);
            response = self.execute(&client, again).await?;
            if response.status() == StatusCode::UNAUTHORIZED {
                return Err(self.signed_out());
            }
        }
        judged(response).await
    }

    /// Sends a request that says itself who we are: nothing is renewed for it.
    pub(super) async fn send_once(&self, request: RequestBuilder) -> Result<Response, ApiError> {
        let (client, request) = request.build_split();
        let request = request.map_err(|error| self.unreachable(error))?;
        judged(self.execute(&client, request).await?).await
    }

    async fn execute(&self, client: &Client, request: Request) -> Result<Response, ApiError> {
        let sent = client.execute(request).await;
        sent.map_err(|error| self.unreachable(error))
    }

    fn unreachable(&self, error: reqwest::Error) -> ApiError {
        ApiError::Unreachable {
            url: self.base.to_string(),
            source: error.without_url(),
        }
    }

    /// Whoever gets this signs in again.
    #[must_use]
    pub fn signed_out(&self) -> ApiError {
        ApiError::SignedOut {
            url: self.base.to_string(),
        }
    }

    /// `GET` of a JSON document.
    ///
    /// # Errors
    /// [`ApiError`]
    pub async fn get(&self, path: &str) -> Result<Value, ApiError> {
        json(self.send(self.request(Method::GET, path)).await?).await
    }

    /// `POST` of a JSON document that creates nothing and moves no money.
    ///
    /// # Errors
    /// [`ApiError`]
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, ApiError> {
        json(
            self.send(self.request(Method::POST, path).json(body))
                .await?,
        )
        .await
    }

    /// `POST` that is safe to repeat with the same `key`.
    ///
    /// # Errors
    /// [`ApiError`]
    pub async fn create(&self, path: &str, key: &str, body: &Value) -> Result<Value, ApiError> {
        let request = self
            .request(Method::POST, path)
            .header("idempotency-key", key)
            .json(body);
        json(self.send(request).await?).await
    }
}

/// The body of a reply as JSON; `null` where there is none.
///
/// # Errors
/// [`ApiError::Unreadable`]
pub async fn json(response: Response) -> Result<Value, ApiError> {
    let url = response.url().to_string();
    if response.status() == StatusCode::NO_CONTENT {
        return Ok(Value::Null);
    }
    let too_long = response
        .content_length()
        .is_some_and(|length| length > REPLY_BYTES_MAX as u64);
    let unreadable = ApiError::Unreadable { url };
    if too_long {
        return Err(unreadable);
    }
    response.json().await.map_err(|_| unreadable)
}

async fn judged(response: Response) -> Result<Response, ApiError> {
    if response.status().is_client_error() || response.status().is_server_error() {
        return Err(problem(response).await);
    }
    Ok(response)
}

async fn problem(response: Response) -> ApiError {
    let status = response.status();
    let is_problem = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|it| it.as_bytes().starts_with(b"application/problem+json"));
    let body: Value = if is_problem {
        response.json().await.unwrap_or_default()
    } else {
        Value::Null
    };
    // The answer to a `HEAD` has no body to say it.
    let (unnamed, untitled) = match status {
        StatusCode::UNAUTHORIZED => (
            "unauthenticated",
            "The credentials are missing or not valid",
        ),
        _ => ("unknown", status.canonical_reason().unwrap_or("refused")),
    };
    let title = body["title"].as_str().unwrap_or(untitled);
    let mut message = title.to_owned();
    if let Some(detail) = body["detail"].as_str() {
        message = format!("{message}: {detail}");
    }
    for error in body["errors"].as_array().into_iter().flatten() {
        let part = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
        message = format!("{message}; {} {}", part("pointer"), part("detail"));
    }
    ApiError::Problem {
        status: status.as_u16(),
        code: body["code"].as_str().unwrap_or(unnamed).to_owned(),
        message,
    }
}
