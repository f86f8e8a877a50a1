//! The command line of models: what they are, their versions and prices.

use std::path::PathBuf;

use alloy::primitives::Address;
use clap::{Args, Subcommand};

use super::{
    ListArgs,
    card::{CardArgs, FindArgs},
};

#[derive(Debug, Subcommand)]
pub enum Model {
    /// Makes a model, which nobody finds yet but you.
    Create {
        /// Names it among your models, for good: a-z, 0-9 and hyphens.
        #[arg(long)]
        name: String,
        #[command(flatten)]
        card: CardArgs,
    },
    /// Publishes the next version: of files, which are uploaded, or of the result of a training job.
    Publish(PublishArgs),
    /// Public models and yours, newest first.
    List {
        /// Yours alone.
        #[arg(long)]
        own: bool,
        #[command(flatten)]
        page: ListArgs,
    },
    /// Searches public models.
    Search(FindArgs),
    /// One model, its versions and prices.
    Show {
        /// Its id.
        id: String,
    },
    /// Changes what a model says of itself.
    Edit {
        /// Its id.
        id: String,
        #[command(flatten)]
        card: CardArgs,
    },
    /// Gives a model a price. One that is dearer counts after seven days.
    Price(PriceArgs),
    /// Calls a model, and pays for it.
    Call(CallArgs),
    /// Has a model write a text, and pays for it: shown as it comes on a terminal.
    Generate(GenerateArgs),
    /// Says who may find a model and call it.
    Visibility {
        /// Its id.
        id: String,
        /// Who.
        #[arg(value_parser = ["private", "unlisted", "public"])]
        visibility: String,
        /// Do you decide who of those who find it calls it? [default: as it is]
        #[arg(long)]
        gated: Option<bool>,
    },
    #[command(flatten)]
    Admission(crate::client::admissions::Admission),
    /// Says that a version is not recommended any more.
    Deprecate {
        /// The model.
        id: String,
        /// The version's id.
        version: String,
        /// Why, and what is instead.
        #[arg(long)]
        message: String,
        /// When calls of it end, such as 2027-01-31T00:00:00Z: in thirty days at the earliest [default: they do not].
        #[arg(long)]
        retires_at: Option<String>,
    },
    /// Takes that back.
    Undeprecate {
        /// The model.
        id: String,
        /// The version's id.
        version: String,
    },
}

#[derive(Debug, Args)]
pub struct PublishArgs {
    /// The model's id.
    pub model: String,
    /// The `.pt2` archive that answers calls.
    #[arg(long, required_unless_present_any = ["job", "manifest"])]
    pub infer: Option<PathBuf>,
    /// The `.pt2` archive that goes on learning.
    #[arg(long, requires = "infer")]
    pub train: Option<PathBuf>,
    /// The `.pt2` archive that writes texts; the manifest says how.
    #[arg(long, requires = "infer", requires = "manifest")]
    pub generate: Option<PathBuf>,
    /// A safetensors file with the weights of both [default: what the archive holds].
    #[arg(long, requires = "infer")]
    pub weights: Option<PathBuf>,
    /// A file with the names of the classes of an output, one in each line.
    #[arg(long, requires_all = ["infer", "labelled"])]
    pub labels: Option<PathBuf>,
    /// The output that these are of.
    #[arg(long, requires = "labels", value_name = "OUTPUT")]
    pub labelled: Option<String>,
    /// A `tokenizer.json`, where the manifest says how texts become inputs.
    #[arg(long, requires = "manifest")]
    pub tokenizer: Option<PathBuf>,
    /// The manifest as JSON, with `text` and `result`. Files that are named here take the place of what it names.
    #[arg(long)]
    pub manifest: Option<PathBuf>,
    /// A training job of yours, instead of files.
    #[arg(long, conflicts_with_all = ["infer", "manifest"])]
    pub job: Option<String>,
    /// What is new in this version.
    #[arg(long, default_value = "")]
    pub notes: String,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("input").required(true)))]
pub struct CallArgs {
    /// The model's id.
    pub model: String,
    /// Inputs by name, such as '{"x": [[0.0, 1.0]]}'; `-`: from standard input.
    #[arg(long, group = "input", value_name = "JSON")]
    pub inputs: Option<String>,
    /// A safetensors file with the inputs.
    #[arg(long, group = "input", value_name = "FILE")]
    pub tensors: Option<PathBuf>,
    /// A text, where the version takes texts; several times: several.
    #[arg(long = "text", group = "input", value_name = "TEXT")]
    pub texts: Vec<String>,
    /// Cuts texts that have more tokens than the version takes [default: they are refused].
    #[arg(long, requires = "texts")]
    pub truncate: bool,
    /// The version [default: the newest that is recommended].
    #[arg(long)]
    pub version: Option<String>,
    /// A safetensors file to write the outputs to [default: they are printed].
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("source").required(true)))]
pub struct GenerateArgs {
    /// The model's id.
    pub model: String,
    /// A text that is gone on from.
    #[arg(long, group = "source", value_name = "TEXT")]
    pub prompt: Option<String>,
    /// What is said to the model, which answers; several times: said and answered by turns.
    #[arg(long = "message", group = "source", value_name = "TEXT")]
    pub messages: Vec<String>,
    /// Tokens that are written at most [default: as many as the version has room for].
    #[arg(long)]
    pub tokens_max: Option<u32>,
    /// 0 takes the likeliest token each time; up to 2 [default: 1].
    #[arg(long)]
    pub temperature: Option<f64>,
    /// Only the likeliest tokens that together have this probability [default: 1].
    #[arg(long)]
    pub top_p: Option<f64>,
    /// Where chance begins [default: somewhere].
    #[arg(long)]
    pub seed: Option<i64>,
    /// A text that ends it; several times: any of them.
    #[arg(long = "stop", value_name = "TEXT")]
    pub stops: Vec<String>,
    /// The version [default: the newest that is recommended].
    #[arg(long)]
    pub version: Option<String>,
}

#[derive(Debug, Args)]
pub struct PriceArgs {
    /// The model's id.
    pub model: String,
    /// Nano base units of a call.
    #[arg(long, default_value = "0")]
    pub call_nano: String,
    /// Nano base units of a row of input.
    #[arg(long, default_value = "0")]
    pub row_nano: String,
    /// Nano base units of a token that is read.
    #[arg(long, default_value = "0")]
    pub input_token_nano: String,
    /// Nano base units of a token that is written.
    #[arg(long, default_value = "0")]
    pub output_token_nano: String,
    /// Nano base units of 10^9 multiply-adds.
    #[arg(long, default_value = "0")]
    pub giga_madds_nano: String,
    /// Calls of an account in a day that cost nothing.
    #[arg(long, default_value_t = 0)]
    pub free_calls_per_day: u32,
    /// What the owner of the worker gets, in millionths.
    #[arg(long, default_value_t = 100_000, requires = "payees")]
    pub worker_ppm: u32,
    /// Who shares the rest, such as 0x5aAe…=3; several times: by these weights [default: you].
    #[arg(long = "payee", value_parser = payee)]
    pub payees: Vec<(Address, u32)>,
}

fn payee(text: &str) -> Result<(Address, u32), String> {
    let (address, weight) = text.split_once('=').unwrap_or((text, "1"));
    let address = address
        .parse()
        .map_err(|_| "expected an address".to_owned())?;
    let weight = weight
        .parse()
        .map_err(|_| "expected a weight after `=`".to_owned())?;
    Ok((address, weight))
}
