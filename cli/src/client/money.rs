//! Balance, statement, deposits, withdrawals, claims.

use alloy::primitives::Address;
use anyhow::Context as _;
use comptoir_contracts_bindings::Settlement;
use comptoir_domain::settlement::AccountDocument;
use serde_json::{Value, json};
use url::Url;

use super::{
    Context,
    http::Api,
    idempotency_key,
    jobs::list_path,
    wallet::{Sent, Wallet, mined},
};
use crate::{
    args::{ChainArgs, DepositArgs, ListArgs},
    output,
};

/// What the caller has.
pub async fn balance(context: &Context) -> anyhow::Result<()> {
    let balance = context.api().await?.get("/v1/balance").await?;
    context.output.object(
        &balance,
        &[
            "owner",
            "available",
            "held",
            "held_back",
            "payable",
            "claimed",
        ],
    );
    Ok(())
}

/// Movements, newest first.
pub async fn statement(context: &Context, page: &ListArgs) -> anyhow::Result<()> {
    let statement = context
        .api()
        .await?
        .get(&list_path("/v1/statement", page))
        .await?;
    let fields = [
        "created_at",
        "kind",
        "code",
        "amount",
        "balance_after",
        "source_id",
    ];
    context.output.list(&statement, &fields);
    Ok(())
}

/// Sends tokens to the contract.
pub async fn deposit(context: &Context, args: &DepositArgs) -> anyhow::Result<()> {
    let api = context.api().await?;
    let wallet = Wallet::read(&args.chain.key.key_file)?;
    let base = parse(&args.tokens, &api.get("/v1/balance").await?["available"])?;
    let sent = send_deposit(&api, &wallet, &args.chain.rpc, base.parse()?).await?;
    let report = json!({ "transaction": sent.hash, "gas": sent.gas, "amount": base });
    context
        .output
        .object(&report, &["transaction", "gas", "amount"]);
    Ok(())
}

/// Deposits as the service's instructions say.
///
/// # Errors
/// When the service names no contract, or the chain refuses.
pub async fn send_deposit(
    api: &Api,
    wallet: &Wallet,
    rpc: &Url,
    base: u128,
) -> anyhow::Result<Sent> {
    let instructions = api.get("/v1/deposits/instructions").await?;
    let address = |name: &str| -> anyhow::Result<Address> {
        instructions[name]
            .as_str()
            .and_then(|it| it.parse().ok())
            .with_context(|| format!("no {name} named"))
    };
    wallet
        .deposit(rpc, address("token")?, address("contract")?, base)
        .await
}

/// Asks for a release at the next batch.
pub async fn withdraw(context: &Context, tokens: &str) -> anyhow::Result<()> {
    let api = context.api().await?;
    let amount = parse(tokens, &api.get("/v1/balance").await?["available"])?;
    let withdrawal = api
        .create(
            "/v1/withdrawals",
            &idempotency_key(),
            &json!({ "amount": amount }),
        )
        .await?;
    context
        .output
        .object(&withdrawal, &["id", "amount", "state", "created_at"]);
    Ok(())
}

/// Takes what is released out of the contract.
pub async fn claim(context: &Context, args: &ChainArgs) -> anyhow::Result<()> {
    let api = context.api().await?;
    let wallet = Wallet::read(&args.key.key_file)?;
    let document = claim_document(&api)
        .await?
        .context("nothing is claimable yet")?;
    let sent = send_claim(&document, &wallet, &args.rpc).await?;
    let report = json!({ "transaction": sent.hash, "gas": sent.gas, "batch": document.header.id,
        "cumulative": document.account.payable.to_string() });
    context
        .output
        .object(&report, &["transaction", "gas", "batch", "cumulative"]);
    Ok(())
}

/// The caller's leaf in the latest active batch, when it has one.
///
/// # Errors
/// When the service refuses, or answers with something else.
pub async fn claim_document(api: &Api) -> anyhow::Result<Option<AccountDocument>> {
    let claims = api.get("/v1/claims").await?;
    match &claims["document"] {
        Value::Null => Ok(None),
        document => serde_json::from_value(document.clone())
            .context("not an account leaf")
            .map(Some),
    }
}

/// Claims a leaf. Anyone may send it; the contract pays the account alone.
///
/// # Errors
/// When the chain refuses.
pub async fn send_claim(
    document: &AccountDocument,
    wallet: &Wallet,
    rpc: &Url,
) -> anyhow::Result<Sent> {
    let leaf = Settlement::Account {
        account: document.account.account,
        payable_: document.account.payable,
        available: document.account.available,
        depositsSeen: document.account.deposits_seen,
    };
    let contract = Settlement::new(document.contract, wallet.connect(rpc));
    let claim = contract.claim(document.header.id, leaf, document.proof.clone());
    mined(claim.send().await.context("claim")?).await
}

/// Tokens in the decimals of a money body, as base units.
///
/// # Errors
/// When the text is no number of tokens.
pub fn parse(tokens: &str, money: &Value) -> anyhow::Result<String> {
    let decimals = money["decimals"].as_u64().context("no decimals named")?;
    Ok(output::base_units(tokens, usize::try_from(decimals)?)?)
}
