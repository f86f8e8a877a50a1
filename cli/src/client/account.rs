//! Signing up and in, and binding an address.

use std::path::Path;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::{Context, http::Api, wallet::Wallet};
use crate::args::{Credentials, LoginArgs};

pub(super) const ACCOUNT: &[&str] = &[
    "id",
    "email",
    "roles",
    "address",
    "address_change",
    "auto_release",
    "created_at",
];

/// Creates an account and signs in.
pub async fn sign_up(context: &Context, credentials: &Credentials) -> anyhow::Result<()> {
    let api = context.connection.anonymous()?;
    let password = password(credentials.password_stdin)?;
    create(&api, &credentials.email, &password).await?;
    sign_in_with(context, &api, &credentials.email, &password).await
}

/// Signs in; with a setup token, by choosing the password of an administrator first.
pub async fn sign_in(context: &Context, args: &LoginArgs) -> anyhow::Result<()> {
    let api = context.connection.anonymous()?;
    let password = password(args.credentials.password_stdin)?;
    if let Some(token) = &args.setup {
        let body = json!({ "token": token, "password": password });
        api.post("/v1/admin/setup", &body).await?;
    }
    sign_in_with(context, &api, &args.credentials.email, &password).await
}

async fn sign_in_with(
    context: &Context,
    api: &Api,
    email: &str,
    password: &str,
) -> anyhow::Result<()> {
    let tokens = tokens(api, email, password).await?;
    let profile = context
        .connection
        .keep(api.base(), email.to_owned(), &tokens, context.now)?;
    let account = api
        .with_bearer(profile.access_token)
        .get("/v1/account")
        .await?;
    context.output.object(&account, ACCOUNT);
    Ok(())
}

/// Signs out: the session ends here and at the service.
pub async fn sign_out(context: &Context) -> anyhow::Result<()> {
    let Some(profile) = context.connection.forget()? else {
        bail!("nobody is signed in");
    };
    let api = Api::new(profile.url, Some(profile.access_token))?;
    api.post(
        "/v1/auth/logout",
        &json!({ "refresh_token": profile.refresh_token }),
    )
    .await?;
    Ok(())
}

/// Who is signed in.
pub async fn show(context: &Context) -> anyhow::Result<()> {
    let account = context.api().await?.get("/v1/account").await?;
    context.output.object(&account, ACCOUNT);
    Ok(())
}

/// Binds the address of a key.
pub async fn bind_address(context: &Context, key_file: &Path) -> anyhow::Result<()> {
    let account = bind(&context.api().await?, &Wallet::read(key_file)?).await?;
    context.output.object(&account, ACCOUNT);
    Ok(())
}

/// Makes a key file.
pub fn create_wallet(context: &Context, out: &Path) -> anyhow::Result<()> {
    if out.exists() {
        bail!("{} exists; a key is never overwritten", out.display());
    }
    let wallet = Wallet::random();
    wallet.write(out)?;
    let made = json!({ "address": wallet.address().to_string(), "file": out });
    context.output.object(&made, &["address", "file"]);
    Ok(())
}

/// `POST /v1/accounts`
pub async fn create(api: &Api, email: &str, password: &str) -> anyhow::Result<Value> {
    Ok(api
        .post(
            "/v1/accounts",
            &json!({ "email": email, "password": password }),
        )
        .await?)
}

/// `POST /v1/auth/token`
pub async fn tokens(api: &Api, email: &str, password: &str) -> anyhow::Result<Value> {
    Ok(api
        .post(
            "/v1/auth/token",
            &json!({ "email": email, "password": password }),
        )
        .await?)
}

/// Asks for a challenge, signs it, and gives it back.
pub async fn bind(api: &Api, wallet: &Wallet) -> anyhow::Result<Value> {
    let body = json!({ "address": wallet.address().to_string() });
    let challenge = api.post("/v1/account/address/challenges", &body).await?;
    let message = challenge["message"]
        .as_str()
        .context("no message in the challenge")?;
    let body =
        json!({ "challenge_id": challenge["id"], "signature": wallet.sign_message(message)? });
    Ok(api.post("/v1/account/address", &body).await?)
}

pub(super) fn password(from_stdin: bool) -> anyhow::Result<String> {
    if from_stdin {
        let mut line = String::new();
        std::io::stdin()
            .read_line(&mut line)
            .context("read the password")?;
        return Ok(line.trim_end_matches(['\r', '\n']).to_owned());
    }
    std::env::var("COMPTOIR_PASSWORD")
        .context("give the password by --password-stdin, or in COMPTOIR_PASSWORD")
}
