//! The command line of cards.

use std::path::PathBuf;

use clap::Args;

use super::ListArgs;

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

/// What is searched for in the catalogue.
#[derive(Debug, Args)]
pub struct FindArgs {
    /// Words of its title, name, tags or description; none: anything.
    pub words: Vec<String>,
    /// A tag that it has; several times: all of them.
    #[arg(long)]
    pub tag: Vec<String>,
    /// An SPDX licence expression that it has, exactly.
    #[arg(long)]
    pub licence: Option<String>,
    /// newest, relevance, or of datasets price.
    #[arg(long)]
    pub sort: Option<String>,
    #[command(flatten)]
    pub page: ListArgs,
}
