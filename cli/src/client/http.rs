//! The REST API as seen from the command line: one request, one JSON reply or one problem.

use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, header};
use serde_json::Value;
use url::Url;

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
}

/// A connection to one service, with or without credentials.
#[derive(Debug, Clone)]
pub struct Api {
    base: Url,
    client: Client,
    bearer: Option<String>,
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
            bearer,
        })
    }

    /// The same service with these credentials.
    #[must_use]
    pub fn with_bearer(&self, bearer: impl Into<String>) -> Self {
        Self {
            bearer: Some(bearer.into()),
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
        match &self.bearer {
            Some(bearer) => request.bearer_auth(bearer),
            None => request,
        }
    }

    /// Sends it; a status of 400 and above is the problem it carries.
    ///
    /// # Errors
    /// [`ApiError`]
    pub async fn send(&self, request: RequestBuilder) -> Result<Response, ApiError> {
        let response = request
            .send()
            .await
            .map_err(|source| ApiError::Unreachable {
                url: self.base.to_string(),
                source: source.without_url(),
            })?;
        if response.status().is_client_error() || response.status().is_server_error() {
            return Err(problem(response).await);
        }
        Ok(response)
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
    let title = body["title"]
        .as_str()
        .unwrap_or_else(|| status.canonical_reason().unwrap_or("refused"));
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
        code: body["code"].as_str().unwrap_or("unknown").to_owned(),
        message,
    }
}
