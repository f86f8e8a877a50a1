//! Key files, readable by their owner alone: of the embedded default, made on first use, and of the services, rotated.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;
use comptoir_api::auth::keys::Secrets;
use comptoir_domain::{
    audit::{Action, Actor, Event},
    root_keys::RootKeys,
};
use comptoir_http::key_ring::{KeyFile, KeyRing};
use comptoir_store::audit;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::{
    admin,
    client::{Context, wallet::Wallet},
    exit::{Exit, coded},
    secret,
};

/// The chain keys of one deployment. Roles are different keys; the contract's deployment asserts it.
pub struct ChainKeys {
    /// Deploys, then renounces. Holds the token's first supply on a local chain.
    pub deployer: Wallet,
    /// Proposes to the timelock that administers the contract.
    pub admin: Wallet,
    /// Commits batches.
    pub settler: Wallet,
    /// Vetoes batches, pauses.
    pub guardian: Wallet,
    /// Owns fees and dust.
    pub platform: Wallet,
}

impl ChainKeys {
    /// Reads the key files of a folder; makes what is missing.
    ///
    /// # Errors
    /// When a file can be neither read nor written.
    pub fn read_or_create(folder: &Path) -> anyhow::Result<Self> {
        let key = |name: &str| Wallet::read_or_create(&folder.join(format!("{name}.key")));
        create_folder(folder)?;
        Ok(Self {
            deployer: key("deployer")?,
            admin: key("admin")?,
            settler: key("settler")?,
            guardian: key("guardian")?,
            platform: key("platform")?,
        })
    }
}

/// The file with the signing keys.
const SIGNING: &str = "jwt.pem";
/// The file with the root keys of datasets.
const ROOTS: &str = "data-keys";
/// How often a service looks whether keys were rotated.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// What the services sign and hash with.
pub struct ServiceKeys {
    /// Sign access tokens of clients and workers.
    signing: KeyFile,
    /// Peppers API keys and signs cursors.
    pub pepper: [u8; 32],
}

impl ServiceKeys {
    /// Reads `jwt.pem` and `pepper` of a folder; makes what is missing, the next signing key and the root keys of datasets too.
    ///
    /// # Errors
    /// When a file can be neither read nor written, or holds something else.
    pub fn read_or_create(folder: &Path) -> anyhow::Result<Self> {
        create_folder(folder)?;
        let path = folder.join(SIGNING);
        let signing = if path.exists() {
            let mut file = read_signing(folder)?;
            file.prepare().then_some(file)
        } else {
            Some(KeyFile::generate())
        };
        if let Some(signing) = signing {
            secret::replace(&path, &signing.to_text())?;
        }
        secret::read_or_create(&folder.join("pepper"))?;
        let roots = folder.join(ROOTS);
        if !roots.exists() {
            secret::replace(&roots, &RootKeys::generate().to_text())?;
        }
        Self::read(folder)
    }

    /// Reads `jwt.pem` and `pepper` of a folder.
    ///
    /// # Errors
    /// When a file is missing or holds something else.
    pub fn read(folder: &Path) -> anyhow::Result<Self> {
        let mut pepper = [0; 32];
        alloy::hex::decode_to_slice(text_of(&folder.join("pepper"))?.trim(), &mut pepper)
            .context("`pepper` does not hold 64 hexadecimal digits")?;
        Ok(Self {
            signing: read_signing(folder)?,
            pepper,
        })
    }

    /// The signing keys, ready for use.
    ///
    /// # Errors
    /// When one is none.
    pub fn ring(&self) -> anyhow::Result<KeyRing> {
        self.signing.ring().context(SIGNING)
    }

    /// What the API makes its keys from.
    ///
    /// # Errors
    /// When a signing key is none.
    pub fn secrets(&self) -> anyhow::Result<Secrets<'_>> {
        Ok(Secrets {
            ring: self.ring()?,
            pepper: &self.pepper,
        })
    }
}

