//! The market: a seller publishes the digits, a buyer buys and pulls them, and a third trains on them for a price, and is refused the bytes. All of
//! it by the command line, as strangers would.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::{
    cast::Cast,
    shell::{Shell, field},
    stage::Stage,
    story::{self, available},
    work::{self, Done, complete},
};
use crate::{exit::Exit, output::text};

/// What the buyer deposits, and who computes: 100 tokens each.
const DEPOSIT_BASE: u128 = 100 * 10_u128.pow(18);
/// What the dataset costs, in tokens.
const PRICE: &str = "25";
/// What a job on it costs beside the work, in tokens,
const COMPUTE_PRICE: &str = "4";
/// and the most bytes that may come out of one. The trained net has 26 KB.
const OUTPUT_BYTES_MAX: &str = "65536";
/// Weights are of a million.
const WHOLE_PPM: u128 = 1_000_000;
/// The files that are sold, of the example's folder.
const FILES: [&str; 2] = ["test.safetensors", TRAIN];
/// The one to train on.
const TRAIN: &str = "train.safetensors";

/// A dataset that is on sale.
pub struct Listed {
    dataset: String,
    manifest_root: Value,
    files: PathBuf,
    /// What the platform takes of its price, in millionths.
    platform_ppm: u128,
    /// What a job on it costs beside the work.
    compute: DataPrice,
}

/// The price of an offer to compute.
struct DataPrice {
    base: u128,
    platform_ppm: u128,
}

/// A sale that is final.
pub struct Sale {
    /// The receipt of its charge.
    pub receipt: String,
    /// What the seller is due of it, in base units.
    pub to_seller: u128,
}

/// A job on the dataset that was not handed out.
pub struct Computed {
    /// The job.
    pub done: Done,
    /// What the seller is due of the price of its data, in base units.
    pub to_seller: u128,
}

/// The seller publishes the digits, and offers them: to be bought, and to be computed on by the convolutional net alone.
pub async fn publish(stage: &mut Stage, cast: &Cast) -> anyhow::Result<Listed> {
    stage
        .step("a seller publishes the digits as a dataset, and offers it for 25 tokens, and to be trained on for 4", async {
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
            let (_, platform_ppm) = priced(&offer)?;
            let program = cast.digits.convnet.to_string();
            let terms = ["--kind", "compute_only", "--price", COMPUTE_PRICE, "--program", &program];
            let terms = [&terms[..], &["--output-bytes-max", OUTPUT_BYTES_MAX]].concat();
            let (base, compute_ppm) = priced(&seller.does(&["offer", &dataset], &terms).await?)?;
            let figures = format!(
                "{dataset}: {} files, {} bytes, encrypted at rest under a key of its own\nmanifest root {}\njobs may run the program {program} on \
                 it, and have {OUTPUT_BYTES_MAX} bytes of results",
                version["files"], version["bytes"], text(&version["manifest_root"]),
            );
            let listed = Listed {
                dataset,
                manifest_root: version["manifest_root"].clone(),
                files,
                platform_ppm,
                compute: DataPrice { base, platform_ppm: compute_ppm },
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
            let to_seller = sellers(price, listed.platform_ppm);
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

/// Somebody who bought nothing trains the net on the dataset, for the price of the data beside that of the work.
pub async fn compute(
    stage: &mut Stage,
    cast: &Cast,
    listed: &Listed,
    epochs: (u32, u32),
) -> anyhow::Result<Computed> {
    stage
        .step(
            "a third client, who did not buy it, trains the net on it and gets the weights",
            async {
                let researcher = Shell::of(cast, &cast.researcher);
                cast.node
                    .deposit_for(&cast.researcher, DEPOSIT_BASE)
                    .await?;
                let file = cast.folder.join("compute.json");
                let program = std::path::absolute(&cast.program)?;
                let spec = cast.digits.training_on_dataset(&program, epochs);
                std::fs::write(&file, spec.to_string())?;
                let submit = ["job".as_ref(), "submit".as_ref(), file.as_os_str()];
                let on = ["--dataset", &listed.dataset, "--path", TRAIN];
                let how = ["--tier", "replicated"];
                let job = researcher.told(&submit, &[&on[..], &how].concat()).await?;
                let done = complete(&cast.researcher, &job).await?;
                let out = cast.folder.join("weights");
                let id = field(&done.job, "id")?;
                let result = [
                    OsStr::new("job"),
                    "result".as_ref(),
                    id.as_ref(),
                    "--out".as_ref(),
                    out.as_os_str(),
                ];
                researcher.told(&result, &[]).await?;
                let weights = std::fs::metadata(out.join("weights.safetensors"))?.len();
                let receipt = done.receipt()?;
                let path = format!("/v1/receipts/{receipt}");
                let receipt = cast.researcher.api.get(&path).await?;
                let paid: u128 = field(&receipt["bill"]["data"]["terms"], "price_base")?.parse()?;
                ensure!(paid == listed.compute.base, "the data cost {paid}");
                let charged: u128 = field(&done.job["charged"], "amount")?.parse()?;
                let spent = DEPOSIT_BASE.checked_sub(available(&cast.researcher).await?);
                ensure!(
                    spent == Some(charged) && charged > paid,
                    "charged {charged}, of which {paid} for the data, and {spent:?} were spent"
                );
                let losses = work::losses(&done);
                let (_, loss) = losses.last().context("no metrics were streamed")?;
                let figures = format!(
                    "{COMPUTE_PRICE} tokens for the data beside the work: {}\nloss {loss:.4}; {weights} bytes of weights",
                    story::cost(&done)
                );
                let to_seller = sellers(paid, listed.compute.platform_ppm);
                Ok((Computed { done, to_seller }, figures))
            },
        )
        .await
}

/// Whoever did not buy it is refused the bytes, and having computed on it changes nothing.
pub async fn refuse(stage: &mut Stage, cast: &Cast, listed: &Listed) -> anyhow::Result<()> {
    stage
        .step(
            "the third client is refused the bytes all the same",
            async {
                let out = cast.folder.join("refused");
                let pull = [
                    OsStr::new("dataset"),
                    "pull".as_ref(),
                    listed.dataset.as_ref(),
                    "--out".as_ref(),
                    out.as_os_str(),
                ];
                let researcher = Shell::of(cast, &cast.researcher);
                let (code, _, trouble) = researcher.run(&pull, &[]).await?;
                let expected = Exit::NotEntitled as i32;
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

/// What a seller is due of a price that divides.
const fn sellers(price: u128, platform_ppm: u128) -> u128 {
    price - price * platform_ppm / WHOLE_PPM
}

/// The price of an offer, and what the platform takes of it.
fn priced(offer: &Value) -> anyhow::Result<(u128, u128)> {
    let price = &offer["price"];
    let base = field(&price["price"], "amount")?.parse()?;
    let platform_ppm = price["platform_ppm"].as_u64();
    Ok((base, platform_ppm.context("an offer without a fee")?.into()))
}

fn same_bytes(published: &Path, pulled: &Path) -> anyhow::Result<()> {
    for name in FILES {
        let is_same = std::fs::read(published.join(name))? == std::fs::read(pulled.join(name))?;
        ensure!(is_same, "{name} is not what was published");
    }
    Ok(())
}
