//! The worker as a daemon: joins a service, asks it for jobs, runs each in a child and reports what came out; hosts models and
//! answers calls of them.

pub mod answer;
pub mod attempt;
pub mod backoff;
pub mod cache;
pub mod client;
pub mod display;
pub mod doctor;
pub mod folder;
pub mod hosting;
pub mod join;
pub mod measure;
mod ready;
pub mod run;
pub mod streams;
pub mod table;
pub mod transfer;
