//! The command line of what calls of models used.

use std::path::PathBuf;

use clap::Args;

use super::ListArgs;

#[derive(Debug, Args)]
pub struct UsageArgs {
    /// What sums are made for, beside the time.
    #[arg(long, value_delimiter = ',', value_parser = ["key", "model", "version"], default_value = "model")]
    pub group_by: Vec<String>,
    /// How long the time of a sum is.
    #[arg(long, value_parser = ["1m", "1h", "1d"], default_value = "1d")]
    pub window: String,
    /// Calls that were answered then or later, as 2026-11-23T00:00:00Z.
    #[arg(long)]
    pub from: Option<String>,
    /// Calls that were answered before.
    #[arg(long)]
    pub to: Option<String>,
    /// Calls of this model alone.
    #[arg(long)]
    pub model: Option<String>,
    /// Calls with this API key alone.
    #[arg(long)]
    pub key: Option<String>,
    /// Lists what is charged together, with receipts, instead of sums.
    #[arg(long, conflicts_with_all = ["from", "to", "model", "key", "csv"])]
    pub windows: bool,
    /// Writes the calls themselves to a file.
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Those of this usage window: its receipt names the file.
    #[arg(long, value_name = "WINDOW", requires = "csv", conflicts_with_all = ["from", "to", "model", "key"])]
    pub of: Option<String>,
    #[command(flatten)]
    pub page: ListArgs,
}
