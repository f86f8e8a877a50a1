//! The command line in somebody's hands, as strangers would use it.

use std::{ffi::OsStr, process::Stdio};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tokio::process::Command;

use super::{cast::Cast, people::Person};

/// The command line in somebody's hands.
pub struct Shell<'a> {
    cast: &'a Cast,
    person: &'a Person,
}

impl<'a> Shell<'a> {
    /// With their credentials.
    pub const fn of(cast: &'a Cast, person: &'a Person) -> Self {
        Self { cast, person }
    }

    /// A dataset verb that must succeed; what it prints.
    pub async fn does(&self, verb: &[&str], rest: &[&str]) -> anyhow::Result<Value> {
        let verb: Vec<_> = verb.iter().map(OsStr::new).collect();
        self.says(&verb, rest).await
    }

    /// The same with paths.
    pub async fn says(&self, verb: &[&OsStr], rest: &[&str]) -> anyhow::Result<Value> {
        self.told(&[&[OsStr::new("dataset")], verb].concat(), rest)
            .await
    }

    /// Any verb that must succeed; what it prints.
    pub async fn told(&self, verb: &[&OsStr], rest: &[&str]) -> anyhow::Result<Value> {
        let (code, told, trouble) = self.run(verb, rest).await?;
        let verb = verb.iter().take(2).copied().collect::<Vec<_>>();
        let verb = verb.join(OsStr::new(" "));
        let verb = verb.display();
        ensure!(code == 0, "`comptoir {verb}` ends with {code}: {trouble}");
        serde_json::from_slice(&told).with_context(|| format!("`comptoir {verb}` prints no JSON"))
    }

    /// Runs a verb to its end: its exit code, and what it prints to both.
    pub async fn run(
        &self,
        verb: &[&OsStr],
        rest: &[&str],
    ) -> anyhow::Result<(i32, Vec<u8>, String)> {
        let program = std::env::current_exe()?.with_file_name("comptoir");
        let ended = Command::new(program)
            .args(verb)
            .args(rest)
            .env("COMPTOIR_URL", self.cast.node.api_url.as_str())
            .env("COMPTOIR_API_KEY", &self.person.token)
            .stdin(Stdio::null())
            .output()
            .await?;
        let code = ended.status.code().context("the command was killed")?;
        let trouble = String::from_utf8_lossy(&ended.stderr).into_owned();
        Ok((code, ended.stdout, trouble))
    }
}

/// A text of a document.
pub fn field(value: &Value, name: &str) -> anyhow::Result<String> {
    let found = value[name].as_str();
    found
        .map(str::to_owned)
        .with_context(|| format!("no `{name}`"))
}
