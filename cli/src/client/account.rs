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

/// Signs in with a password or a wallet; with a setup token, by choosing the password of an administrator first.
pub async fn sign_in(context: &Context, args: &LoginArgs) -> anyhow::Result<()> {
    let api = context.connection.anonymous()?;
    let Some(email) = args.email.as_ref().filter(|_| !args.wallet) else {
        let wallet = Wallet::read(&args.key.key_file)?;
        let tokens = tokens_of_wallet(&api, &wallet).await?;
        return keep(context, &api, wallet.address().to_string(), &tokens).await;
    };
    let password = password(args.password_stdin)?;
    if let Some(token) = &args.setup {
        let body = json!({ "token": token, "password": password });
        api.post("/v1/admin/setup", &body).await?;
    }
    sign_in_with(context, &api, email, &password).await
}

async fn sign_in_with(
    context: &Context,
    api: &Api,
    email: &str,
    password: &str,
) -> anyhow::Result<()> {
    let tokens = tokens(api, email, password).await?;
    keep(context, api, email.to_owned(), &tokens).await
}

async fn keep(context: &Context, api: &Api, who: String, tokens: &Value) -> anyhow::Result<()> {
    let profile = context
        .connection
        .keep(api.base(), who, tokens, context.now)?;
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

/// `POST /v1/auth/siwe`: signs what EIP-4361 says, for the service that is asked and for no other.
pub async fn tokens_of_wallet(api: &Api, wallet: &Wallet) -> anyhow::Result<Value> {
    let nonce = api.post("/v1/auth/siwe/nonce", &json!({})).await?;
    let part = |name: &str| {
        let part = nonce[name].as_str();
        part.with_context(|| format!("no {name} with the nonce"))
    };
    let (domain, uri) = (part("domain")?, part("uri")?);
    let asked = api.base().origin().ascii_serialization();
    // Else whoever answers here could have a signature made for another service.
    if uri != asked || asked.split_once("://").map(|(_, it)| it) != Some(domain) {
        bail!("{asked} calls itself {uri}: sign in there (`--url {uri}`), if you trust it");
    }
    let chain = nonce["chain_ids"][0].as_u64();
    let chain = chain.context("the service signs wallets in on no chain yet")?;
    let message = format!(
        "{domain} wants you to sign in with your Ethereum account:\n{address}\n\n{statement}\n\nURI: {uri}\nVersion: 1\n\
         Chain ID: {chain}\nNonce: {nonce}\nIssued At: {issued_at}\nExpiration Time: {expires_at}",
        address = wallet.address(),
        statement = part("statement")?,
        nonce = part("nonce")?,
        issued_at = part("issued_at")?,
        expires_at = part("expires_at")?,
    );
    let signature = wallet.sign_message(&message)?;
    let body = json!({ "message": message, "signature": signature });
    Ok(api.post("/v1/auth/siwe", &body).await?)
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
