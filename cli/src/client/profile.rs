//! Who we are to which service: a file in the user's configuration folder, or an API key.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::json;
use time::{Duration, OffsetDateTime};
use url::Url;

use super::http::Api;
use crate::{
    exit::{Exit, coded},
    secret,
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

    /// The service with credentials; a token about to end is renewed and saved.
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
        if profile.expires_at - RENEW_BEFORE > now {
            return Ok(api.with_bearer(profile.access_token));
        }
        let body = json!({ "refresh_token": profile.refresh_token });
        let tokens = api
            .post("/v1/auth/refresh", &body)
            .await
            .context("renew the session")?;
        let profile = self.keep(api.base(), profile.signed_in_as, &tokens, now)?;
        Ok(api.with_bearer(profile.access_token))
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

fn read(path: &Path) -> anyhow::Result<Option<Profile>> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .with_context(|| format!("{} is not a profile: run `comptoir login`", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}