fn text_of(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

fn read_signing(folder: &Path) -> anyhow::Result<KeyFile> {
    KeyFile::parse(&text_of(&folder.join(SIGNING))?).context(SIGNING)
}

/// The root keys of datasets in a folder.
///
/// # Errors
/// When the file is missing or holds something else.
pub fn root_keys(folder: &Path) -> anyhow::Result<RootKeys> {
    let text = text_of(&folder.join(ROOTS));
    let text =
        text.context("`comptoir admin rotate-data-key` makes a root key where there is none")?;
    parse_roots(&text)
}

fn parse_roots(text: &str) -> anyhow::Result<RootKeys> {
    RootKeys::parse(text).context(ROOTS)
}

fn parse_ring(text: &str) -> anyhow::Result<KeyRing> {
    KeyFile::parse(text)?.ring().context(SIGNING)
}

/// Notices that the keys of a file were rotated.
struct Watch<K> {
    file: PathBuf,
    parse: fn(&str) -> anyhow::Result<K>,
    known: String,
}

impl<K> Watch<K> {
    /// The first look tells what the file holds.
    fn new(file: PathBuf, parse: fn(&str) -> anyhow::Result<K>) -> Self {
        Self {
            file,
            parse,
            known: String::new(),
        }
    }

    /// The keys, where they are others than at the last look. What cannot be read stays unknown, and is looked at again.
    fn look(&mut self) -> anyhow::Result<Option<K>> {
        let text = text_of(&self.file)?;
        if text == self.known {
            return Ok(None);
        }
        let keys = (self.parse)(&text)?;
        self.known = text;
        Ok(Some(keys))
    }
}

/// Hands the signing keys of a folder to a service that runs, whenever they are others, until `stop` is cancelled.
pub fn follow(folder: &Path, stop: CancellationToken, replace: impl Fn(KeyRing) + Send + 'static) {
    watch(Watch::new(folder.join(SIGNING), parse_ring), stop, replace);
}

/// As [`follow`], the root keys of datasets.
pub fn follow_roots(
    folder: &Path,
    stop: CancellationToken,
    replace: impl Fn(RootKeys) + Send + 'static,
) {
    watch(Watch::new(folder.join(ROOTS), parse_roots), stop, replace);
}

fn watch<K: Send + 'static>(
    mut watch: Watch<K>,
    stop: CancellationToken,
    replace: impl Fn(K) + Send + 'static,
) {
    tokio::spawn(async move {
        let mut every = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                _ = every.tick() => {}
                () = stop.cancelled() => break,
            }
            let file = watch.file.display().to_string();
            match watch.look() {
                Ok(None) => {}
                Ok(Some(keys)) => {
                    replace(keys);
                    tracing::info!(file, "the keys are those of the file");
                }
                Err(error) => tracing::error!(
                    file,
                    error = format!("{error:#}"),
                    "keys cannot be read; the known ones stay in use"
                ),
            }
        }
    });
}

/// Where the root keys of datasets are.
#[derive(Debug, Args)]
pub struct RotateDataKeyArgs {
    /// The folder with `data-keys`.
    #[arg(long, env = "COMPTOIR_KEYS")]
    pub keys: PathBuf,
    /// Who rotates, for the audit log.
    #[arg(long, env = "COMPTOIR_OPERATOR", default_value = "operator")]
    pub operator: String,
}

/// Puts a new root key in use. The ones before stay in the file: what they wrapped is wrapped anew by the service, within seconds, and a backup
/// of the database may still need them.
///
/// # Errors
/// When the file or the database cannot be written.
pub async fn rotate_data_key(context: &Context, args: &RotateDataKeyArgs) -> anyhow::Result<()> {
    let mut connection = admin::connect().await?;
    let report = rotate_data_key_in(&mut connection, args, context.now).await?;
    context.output.object(&report, &["current"]);
    Ok(())
}

