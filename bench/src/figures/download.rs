//! A dataset's file, opened and served by the api, beside nginx and the plain one.

use std::{
    io::Write as _,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, ensure};
use comptoir_domain::{
    dataset::{Format, ManifestFile},
    digest::Sha256,
    envelope::{self, Key},
    id::{
        AccountId, DatasetFileId, DatasetId, DatasetVersionId, EntitlementId, OfferId, PurchaseId,
    },
    root_keys,
};
use comptoir_store::{
    data_keys,
    dataset_files::{self, File},
    dataset_versions,
};
use futures::stream;
use sqlx::Row as _;
use tokio::{process::Child, time::Instant};
use uuid::Uuid;

use crate::{
    Setting,
    figure::Rounds,
    load::{self, Connection, Request},
    place::{Place, now},
};

/// Parts of the file, of 16 MiB: 4 GiB.
const PARTS: u32 = 256;
const PART_BYTES: u32 = 16 << 20;
const FILE_BYTES: u64 = PARTS as u64 * PART_BYTES as u64;
/// What each request asks for.
const RANGE_BYTES: u64 = 8 << 20;
/// Clients that ask.
const CLIENTS: usize = 4;
/// Before the first round.
const WARM_UP: Duration = Duration::from_secs(2);
/// How long nginx may take to listen.
const NGINX_MAX: Duration = Duration::from_secs(5);
const MEGABYTE: f64 = 1e6;

/// The file as nginx has it.
const PLAIN: &str = "plain.bin";

