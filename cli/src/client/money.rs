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
    args::{ChainArgs, DepositArgs, FaucetArgs, ListArgs},
    exit::{Exit, coded},
    output, up,
};

/// What the caller has.
pub async fn balance(context: &Context) -> anyhow::Result<()> {
    let balance = context.api().await?.get("/v1/balance").await?;
    context.output.object(
        &balance,
        &["id", "available", "held", "held_back", "payable", "claimed"],
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
        "account",
        "change",
        "balance_after",
        "source.kind",
        "source.id",
    ];
    context.output.list(&statement, &fields);
    Ok(())
}

/// Gives the caller's wallet ether, and tokens of the local chain's first supply.
pub async fn faucet(context: &Context, args: &FaucetArgs) -> anyhow::Result<()> {
    let api = context.api().await?;
    let rpc = &args.chain.rpc;
    let to = Wallet::read(&args.chain.key.key_file)?.address();
    let deployer = Wallet::read(&args.folder.join("keys/deployer.key"))?;
    let money = &api.get("/v1/balance").await?["available"];
    let base: u128 = parse(&args.tokens, money)?.parse()?;
    let token = instructed(&api, "token").await?;
    up::fund(rpc.as_str(), to).await?;
    let sent = deployer.send_tokens(rpc, token, to, base).await?;
    let report = json!({ "to": to.to_string(), "tokens": args.tokens, "transaction": sent.hash });
    context
        .output
        .object(&report, &["to", "tokens", "transaction"]);
    Ok(())
}

/// Sends tokens to the contract.
pub async fn deposit(context: &Context, args: &DepositArgs) -> anyhow::Result<()> {
    let api = context.api().await?;
    let wallet = Wallet::read(&args.chain.key.key_file)?;
    let base = parse(&args.tokens, &api.get("/v1/balance").await?["available"])?;
    if base == "0" {
        return Err(coded(
            Exit::Refused,
            "a deposit of nothing is refused by the contract",
        ));
    }
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
    let (token, contract) = (
        instructed(api, "token").await?,
        instructed(api, "contract").await?,
    );
    wallet.deposit(rpc, token, contract, base).await
}

/// An address that the deposit instructions name.
async fn instructed(api: &Api, name: &str) -> anyhow::Result<Address> {
    let instructions = api.get("/v1/deposits/instructions").await?;
    instructions[name]
        .as_str()
        .and_then(|it| it.parse().ok())
        .with_context(|| format!("no {name} named"))
}

/// Asks for a release at the next batch.
pub async fn withdraw(context: &Context, tokens: &str) -> anyhow::Result<()> {
    let api = context.api().await?;
    let mut money = api.get("/v1/balance").await?["available"].take();
    money["amount"] = parse(tokens, &money)?.into();
    let body = json!({ "amount": money });
    let withdrawal = api
        .create("/v1/withdrawals", &idempotency_key(), &body)
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
    let claims = api.get("/v1/claims").await?;
    if claims["claimable_now"]["amount"] == "0" {
        return Err(coded(Exit::Refused, "nothing is claimable now"));
    }
    let document = read_claims(&claims)?.context("nothing is claimable now")?;
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
    read_claims(&api.get("/v1/claims").await?)
}

fn read_claims(claims: &Value) -> anyhow::Result<Option<AccountDocument>> {
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
    let decimals = usize::try_from(decimals)?;
    output::base_units(tokens, decimals).map_err(|error| coded(Exit::Refused, error.to_string()))
}
