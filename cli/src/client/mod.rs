//! The client verbs: one module per noun, over the REST API and, for money, the chain.

pub mod account;
pub mod admissions;
pub mod blobs;
pub mod card;
pub mod contributions;
pub mod datasets;
pub mod events;
mod generate;
pub mod http;
pub mod jobs;
pub mod models;
pub mod money;
pub mod profile;
pub mod receipts;
pub mod search;
pub mod security;
pub mod spec;
pub mod takedowns;
pub mod usage;
pub mod wallet;
pub mod webhook_listen;
pub mod webhooks;
pub mod workers;

use time::OffsetDateTime;

use crate::{args::ClientArgs, output::Output};
use http::Api;
use profile::Connection;

/// What every verb needs: where the service is, and how to print.
pub struct Context {
    /// The service and who we are to it.
    pub connection: Connection,
    /// How to print.
    pub output: Output,
    /// When the command was given.
    pub now: OffsetDateTime,
}

impl Context {
    /// From the command line.
    #[must_use]
    pub fn new(args: ClientArgs, json: bool, now: OffsetDateTime) -> Self {
        let connection = Connection {
            url: args.url,
            api_key: args.api_key,
            profile: args.profile.unwrap_or_else(Connection::default_profile),
        };
        Self {
            connection,
            output: Output::choose(json),
            now,
        }
    }

    /// The service, with credentials.
    ///
    /// # Errors
    /// When nobody is signed in.
    pub async fn api(&self) -> anyhow::Result<Api> {
        self.connection.signed_in(self.now).await
    }
}

/// A fresh key for a request that must not happen twice.
#[must_use]
pub fn idempotency_key() -> String {
    uuid::Uuid::now_v7().to_string()
}
