//! The command line of cards.

use std::path::PathBuf;

use clap::Args;

/// What a dataset or a model says of itself.
#[derive(Debug, Args)]
pub struct CardArgs {
    /// One line.
    #[arg(long)]
    pub title: Option<String>,
    /// A file with the description, in Markdown.
    #[arg(long)]
    pub description: Option<PathBuf>,
    /// An SPDX licence expression, such as CC-BY-4.0.
    #[arg(long)]
    pub licence: Option<String>,
    /// Where it comes from: the data, or what a model was trained on.
    #[arg(long)]
    pub provenance: Option<String>,
    /// Words to find it by.
    #[arg(long = "tag")]
    pub tags: Vec<String>,
}
