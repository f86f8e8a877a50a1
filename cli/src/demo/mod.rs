//! The main job, from deposit to claim, on real input. Each step is checked, not only printed.

pub mod books;
mod calls;
mod cast;
mod market;
pub mod people;
mod shell;
mod stage;
mod story;
pub mod work;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;

use crate::args::DemoArgs;
use cast::Cast;
use stage::Stage;

pub use cast::find_worker;

/// Tells the story in a folder of its own, and leaves nothing running. The story is for people, in a pipe too, unless JSON is asked
/// for: then each step is a line, and the verdict is the last one.
///
/// # Errors
/// When a step fails; the folder is then kept.
pub async fn run(args: DemoArgs, json: bool) -> anyhow::Result<()> {
    let worker = find_worker(args.worker.as_deref())?;
    let folder = tempfile::Builder::new()
        .prefix("comptoir-demo-")
        .tempdir()?;
    crate::embedded::open_to_others(folder.path())?;
    let folder = if args.keep {
        Folder::Kept(folder.keep())
    } else {
        Folder::Temporary(folder)
    };
    log_to(&folder.path().join("services.log"))?;
    let mut stage = Stage::new(json);
    let told = tokio::select! {
        told = tell(&mut stage, folder.path(), &worker, &args.data) => told,
        () = crate::service::until_signal()?.cancelled_owned() => Err(anyhow::anyhow!("interrupted")),
    };
    match told {
        Ok(()) => {
            stage.passed();
            Ok(())
        }
        Err(error) => {
            stage.failed(&error, &folder.keep());
            Err(error)
        }
    }
}

/// The services' log lines go to a file, so that the story stays readable.
fn log_to(file: &Path) -> anyhow::Result<()> {
    let file = std::fs::File::create(file).with_context(|| format!("create {}", file.display()))?;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(file)
        .init();
    Ok(())
}

/// Where the run keeps its files.
enum Folder {
    Temporary(tempfile::TempDir),
    Kept(PathBuf),
}

impl Folder {
    fn path(&self) -> &Path {
        match self {
            Self::Temporary(folder) => folder.path(),
            Self::Kept(folder) => folder,
        }
    }

    fn keep(self) -> PathBuf {
        match self {
            Self::Temporary(folder) => folder.keep(),
            Self::Kept(folder) => folder,
        }
    }
}

async fn tell(stage: &mut Stage, folder: &Path, worker: &Path, data: &Path) -> anyhow::Result<()> {
    let mut cast = Box::pin(Cast::gather(stage, folder, worker, data)).await?;
    let outcome = story::play(stage, &mut cast).await;
    let Cast { node, workers, .. } = cast;
    let stopped = stage
        .step("everything stops", async {
            for worker in workers {
                worker.stop().await?;
            }
            node.stop().await?;
            Ok(((), String::new()))
        })
        .await;
    outcome.and(stopped)
}
