//! Who we are to which service: a file in the user's configuration folder, or an API key.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::Context as _;
use reqwest::{Method, header::HeaderValue};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use url::Url;

use super::http::{Api, ApiError, json};
use crate::{
    exit::{Exit, coded},
    secret,
    service::now,
};

/// A token this close to its end is renewed before it is used.
const RENEW_BEFORE: Duration = Duration::seconds(30);

/// What signing in leaves behind.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Profile {
    /// The service.
    pub url: Url,
    /// Signed in as: an e-mail address, or a wallet's.
    #[serde(alias = "email")]
    pub signed_in_as: String,
    /// Bearer token.
    pub access_token: String,
    /// When it ends.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    /// Gives the next one; used once.
    pub refresh_token: String,
}

/// How the command line reaches the service.
#[derive(Debug, Clone)]
pub struct Connection {
    /// Where the service is, when not the profile's.
    pub url: Option<Url>,
    /// Instead of a profile.
    pub api_key: Option<String>,
    /// Where the profile is.
    pub profile: PathBuf,
}

impl Connection {
    /// The profile's usual place.
    #[must_use]
    pub fn default_profile() -> PathBuf {
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config"));
        let folder = std::env::var_os("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(home);
        folder
            .unwrap_or_default()
            .join("comptoir")
            .join("profile.json")
    }

    /// The service without credentials.
    ///
    /// # Errors
    /// When the profile cannot be read.
    pub fn anonymous(&self) -> anyhow::Result<Api> {
        let url = match &self.url {
            Some(url) => url.clone(),
            None => match read(&self.profile)? {
                Some(profile) => profile.url,
                None => Url::parse("http://127.0.0.1:8080").expect("a constant URL"),
            },
        };
        Api::new(url, None)
    }

    /// The service with credentials; a token that is about to end, or is refused, is renewed and saved.
    ///
    /// # Errors
    /// When nobody is signed in, or the service refuses the refresh token.
    pub async fn signed_in(&self, now: OffsetDateTime) -> anyhow::Result<Api> {
        let api = self.anonymous()?;
        if let Some(key) = &self.api_key {
            return Ok(api.with_bearer(key.clone()));
        }
        let profile = read(&self.profile)?.filter(|profile| profile.url == *api.base());
        let profile = profile.ok_or_else(|| {
            let message = format!(
                "nobody is signed in at {}: run `comptoir login`",
                api.base()
            );
            coded(Exit::Unauthenticated, message)
        })?;
        let session = Session {
            connection: self.clone(),
            access_token: Mutex::new(profile.access_token.clone()),
            renewing: tokio::sync::Mutex::default(),
        };
        if profile.expires_at - RENEW_BEFORE <= now {
            session.renew_token(&api, &profile.access_token).await?;
        }
        Ok(api.with_session(session))
    }

    /// Saves what signing in gave.
    ///
    /// # Errors
    /// When the reply lacks a token, or the file cannot be written.
    pub fn keep(
        &self,
        url: &Url,
        signed_in_as: String,
        tokens: &serde_json::Value,
        now: OffsetDateTime,
    ) -> anyhow::Result<Profile> {
        let part = |name: &str| {
            tokens[name]
                .as_str()
                .map(str::to_owned)
                .context("no token in the reply")
        };
        let seconds = tokens["expires_in"]
            .as_i64()
            .context("no lifetime in the reply")?;
        let profile = Profile {
            url: url.clone(),
            signed_in_as,
            access_token: part("access_token")?,
            expires_at: now.saturating_add(Duration::seconds(seconds)),
            refresh_token: part("refresh_token")?,
        };
        if let Some(folder) = self.profile.parent() {
            std::fs::create_dir_all(folder)?;
        }
        secret::write(&self.profile, &serde_json::to_string_pretty(&profile)?)?;
        Ok(profile)
    }

    /// The refresh token of the profile, which is then forgotten.
    ///
    /// # Errors
    /// When the file cannot be read or removed.
    pub fn forget(&self) -> anyhow::Result<Option<Profile>> {
        let profile = read(&self.profile)?;
        if profile.is_some() {
            std::fs::remove_file(&self.profile)?;
        }
        Ok(profile)
    }
}

/// Somebody who signed in. The profile has the newest tokens, also for other commands that run at the same time.
#[derive(Debug)]
pub struct Session {
    connection: Connection,
    access_token: Mutex<String>,
    /// A refresh token is spent once: of requests that are refused together, one renews.
    renewing: tokio::sync::Mutex<()>,
}

impl Session {
    /// The access token as it is now.
    #[must_use]
    pub fn token(&self) -> String {
        self.current().clone()
    }

    fn current(&self) -> MutexGuard<'_, String> {
        let token = self.access_token.lock();
        token.unwrap_or_else(PoisonError::into_inner)
    }

    /// The header of the next access token, after the one in `refused` was.
    ///
    /// # Errors
    /// [`ApiError::SignedOut`] when the service does not renew the session.
    pub async fn renew(
        &self,
        api: &Api,
        refused: Option<&HeaderValue>,
    ) -> Result<HeaderValue, ApiError> {
        let refused = refused.and_then(|it| it.to_str().ok()?.strip_prefix("Bearer "));
        let token = self.renew_token(api, refused.unwrap_or_default()).await?;
        HeaderValue::try_from(format!("Bearer {token}"))
            .map_err(|error| ApiError::Unrenewed(error.into()))
    }

    async fn renew_token(&self, api: &Api, refused: &str) -> Result<String, ApiError> {
        let _one = self.renewing.lock().await;
        let token = self.token();
        if token != refused {
            return Ok(token);
        }
        let profile = read(&self.connection.profile).map_err(ApiError::Unrenewed)?;
        let profile = profile.filter(|profile| profile.url == *api.base());
        let mut profile = profile.ok_or_else(|| api.signed_out())?;
        if profile.access_token == refused {
            let body = serde_json::json!({ "refresh_token": profile.refresh_token });
            let request = api.anonymous().request(Method::POST, "/v1/auth/refresh");
            let renewed = api.send_once(request.json(&body)).await;
            let tokens = json(renewed.map_err(|error| match error {
                ApiError::Problem { status: 401, .. } => api.signed_out(),
                error => error,
            })?);
            let tokens = tokens.await?;
            profile = self
                .connection
                .keep(api.base(), profile.signed_in_as, &tokens, now())
                .map_err(ApiError::Unrenewed)?;
        }
        self.current().clone_from(&profile.access_token);
        Ok(profile.access_token)
    }
}

fn read(path: &Path) -> anyhow::Result<Option<Profile>> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .with_context(|| format!("{} is not a profile: run `comptoir login`", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}
