//! Progress on a terminal; elsewhere the log says it all.

use std::io::{self, IsTerminal as _, Write};

use comptoir_domain::id::AttemptId;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use crate::engine::EpochMetrics;

const TEMPLATE: &str = "{prefix:.dim} [{bar:30}] {pos}/{len} {elapsed} {msg}";

/// What a person sees; cheap to clone.
#[derive(Debug, Clone)]
pub struct Display {
    bars: Option<MultiProgress>,
}

impl Display {
    /// Bars where standard error is a terminal.
    #[must_use]
    pub fn for_stderr() -> Self {
        Self {
            bars: io::stderr().is_terminal().then(MultiProgress::new),
        }
    }

    /// Nothing to see.
    #[must_use]
    pub const fn hidden() -> Self {
        Self { bars: None }
    }

    /// Logs to standard error, above the bars. `RUST_LOG` says how much.
    pub fn start_log(&self) {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(self.bars.is_some());
        let log = log.with_target(false).with_writer(self.clone());
        if log.try_init().is_err() {
            tracing::debug!("the log was started before");
        }
    }

    /// The bar of an attempt; it goes when it is dropped.
    #[must_use]
    pub fn bar(&self, attempt: AttemptId, kind: &'static str) -> Bar {
        let bar = self.bars.as_ref().map(|bars| {
            let style = ProgressStyle::with_template(TEMPLATE).expect("the template is right");
            bars.add(
                ProgressBar::new(0)
                    .with_style(style)
                    .with_prefix(format!("{attempt} {kind}")),
            )
        });
        Bar(bar)
    }
}

impl MakeWriter<'_> for Display {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl Write for Display {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match &self.bars {
            Some(bars) => bars.suspend(|| io::stderr().write(line)),
            None => io::stderr().write(line),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// The bar of one attempt.
#[derive(Debug)]
pub struct Bar(Option<ProgressBar>);

impl Bar {
    /// So much is done.
    pub fn progress(&self, done: u64, total: u64) {
        if let Some(bar) = &self.0 {
            bar.set_length(total);
            bar.set_position(done);
        }
    }

    /// An epoch has ended.
    pub fn epoch(&self, epoch: &EpochMetrics) {
        if let Some(bar) = &self.0 {
            let accuracy = epoch
                .accuracy
                .map_or_else(String::new, |accuracy| format!(" accuracy {accuracy:.4}"));
            bar.set_message(format!(
                "epoch {} loss {:.4}{accuracy}",
                epoch.epoch, epoch.loss
            ));
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
