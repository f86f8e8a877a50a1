//! The command line of datasets: what they are, publishing them, and pulling them.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{
    ListArgs,
    card::{CardArgs, FindArgs},
    market::{Sell, Take},
};

#[derive(Debug, Subcommand)]
pub enum Dataset {
    /// Makes a dataset, which nobody sees yet but you.
    Create {
        /// Names it among your datasets, for good: a-z, 0-9 and hyphens.
        #[arg(long)]
        name: String,
        #[command(flatten)]
        card: CardArgs,
    },
    /// Publishes a folder as the next version. When it breaks off, the same command goes on.
    Publish(PublishArgs),
    /// Your datasets, newest first.
    List(ListArgs),
    /// Searches what is listed.
    Search(SearchArgs),
    /// One dataset and its versions.
    Show {
        /// Its id.
        id: String,
    },
    /// Changes what a dataset says of itself.
    Edit {
        /// Its id.
        id: String,
        #[command(flatten)]
        card: CardArgs,
    },
    /// Lists a dataset: everybody who signed in sees its card, its manifests and its samples.
    Announce {
        /// Its id.
        id: String,
    },
    /// Takes a dataset off the list.
    Withdraw {
        /// Its id.
        id: String,
    },
    /// Says that a dataset is not recommended any more.
    Deprecate {
        /// Its id.
        id: String,
        /// Why, and what is instead.
        #[arg(long)]
        message: String,
    },
    /// Takes that back.
    Undeprecate {
        /// Its id.
        id: String,
    },
    /// Shreds a version: nobody can read it any more, ever.
    Delete {
        /// The dataset.
        id: String,
        /// The version's id.
        version: String,
    },
    /// Downloads a version that is yours or that you have a right to, and checks every file. When it breaks off, the same command goes on.
    Pull(PullArgs),
    #[command(flatten)]
    Contribution(crate::client::contributions::Contribution),
    #[command(flatten)]
    Takedown(crate::client::takedowns::Takedown),
    #[command(flatten)]
    Sell(Sell),
    #[command(flatten)]
    Take(Take),
}

#[derive(Debug, Args)]
pub struct PublishArgs {
    /// The folder; every file in it is published.
    pub folder: PathBuf,
    /// The dataset's id.
    #[arg(long)]
    pub dataset: String,
    /// What is new in this version.
    #[arg(long, default_value = "")]
    pub notes: String,
    /// A file that everybody may read while the dataset is listed, as it is called in the folder.
    #[arg(long = "sample")]
    pub samples: Vec<String>,
    /// Begin a new version, although an earlier run left one unfinished.
    #[arg(long)]
    pub new: bool,
}

#[derive(Debug, Args)]
pub struct PullArgs {
    /// The dataset's id.
    pub dataset: String,
    /// Which version, by its number [default: the newest].
    #[arg(long)]
    pub number: Option<u32>,
    /// The samples alone.
    #[arg(long)]
    pub samples: bool,
    /// The folder to write to.
    #[arg(long, default_value = ".")]
    pub out: PathBuf,
}

/// Which datasets are searched for.
#[derive(Debug, Args)]
pub struct SearchArgs {
    #[command(flatten)]
    pub find: FindArgs,
    /// What one of its files is.
    #[arg(long)]
    pub format: Option<String>,
    /// It has an open offer of this kind.
    #[arg(long)]
    pub offer: Option<String>,
    /// Base units that such an offer costs at most.
    #[arg(long, requires = "offer")]
    pub max_price: Option<String>,
}