async fn rotate_data_key_in(
    connection: &mut PgConnection,
    args: &RotateDataKeyArgs,
    now: OffsetDateTime,
) -> anyhow::Result<Value> {
    let file = args.keys.join(ROOTS);
    let keys = if file.exists() {
        root_keys(&args.keys)?.rotated()
    } else {
        RootKeys::generate()
    };
    let current = keys.current().to_owned();
    let mut tx = connection.begin().await?;
    let actor = Actor::Operator(args.operator.clone());
    let event = Event::new(actor, Action::RootKeyRotated, current.clone());
    audit::append(&mut tx, &event, now).await?;
    // Before the commit: what is in use is in the log, or neither happened.
    secret::replace(&file, &keys.to_text())?;
    tx.commit().await?;
    Ok(json!({ "current": current }))
}

/// Which keys are rotated.
#[derive(Debug, Args)]
pub struct RotateArgs {
    /// The folder with `jwt.pem` and `pepper`.
    #[arg(long, env = "COMPTOIR_KEYS")]
    pub keys: PathBuf,
    /// Also within an hour of the last rotation: tokens that were signed before that one end now.
    #[arg(long)]
    pub force: bool,
    /// Who rotates, for the audit log.
    #[arg(long, env = "COMPTOIR_OPERATOR", default_value = "operator")]
    pub operator: String,
}

/// Puts the next signing key in use, and makes a new next one. Services that run notice within seconds. A file that
/// has no next key yet gets one, to be used by a later call.
///
/// # Errors
/// With [`Exit::Refused`] within an hour of the last rotation; when a file or the database cannot be written.
pub async fn rotate(context: &Context, args: &RotateArgs) -> anyhow::Result<()> {
    let mut connection = admin::connect().await?;
    let report = rotate_in(&mut connection, args, context.now).await?;
    context.output.object(&report, &["rotated", "current"]);
    Ok(())
}

async fn rotate_in(
    connection: &mut PgConnection,
    args: &RotateArgs,
    now: OffsetDateTime,
) -> anyhow::Result<Value> {
    let mut file = read_signing(&args.keys)?;
    if let Some(after) = file.rotates_after()
        && now < after
        && !args.force
    {
        let message = format!(
            "the keys were rotated less than an hour ago, and tokens of two keys ago would end early: wait until \
             {after}, or say --force"
        );
        return Err(coded(Exit::Refused, message));
    }
    let prepared = file.prepare();
    if !prepared {
        let rotated = file.rotated(now).context(SIGNING)?;
        file = rotated.context("the file has no next key")?;
    }
    let names = file.names().context(SIGNING)?;
    let mut tx = connection.begin().await?;
    if !prepared {
        let actor = Actor::Operator(args.operator.clone());
        let event = Event::new(actor, Action::SigningKeyRotated, names[0].clone())
            .with("published", names.clone())
            .with("forced", args.force);
        audit::append(&mut tx, &event, now).await?;
    }
    // Before the commit: what is in use is in the log, or neither happened.
    secret::replace(&args.keys.join(SIGNING), &file.to_text())?;
    tx.commit().await?;
    Ok(json!({ "rotated": !prepared, "current": names[0], "published": names }))
}

