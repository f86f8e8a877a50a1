//! The market: a seller publishes the digits, a buyer buys and pulls them, and who did not buy is refused. All of it by the command line, as
//! strangers would.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tokio::process::Command;

use super::{cast::Cast, people::Person, stage::Stage, story::available};
use crate::{exit::Exit, output::text};

/// What the buyer deposits: 100 tokens.
const DEPOSIT_BASE: u128 = 100 * 10_u128.pow(18);
/// What the dataset costs, in tokens.
const PRICE: &str = "25";
/// Weights are of a million.
const WHOLE_PPM: u128 = 1_000_000;
/// The files that are sold, of the example's folder.
const FILES: [&str; 2] = ["test.safetensors", "train.safetensors"];

/// A dataset that is on sale.
pub struct Listed {
    dataset: String,
    manifest_root: Value,
    files: PathBuf,
    /// What the platform takes of its price, in millionths.
    platform_ppm: u128,
}

/// A sale that is final.
pub struct Sale {
    /// The receipt of its charge.
    pub receipt: String,
    /// What the seller is due of it, in base units.
    pub to_seller: u128,
}

/// The seller publishes the digits, and offers them.
pub async fn publish(stage: &mut Stage, cast: &Cast) -> anyhow::Result<Listed> {
    stage
        .step("a seller publishes the digits as a dataset, and offers it for 25 tokens", async {
            let files = cast.folder.join("dataset");
            std::fs::create_dir_all(&files)?;
            for name in FILES {
                std::fs::copy(cast.data.join(name), files.join(name))?;
            }
            let seller = Shell::of(cast, &cast.seller);
            let card = ["--name", "digits", "--title", "Handwritten digits", "--licence", "CC-BY-4.0"];
            let made = seller.does(&["create"], &card).await?;
            let dataset = field(&made, "id")?;
            let from = ["publish".as_ref(), files.as_os_str()];
            let version = seller.says(&from, &["--dataset", &dataset]).await?;
            seller.does(&["announce"], &[&dataset]).await?;
            let terms = ["--kind", "buy", "--price", PRICE, "--refund-within", "1h"];
            let offer = seller.does(&["offer", &dataset], &terms).await?;
            let platform_ppm = offer["price"]["platform_ppm"].as_u64();
            let figures = format!(
                "{dataset}: {} files, {} bytes, encrypted at rest under a key of its own\nmanifest root {}",
                version["files"], version["bytes"], text(&version["manifest_root"]),
            );
            let listed = Listed {
                dataset,
                manifest_root: version["manifest_root"].clone(),
                files,
                platform_ppm: platform_ppm.context("an offer without a fee")?.into(),
            };
            Ok((listed, figures))
        })
        .await
}

/// The buyer buys the dataset and pulls it. The price is held until the first byte is served, and charged then.
pub async fn sell(stage: &mut Stage, cast: &Cast, listed: &Listed) -> anyhow::Result<Sale> {
    stage
        .step("a second client buys it and pulls it, every hash checked", async {
            let buyer = Shell::of(cast, &cast.buyer);
            cast.node.deposit_for(&cast.buyer, DEPOSIT_BASE).await?;
            let consent = ["--max-price", PRICE];
            let held = buyer.does(&["buy", &listed.dataset], &consent).await?;
            ensure!(held["state"] == "granted" && held["charged"].is_null(), "nothing was read, and {held}");
            let out = cast.folder.join("bought");
            let pull = ["pull".as_ref(), listed.dataset.as_ref(), "--out".as_ref(), out.as_os_str()];
            let pulled = buyer.says(&pull, &[]).await?;
            ensure!(pulled["manifest_root"] == listed.manifest_root, "another version was pulled");
            same_bytes(&listed.files, &out)?;
            let sold = buyer.does(&["purchase"], &[&field(&held, "id")?]).await?;
            ensure!(sold["state"] == "settled" && sold["final_because"] == "served", "it was read, and {sold}");
            let price: u128 = field(&held["price"], "amount")?.parse()?;
            let spent = DEPOSIT_BASE.checked_sub(available(&cast.buyer).await?);
            ensure!(spent == Some(price), "it costs {price} base units, and {spent:?} were spent");
            let to_seller = price - price * listed.platform_ppm / WHOLE_PPM;
            let figures = format!(
                "{} tokens were held, and charged with the first byte that was served\n{} files pulled: the bytes that the seller \
                 published, under the same root",
                text(&sold["charged"]), pulled["files"],
            );
            let sale = Sale { receipt: field(&sold, "receipt")?, to_seller };
            Ok((sale, figures))
        })
        .await
}

/// Whoever did not buy it is refused the bytes.
pub async fn refuse(stage: &mut Stage, cast: &Cast, listed: &Listed) -> anyhow::Result<()> {
    stage
        .step(
            "a third client, who did not buy it, is refused the bytes",
            async {
                let out = cast.folder.join("refused");
                let pull = [
                    "pull".as_ref(),
                    listed.dataset.as_ref(),
                    "--out".as_ref(),
                    out.as_os_str(),
                ];
                let researcher = Shell::of(cast, &cast.researcher);
                let (code, _, trouble) = researcher.run(&pull, &[]).await?;
                let expected = Exit::InsufficientFunds as i32;
                ensure!(
                    code == expected,
                    "`pull` ends with {code}, not {expected}: {trouble}"
                );
                let left = FILES.iter().any(|name| out.join(name).exists());
                ensure!(!left, "files were written all the same");
                Ok((
                    (),
                    trouble.trim().trim_start_matches("comptoir: ").to_owned(),
                ))
            },
        )
        .await
}

/// The command line in somebody's hands.
struct Shell<'a> {
    cast: &'a Cast,
    person: &'a Person,
}

impl<'a> Shell<'a> {
    const fn of(cast: &'a Cast, person: &'a Person) -> Self {
        Self { cast, person }
    }

    /// A dataset verb that must succeed; what it prints.
    async fn does(&self, verb: &[&str], rest: &[&str]) -> anyhow::Result<Value> {
        let verb: Vec<_> = verb.iter().map(OsStr::new).collect();
        self.says(&verb, rest).await
    }

    /// The same with paths.
    async fn says(&self, verb: &[&OsStr], rest: &[&str]) -> anyhow::Result<Value> {
        let (code, told, trouble) = self.run(verb, rest).await?;
        let verb = verb.first().copied().unwrap_or_default().display();
        ensure!(
            code == 0,
            "`comptoir dataset {verb}` ends with {code}: {trouble}"
        );
        serde_json::from_slice(&told)
            .with_context(|| format!("`comptoir dataset {verb}` prints no JSON"))
    }

    async fn run(&self, verb: &[&OsStr], rest: &[&str]) -> anyhow::Result<(i32, Vec<u8>, String)> {
        let program = std::env::current_exe()?.with_file_name("comptoir");
        let ended = Command::new(program)
            .arg("dataset")
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

fn field(value: &Value, name: &str) -> anyhow::Result<String> {
    let found = value[name].as_str();
    found
        .map(str::to_owned)
        .with_context(|| format!("no `{name}`"))
}

fn same_bytes(published: &Path, pulled: &Path) -> anyhow::Result<()> {
    for name in FILES {
        let is_same = std::fs::read(published.join(name))? == std::fs::read(pulled.join(name))?;
        ensure!(is_same, "{name} is not what was published");
    }
    Ok(())
}
