//! Queues that many use, run by Node beside ours: `bench/peers/peers.mjs`.

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use tokio::process::Command;

/// What a peer is asked to do.
#[derive(Debug, Clone, Copy)]
pub enum Peer {
    /// graphile-worker takes and completes queued jobs.
    DrainGraphile,
    /// `BullMQ` does.
    DrainBullmq,
    /// `BullMQ` starts a job that is added while its worker waits.
    LatencyBullmq,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Told {
    Rate { per_second: f64 },
    Latency { p50_ms: f64 },
}

impl Peer {
    const fn name(self) -> &'static str {
        match self {
            Self::DrainGraphile => "drain-graphile",
            Self::DrainBullmq => "drain-bullmq",
            Self::LatencyBullmq => "latency-bullmq",
        }
    }

    /// Jobs in a second, or milliseconds at the median. `url` names the server that it works on: Postgres for graphile-worker, Redis
    /// for `BullMQ`.
    pub async fn measure(self, url: &str, jobs: u32) -> anyhow::Result<f64> {
        let output = Command::new("node")
            .args(["bench/peers/peers.mjs", self.name(), url, &jobs.to_string()])
            .kill_on_drop(true)
            .output()
            .await
            .context("run node, which Debian has in nodejs")?;
        let told = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success(),
            "{}: {}",
            self.name(),
            String::from_utf8_lossy(&output.stderr)
        );
        let line = told.lines().last().context("a line of JSON")?;
        Ok(match serde_json::from_str(line)? {
            Told::Rate { per_second } => per_second,
            Told::Latency { p50_ms } => p50_ms,
        })
    }
}