fn create_folder(folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    fn rotated(folder: &Path) -> KeyFile {
        let file = read_signing(folder).unwrap();
        let rotated = file.rotated(datetime!(2026-11-22 12:00 UTC)).unwrap();
        rotated.unwrap()
    }

    #[test]
    fn a_running_service_notices_a_rotation_once_and_survives_a_broken_file() {
        let folder = tempfile::tempdir().unwrap();
        let keys = ServiceKeys::read_or_create(folder.path()).unwrap();
        let file = folder.path().join(SIGNING);
        let mut watch = Watch::new(file.clone(), parse_ring);
        let (first, known) = (watch.look().unwrap().unwrap(), keys.ring().unwrap());
        assert_eq!(first.signing.public(), known.signing.public());
        assert!(watch.look().unwrap().is_none());

        let next = rotated(folder.path());
        std::fs::write(&file, "half a file").unwrap();
        assert!(watch.look().is_err());
        secret::replace(&file, &next.to_text()).unwrap();
        let ring = watch.look().unwrap().unwrap();
        assert!(ring.others.contains(&known.signing.public()));
        assert!(watch.look().unwrap().is_none());
    }

    #[test]
    fn a_file_of_one_key_gets_its_next_key_at_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let alone = comptoir_http::jwt::SigningKey::generate_pem();
        std::fs::write(folder.path().join(SIGNING), &alone).unwrap();
        let ring = |keys: ServiceKeys| keys.ring().unwrap();
        let first = ring(ServiceKeys::read_or_create(folder.path()).unwrap());
        assert_eq!(first.others.len(), 1);
        let again = ring(ServiceKeys::read_or_create(folder.path()).unwrap());
        assert_eq!(again.others, first.others);
        assert_eq!(again.signing.public(), first.signing.public());
    }

    #[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
    async fn a_new_root_key_is_in_the_log_and_the_older_ones_stay(db: sqlx::PgPool) {
        let folder = tempfile::tempdir().unwrap();
        let args = RotateDataKeyArgs {
            keys: folder.path().to_owned(),
            operator: "somebody".to_owned(),
        };
        let mut connection = db.acquire().await.unwrap();
        let now = datetime!(2026-11-22 12:00 UTC);
        assert!(root_keys(folder.path()).is_err());
        let first = rotate_data_key_in(&mut connection, &args, now)
            .await
            .unwrap();
        let second = rotate_data_key_in(&mut connection, &args, now)
            .await
            .unwrap();
        let text = text_of(&folder.path().join(ROOTS)).unwrap();
        let names: Vec<_> = text.lines().map(|line| line[..16].to_owned()).collect();
        assert_eq!(json!(names), json!([second["current"], first["current"]]));
        let log = audit::list(&mut connection, None, None, 10).await.unwrap();
        assert_eq!(log.len(), 2);
    }

    #[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
    async fn keys_rotate_once_an_hour_and_each_rotation_is_in_the_audit_log(db: sqlx::PgPool) {
        let folder = tempfile::tempdir().unwrap();
        let alone = comptoir_http::jwt::SigningKey::generate_pem();
        std::fs::write(folder.path().join(SIGNING), &alone).unwrap();
        let mut connection = db.acquire().await.unwrap();
        let mut rotate = async |now, force| {
            let args = RotateArgs {
                keys: folder.path().to_owned(),
                force,
                operator: "somebody".to_owned(),
            };
            rotate_in(&mut connection, &args, now).await
        };
        let now = datetime!(2026-11-22 12:00 UTC);
        let prepared = rotate(now, false).await.unwrap();
        assert_eq!(prepared["rotated"], false, "nobody knows the next key yet");
        let first = rotate(now, false).await.unwrap();
        assert_eq!(first["current"], prepared["published"][1]);
        assert_eq!(first["published"][2], prepared["current"]);
        let soon = now + time::Duration::minutes(59);
        let refused = rotate(soon, false).await.unwrap_err();
        assert!(format!("{refused:#}").contains("--force"), "{refused:#}");
        let forced = rotate(soon, true).await.unwrap();
        assert_eq!(forced["current"], first["published"][1]);
        let later = now + time::Duration::hours(2);
        rotate(later, false).await.unwrap();
        let log = audit::list(&mut connection, None, None, 10).await.unwrap();
        let forced: Vec<_> = log
            .iter()
            .rev()
            .map(|entry| &entry.record.detail["forced"])
            .collect();
        assert_eq!(forced, [false, true, false]);
        assert_eq!(log[0].record.actor, "operator:somebody");
    }
}
