//! The rules of the service: money, ledger entries, job states, splits, Merkle leaves, verdicts.
//!
//! Pure: no database, no network, no clock. Whatever happens outside is an argument.

pub mod amount;
pub mod asset;
pub mod atto;
pub mod audit;
pub mod bill;
pub mod charge;
pub mod contribution;
pub mod credential;
pub mod dataset;
pub mod dataset_input;
pub mod deviation;
pub mod digest;
pub mod envelope;
pub mod fit;
pub mod id;
pub mod ip_list;
pub mod job;
pub mod join_token;
pub mod lease;
pub mod ledger;
pub mod limits;
pub mod name;
pub mod offer;
pub mod policy;
pub mod price;
pub mod program;
pub mod purchase;
pub mod refund;
pub mod release;
pub mod replay;
pub mod root_keys;
pub mod sale;
pub mod scope;
pub mod seal;
pub mod segment;
pub mod settlement;
pub mod setup_token;
pub mod shuffle;
pub mod spend_limit;
pub mod split;
pub mod strict;
pub mod tensors;
pub mod verdict;
pub mod webhook;
