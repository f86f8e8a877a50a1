//! What protects an account: a password that was forgotten, and an address that was changed by somebody else.

use anyhow::Context as _;
use serde_json::json;

use super::{Context, account};
use crate::args::{AddressVerb, PasswordVerb};

/// Does what was asked about the password.
///
/// # Errors
/// When the service refuses, or nothing can be read.
pub async fn password(context: &Context, verb: &PasswordVerb) -> anyhow::Result<()> {
    let api = context.connection.anonymous()?;
    match verb {
        PasswordVerb::Forgot { email } => {
            let body = json!({ "email": email });
            api.post("/v1/auth/password/resets", &body).await?;
            let report = json!({ "asked": true, "next": "comptoir password reset, with the token of the mail" });
            context.output.object(&report, &["asked", "next"]);
        }
        PasswordVerb::Reset { password_stdin } => {
            let token = token()?;
            let password = account::password(*password_stdin)?;
            let body = json!({ "token": token, "password": password });
            api.post("/v1/auth/password", &body).await?;
            let report = json!({ "replaced": true, "next": "comptoir login" });
            context.output.object(&report, &["replaced", "next"]);
        }
    }
    Ok(())
}

/// The token of the mail: never an argument, which others on the machine could read.
fn token() -> anyhow::Result<String> {
    std::env::var("COMPTOIR_RESET_TOKEN")
        .context("give the token of the mail in COMPTOIR_RESET_TOKEN")
}

/// Does what was asked about the address.
///
/// # Errors
/// When the service refuses.
pub async fn address(context: &Context, verb: &AddressVerb) -> anyhow::Result<()> {
    match verb {
        AddressVerb::Cancel => {
            let api = context.api().await?;
            let account = api.post("/v1/account/address/cancel", &json!({})).await?;
            context.output.object(&account, account::ACCOUNT);
        }
    }
    Ok(())
}
