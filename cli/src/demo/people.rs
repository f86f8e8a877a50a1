//! Who takes part, each with an account, an address, and a session.

use std::{
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use tokio::process::{Child, Command};

use crate::{
    client::{account, http::Api, idempotency_key, wallet::Wallet},
    secret,
};

/// How long a worker may take until it is seen: it loads libtorch and runs the canary suite.
const JOIN_MAX: Duration = Duration::from_mins(2);

/// Somebody with an account and a bound address.
pub struct Person {
    /// For the story.
    pub name: &'static str,
    /// Signed in.
    pub api: Api,
    /// What the service takes for them.
    pub token: String,
    /// Their key.
    pub wallet: Wallet,
}

impl Person {
    /// Signs up, signs in, and binds a fresh address.
    ///
    /// # Errors
    /// When the service refuses.
    pub async fn arrive(name: &'static str, api: &Api) -> anyhow::Result<Self> {
        let email = format!("{name}@example.com");
        let password = secret::random_hex()?;
        account::create(api, &email, &password)
            .await
            .context("sign up")?;
        let tokens = account::tokens(api, &email, &password)
            .await
            .context("sign in")?;
        let token = tokens["access_token"].as_str().context("no access token")?;
        let token = token.to_owned();
        let api = api.with_bearer(&token);
        let wallet = Wallet::random();
        account::bind(&api, &wallet)
            .await
            .context("bind the address")?;
        Ok(Self {
            name,
            api,
            token,
            wallet,
        })
    }
}

/// A worker process of somebody's.
pub struct WorkerProcess {
    child: Child,
    /// Its id at the service.
    pub id: String,
}

impl WorkerProcess {
    /// Joins with a token of `owner`, starts the worker, and waits until the service has seen it.
    ///
    /// # Errors
    /// When joining fails or the worker does not come up.
    pub async fn start(
        owner: &Person,
        scheduler: &str,
        binary: &Path,
        folder: &Path,
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let body = json!({ "name": owner.name });
        let token = owner
            .api
            .create("/v1/join-tokens", &idempotency_key(), &body)
            .await?;
        let token = token["token"].as_str().context("no token in the reply")?;
        let joined = Command::new(binary)
            .args([
                "join", "--url", scheduler, "--token", token, "--name", owner.name, "--folder",
            ])
            .arg(folder)
            .stdin(Stdio::null())
            .output()
            .await
            .with_context(|| format!("start {}", binary.display()))?;
        if !joined.status.success() {
            bail!(
                "joining failed: {}",
                String::from_utf8_lossy(&joined.stderr).trim()
            );
        }
        let child = spawn(binary, folder)?;
        let id = wait_until_seen(owner).await?;
        Ok(Self { child, id })
    }

    /// Ends it at once, as a power cut would.
    ///
    /// # Errors
    /// When it had ended before.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().await.context("kill the worker")
    }

    /// Asks it to stop, and waits.
    ///
    /// # Errors
    /// When it does not stop in time.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let Some(pid) = self.child.id() else {
            return Ok(());
        };
        kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGTERM)?;
        let stopped = tokio::time::timeout(Duration::from_secs(20), self.child.wait()).await;
        stopped
            .context("the worker does not stop")?
            .context("wait for the worker")?;
        Ok(())
    }
}

fn spawn(binary: &Path, folder: &Path) -> anyhow::Result<Child> {
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.join("worker.log"))?;
    Command::new(binary)
        .args(["run", "--folder"])
        .arg(folder)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {}", binary.display()))
}

async fn wait_until_seen(owner: &Person) -> anyhow::Result<String> {
    let give_up = Instant::now() + JOIN_MAX;
    loop {
        let workers = owner.api.get("/v1/workers").await?;
        let worker = &workers["data"][0];
        if worker["state"] == "idle" || worker["state"] == "busy" {
            return Ok(worker["id"]
                .as_str()
                .context("a worker without an id")?
                .to_owned());
        }
        if Instant::now() > give_up {
            bail!(
                "the worker of {} is not seen: see its worker.log",
                owner.name
            );
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