/// The bytes of a part: each has others.
fn part(number: u32) -> Vec<u8> {
    let mut state = u64::from(number) + 1;
    let mut bytes = Vec::with_capacity(PART_BYTES as usize);
    while bytes.len() < PART_BYTES as usize {
        // xorshift64: no compressor of a file system sees through it.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// Publishes the file as a dataset of the last account, sealed as the api seals it, gives the first account the right to it, and writes it
/// plainly beside; its path in the api.
async fn publish(place: &Place, plain: &Path) -> anyhow::Result<String> {
    let accounts = "SELECT account_id FROM accounts ORDER BY account_id";
    let accounts = sqlx::query(accounts).fetch_all(&place.owner).await?;
    let [buyer, seller] = &accounts[..] else {
        anyhow::bail!("two accounts")
    };
    let (buyer, seller): (Uuid, Uuid) = (buyer.get(0), seller.get(0));
    let (dataset, version) = (DatasetId::generate(), DatasetVersionId::generate());
    let key = Key::generate();
    let mut tx = place.owner.begin().await?;
    let tenant = data_keys::of_tenant(&mut tx, &place.roots, AccountId(seller), now()).await?;
    let wrapped = root_keys::wrap_data_key(&tenant, version, &key);
    sqlx::query(
        "INSERT INTO datasets (dataset_id, account_id, name, title, description, licence, provenance, tags, state, created_at, updated_at)
         VALUES ($1, $2, 'bench', 'Bench', '', 'MIT', '', '{}', 'listed', now(), now())",
    )
    .bind(dataset.0)
    .bind(seller)
    .execute(&mut *tx)
    .await?;
    let (place_of, keys) = ((dataset, AccountId(seller)), (version, wrapped));
    dataset_versions::create(&mut tx, place_of, keys, "", now()).await?;
    let entry = ManifestFile {
        path: PLAIN.parse()?,
        // Nobody computes it here.
        sha256: Sha256::of(b"bench"),
        bytes: FILE_BYTES,
        format: Format::Other,
        is_sample: false,
        facts: None,
    };
    let files = dataset_files::announce(&mut tx, version, &[entry], PART_BYTES, now()).await?;
    let file = files.first().context("the one file")?;
    seal(place, &mut tx, &key, file, plain).await?;
    dataset_versions::submit(&mut tx, version, now()).await?;
    sqlx::query(
        "UPDATE dataset_versions SET state = 'ready', number = 1, manifest_root = decode(repeat('00', 32), 'hex'), published_at = now() WHERE version_id = $1",
    )
    .bind(version.0)
    .execute(&mut *tx)
    .await?;
    give_right(&mut tx, buyer, seller, dataset).await?;
    tx.commit().await?;
    Ok(content_path(dataset, version, file.id))
}

fn content_path(dataset: DatasetId, version: DatasetVersionId, file: DatasetFileId) -> String {
    format!("/v1/datasets/{dataset}/versions/{version}/files/{file}/content")
}

/// Writes every part twice: sealed where the api looks for it, and plainly.
async fn seal(
    place: &Place,
    tx: &mut sqlx::PgTransaction<'_>,
    key: &Key,
    file: &File,
    plain: &Path,
) -> anyhow::Result<()> {
    let mut plain = std::fs::File::create(plain)?;
    for number in 0..PARTS {
        let bytes = part(number);
        plain.write_all(&bytes)?;
        let salt = envelope::part_salt();
        let body = stream::iter([Ok::<_, std::io::Error>(bytes.into())]);
        let to = file.part(number, salt);
        let put = place
            .objects
            .put_part(key, &to, u64::from(PART_BYTES), body);
        put.await?;
        let of = (file.version, file.id);
        let stored = dataset_files::store_part(tx, of, number, salt, now()).await?;
        stored.context("a draft")?;
    }
    Ok(())
}

/// A purchase that is long final, and the right that it gave.
async fn give_right(
    tx: &mut sqlx::PgTransaction<'_>,
    buyer: Uuid,
    seller: Uuid,
    dataset: DatasetId,
) -> anyhow::Result<()> {
    sqlx::query(
        "WITH offered AS (
             INSERT INTO offers (offer_id, dataset_id, account_id, asset_id, kind, is_gated, refund_seconds, created_at)
             SELECT $1, $2, $3, asset_id, 'free', false, 0, now() FROM assets RETURNING asset_id
         ), priced AS (
             INSERT INTO offer_prices (offer_id, number, price_base, platform_ppm, effective_at, created_at) VALUES ($1, 1, 0, 0, now(), now())
         ), bought AS (
             INSERT INTO purchases (purchase_id, account_id, asset_id, seller_id, dataset_id, offer_id, price_number, kind, state, amount_base,
                 charged_base, final_because, created_at, starts_at, final_at, ended_at)
             SELECT $4, $6, asset_id, $3, $2, $1, 1, 'free', 'settled', 0, 0, 'at_once', now(), now(), now(), now() FROM offered
         )
         INSERT INTO entitlements (entitlement_id, account_id, dataset_id, purchase_id, allows, starts_at, created_at)
         VALUES ($5, $6, $2, $4, 'download', now() - interval '1 hour', now())",
    )
    .bind(OfferId::generate().0)
    .bind(dataset.0)
    .bind(seller)
    .bind(PurchaseId::generate().0)
    .bind(EntitlementId::generate().0)
    .bind(buyer)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// nginx with a folder of ours, until it is dropped.
struct Nginx {
    child: Child,
    folder: tempfile::TempDir,
    address: SocketAddr,
}

impl Nginx {
    /// Starts it on a folder that holds nothing else.
    async fn start(folder: tempfile::TempDir) -> anyhow::Result<Self> {
        // Its processes are somebody else's where this one is root's.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
        let free = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let root = folder.path().display();
        let config = format!(
            "worker_processes auto;\npid {root}/pid;\nerror_log stderr;\nevents {{ worker_connections 64; }}\nhttp {{\n  access_log off;\n  sendfile on;\n  \
             tcp_nopush on;\n  keepalive_requests 1000000;\n  client_body_temp_path {root}/t1;\n  proxy_temp_path {root}/t2;\n  fastcgi_temp_path {root}/t3;\n  \
             uwsgi_temp_path {root}/t4;\n  scgi_temp_path {root}/t5;\n  server {{ listen {free}; root {root}; }}\n}}\n"
        );
        std::fs::write(configuration(folder.path()), config)?;
        let child = tokio::process::Command::new("nginx")
            .args(["-g", "daemon off;", "-e", "stderr", "-c"])
            .arg(configuration(folder.path()))
            .stdin(Stdio::null())
            .spawn()
            .context("run nginx, which Debian has in nginx-light")?;
        let nginx = Self {
            child,
            folder,
            address: free,
        };
        let give_up = Instant::now() + NGINX_MAX;
        while Connection::open(free).await.is_err() {
            ensure!(Instant::now() < give_up, "nginx does not listen");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(nginx)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Its workers outlive a master that is killed, so that it is asked, and has gone when its file has.
        let stop = std::process::Command::new("nginx")
            .args(["-s", "stop", "-e", "stderr", "-c"])
            .arg(configuration(self.folder.path()))
            .stderr(Stdio::null())
            .status();
        let give_up = Instant::now() + NGINX_MAX;
        while self.folder.path().join("pid").exists() && Instant::now() < give_up {
            std::thread::sleep(Duration::from_millis(20));
        }
        if !stop.is_ok_and(|it| it.success()) {
            eprintln!("nginx {:?} was not stopped", self.child.id());
        }
    }
}

fn configuration(folder: &Path) -> PathBuf {
    folder.join("nginx.conf")
}

/// Requests for one range after the other, from the beginning again at the end.
fn ranges_of(path: String, headers: String) -> Arc<Request> {
    Arc::new(move |number| {
        let start = number * RANGE_BYTES % FILE_BYTES;
        let end = start + RANGE_BYTES - 1;
        load::get(&path, &format!("{headers}range: bytes={start}-{end}\r\n"))
    })
}

/// Megabytes in a second, over all clients.
async fn read(
    address: SocketAddr,
    request: &Arc<Request>,
    lasting: Duration,
) -> anyhow::Result<f64> {
    let (number, began) = (Arc::new(AtomicU64::new(0)), Instant::now());
    let running: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (number, request) = (Arc::clone(&number), Arc::clone(request));
            tokio::spawn(async move {
                let mut connection = Connection::open(address).await?;
                while began.elapsed() < lasting {
                    let turn = number.fetch_add(1, Ordering::Relaxed);
                    let taken = connection.discard(&request(turn)).await?;
                    ensure!(taken == RANGE_BYTES, "a range of {taken} bytes");
                }
                Ok(())
            })
        })
        .collect();
    for client in running {
        client.await??;
    }
    let asked = u32::try_from(number.load(Ordering::Relaxed))?;
    let bytes = f64::from(asked) * f64::from(u32::try_from(RANGE_BYTES)?);
    Ok(bytes / MEGABYTE / began.elapsed().as_secs_f64())
}

/// The most memory that this process ever had resident since it was asked to forget, in KiB.
fn peak() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|it| it.strip_prefix("VmHWM:"));
    let kib = line.and_then(|it| it.split_whitespace().next());
    Ok(kib.context("a peak of memory")?.parse()?)
}

