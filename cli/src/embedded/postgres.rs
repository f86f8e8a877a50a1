//! A private Postgres cluster. Postgres refuses to run as root, so root runs it as another user.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use comptoir_devchain::find_program;
use comptoir_domain::digest::Sha256;
use comptoir_store::pool;
use nix::{sys::signal::Signal, unistd::User};
use tokio::process::Command;

use super::process::{Process, free_port, loopback};

/// The superuser of the cluster and the name of its database.
const NAME: &str = "comptoir";
/// Enough for every pool of `up` and for tests that run side by side.
const CONNECTIONS_MAX: u32 = 300;

/// How long a server may recover after a crash.
const RECOVERY_MAX: Duration = Duration::from_mins(2);
/// SQLSTATE of a server that is starting up.
const CANNOT_CONNECT_NOW: &str = "57P03";

/// Where `initdb` and `postgres` are.
///
/// # Errors
/// When Postgres is not installed; says what to install.
pub fn find() -> anyhow::Result<PathBuf> {
    // Debian keeps the server's programs off the PATH, one folder per major version.
    let mut versions: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .collect();
    versions.sort();
    versions.reverse();
    let initdb = find_program("initdb", &versions)
        .context("Postgres is missing: install it with `apt-get install postgresql`")?;
    Ok(fs::canonicalize(initdb)?
        .parent()
        .context("initdb has no folder")?
        .to_owned())
}

/// Starts the cluster under `folder`, made on first use.
pub(super) async fn start(folder: &Path) -> anyhow::Result<(Process, String)> {
    let programs = find()?;
    let user = unprivileged_user()?;
    let home = cluster_folder(folder, user.as_ref())?;
    let password = password(folder)?;
    let data = home.join("data");
    if !data.join("PG_VERSION").exists() {
        create_cluster(&programs, &home, &data, user.as_ref(), &password).await?;
    }
    let port = free_port()?;
    let mut command = as_user(&programs.join("postgres"), user.as_ref());
    command
        .current_dir(&home)
        .arg("-D")
        .arg(&data)
        .args(["-p", &port.to_string()]);
    for setting in [
        "listen_addresses=127.0.0.1".to_owned(),
        "unix_socket_directories=".to_owned(),
        format!("max_connections={CONNECTIONS_MAX}"),
        "max_wal_size=256MB".to_owned(), // bounds the recovery time after a crash
    ] {
        command.arg("-c").arg(setting);
    }
    // SIGINT is Postgres' fast shutdown.
    let mut process = Process::spawn("Postgres", command, Signal::SIGINT, folder)?;
    process.wait_for_port(loopback(port)).await?;
    let url = format!("postgres://{NAME}:{password}@127.0.0.1:{port}/{NAME}");
    create_database(&url).await?;
    Ok((process, url))
}

/// `None`: we are that user already.
fn unprivileged_user() -> anyhow::Result<Option<User>> {
    if !nix::unistd::Uid::effective().is_root() {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        if let Some(user) = User::from_name(name)? {
            return Ok(Some(user));
        }
    }
    bail!(
        "Postgres refuses to run as root, and there is no user `postgres` or `nobody` to run it as"
    )
}

/// Removes the cluster of a folder, wherever it is.
pub(super) fn remove_cluster(folder: &Path) -> anyhow::Result<()> {
    super::folder::remove(&cluster_path(folder, unprivileged_user()?.as_ref()))
}

/// Under our own folder, unless another user must reach it and cannot.
fn cluster_path(folder: &Path, user: Option<&User>) -> PathBuf {
    let reachable = user.is_none()
        || folder
            .ancestors()
            .all(|it| fs::metadata(it).is_ok_and(|found| found.permissions().mode() & 0o001 != 0));
    if reachable {
        return folder.join("postgres");
    }
    let name = Sha256::of(folder.as_os_str().as_encoded_bytes()).to_string();
    Path::new("/var/lib/comptoir")
        .join(&name[..16])
        .join("postgres")
}

/// Makes the cluster's folder, and gives it to the user who runs it.
fn cluster_folder(folder: &Path, user: Option<&User>) -> anyhow::Result<PathBuf> {
    let home = cluster_path(folder, user);
    fs::create_dir_all(&home).with_context(|| format!("create {}", home.display()))?;
    if let Some(user) = user {
        chown(&home, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
            .with_context(|| format!("give {} to {}", home.display(), user.name))?;
    }
    Ok(home)
}

fn password(folder: &Path) -> anyhow::Result<String> {
    crate::secret::read_or_create(&folder.join("postgres.password"))
}

async fn create_cluster(
    programs: &Path,
    home: &Path,
    data: &Path,
    user: Option<&User>,
    password: &str,
) -> anyhow::Result<()> {
    let unfinished = home.join("unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    let password_file = home.join("password");
    fs::write(&password_file, password)?;
    fs::set_permissions(&password_file, fs::Permissions::from_mode(0o600))?;
    if let Some(user) = user {
        chown(
            &password_file,
            Some(user.uid.as_raw()),
            Some(user.gid.as_raw()),
        )?;
    }
    let output = as_user(&programs.join("initdb"), user)
        .current_dir(home)
        .arg("-D")
        .arg(&unfinished)
        .args([
            "-U",
            NAME,
            "--auth=scram-sha-256",
            "--data-checksums",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
        ])
        .arg("--pwfile")
        .arg(&password_file)
        .output()
        .await
        .context("run initdb")?;
    fs::remove_file(&password_file)?;
    if !output.status.success() {
        bail!(
            "initdb failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    fs::rename(&unfinished, data).context("put the new cluster in place")
}

fn as_user(program: &Path, user: Option<&User>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("LANG", "C.UTF-8");
    if let Some(user) = user {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command
}

/// Makes the database. A server that listens may still be starting up, or recovering after a crash.
async fn create_database(url: &str) -> anyhow::Result<()> {
    let give_up = Instant::now() + RECOVERY_MAX;
    loop {
        match pool::create_database(url).await {
            Err(error) if is_starting(&error) && Instant::now() < give_up => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            outcome => return outcome.context("create the database"),
        }
    }
}

fn is_starting(error: &sqlx::Error) -> bool {
    let code = error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code);
    code.as_deref() == Some(CANNOT_CONNECT_NOW)
}