/// Downloads the whole file, and tells what that took of memory: of this process, in which the api runs.
async fn whole(place: &Place, path: &str, headers: &str) -> anyhow::Result<()> {
    // 5: the peak is what is resident now.
    std::fs::write("/proc/self/clear_refs", "5").context("reset the peak of memory")?;
    let (before, began) = (peak()?, Instant::now());
    let mut connection = Connection::open(place.api_address).await?;
    let taken = connection.discard(&load::get(path, headers)).await?;
    ensure!(taken == FILE_BYTES, "a file of {taken} bytes");
    let seconds = began.elapsed().as_secs_f64();
    let (before, after) = (before / 1024, peak()? / 1024);
    println!(
        "{taken} bytes at once in {seconds:.1} s: {after} MiB resident at most, {before} MiB before"
    );
    Ok(())
}

/// A range is what was published.
async fn compare(place: &Place, path: &str, bearer: &str) -> anyhow::Result<()> {
    let start = u64::from(PART_BYTES) + 5;
    let request = reqwest::Client::new()
        .get(format!("{}{path}", place.api))
        .header("authorization", bearer)
        .header(
            "range",
            format!("bytes={start}-{}", start + RANGE_BYTES - 1),
        );
    let found = request.send().await?.error_for_status()?.bytes().await?;
    let expected = &part(1)[5..5 + usize::try_from(RANGE_BYTES)?];
    ensure!(found == expected, "the api serves other bytes");
    Ok(())
}

/// Beside nginx, which opens nothing and asks nobody.
pub async fn ranges(setting: &Setting) -> anyhow::Result<Rounds> {
    let folder = tempfile::tempdir()?;
    let plain = folder.path().join(PLAIN);
    let nginx = Nginx::start(folder).await?;
    let place = Place::make(setting.database()?, 2, 0).await?;
    let path = publish(&place, &plain).await?;
    let bearer = place.bearers.first().context("a buyer")?;
    compare(&place, &path, bearer).await?;
    let headers = format!("authorization: {bearer}\r\n");
    let ours = ranges_of(path.clone(), headers.clone());
    let plain = ranges_of(format!("/{PLAIN}"), String::new());
    read(nginx.address, &plain, WARM_UP).await?;
    read(place.api_address, &ours, WARM_UP).await?;
    let lasting = Duration::from_secs(u64::from(setting.seconds));
    let mut rounds = Rounds::default();
    for _ in 0..setting.rounds {
        let reference = read(nginx.address, &plain, lasting).await?;
        let value = read(place.api_address, &ours, lasting).await?;
        rounds.note(value, reference);
    }
    whole(&place, &path, &headers).await?;
    drop(nginx);
    place.clear().await?;
    Ok(rounds)
}
