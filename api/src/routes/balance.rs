//! `/v1/balance` and `/v1/statement`: what an owner has, and how it came to be.

use alloy_primitives::Address;
use axum::{extract::State, response::Response};
use comptoir_domain::{amount::Amount, asset::Asset, id::JournalEntryId, ledger::Change};
use comptoir_store::{
    assets, deposits,
    ledger::{self, Balances},
    statement::{self, Position, StatementLine},
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    AppState, Problem,
    auth::{Caller, needs},
    etag::Conditions,
    money::MoneyBody,
    page::{List, Page, PageQuery},
    quoting::no_asset,
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(find_balance))
        .routes(routes!(list_statement))
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum BalanceObject {
    Balance,
}

/// What the account's address has.
#[derive(Serialize, ToSchema)]
#[schema(as = Balance)]
struct BalanceBody {
    /// Whose it is, as CAIP-10 names it.
    #[schema(example = "eip155:1:0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed")]
    id: String,
    object: BalanceObject,
    /// What can be spent or withdrawn.
    available: MoneyBody,
    /// What is locked for jobs that run and withdrawals that wait.
    held: MoneyBody,
    /// What is earned but held back for now.
    held_back: MoneyBody,
    /// Everything that was ever released to be claimed on-chain.
    payable: MoneyBody,
    /// What of `payable` the contract has paid out, as far as the chain was read.
    claimed: MoneyBody,
}

impl BalanceBody {
    fn new(owner: Address, balances: Balances, claimed: Amount, asset: &Asset) -> Self {
        let money = |amount| MoneyBody::new(amount, asset);
        Self {
            id: asset.caip10(owner),
            object: BalanceObject::Balance,
            available: money(balances.available),
            held: money(balances.held),
            held_back: money(balances.held_back),
            payable: money(balances.payable),
            claimed: money(claimed),
        }
    }
}

/// What the account's address has.
#[utoipa::path(
    get, path = "/v1/balance", tag = "money", security(("session" = []), ("api_key" = ["balance:read"])),
    responses(
        (status = 200, body = BalanceBody, headers(("ETag" = String))),
        (status = 304),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn find_balance(
    State(state): State<AppState>,
    caller: Caller<needs::BalanceRead>,
    conditions: Conditions,
) -> Result<Response, Problem> {
    let owner = caller.owner()?;
    let mut connection = caller.read(&state).await?;
    let asset = assets::current(&mut connection).await.map_err(no_asset)?;
    let balances = ledger::balances(&mut connection, owner, asset.id).await?;
    let claimed = deposits::paid_out(&mut connection, asset.id, owner).await?;
    Ok(conditions.answer(BalanceBody::new(owner, balances, claimed, &asset)))
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum PostingObject {
    Posting,
}

/// A signed amount of money.
#[derive(Serialize, ToSchema)]
#[schema(as = MoneyChange)]
struct ChangeBody {
    /// Signed base units of the token, in decimal digits: what came in is positive, what went out negative.
    #[schema(pattern = "^-?[1-9][0-9]*$", example = "-12500000000000000000")]
    amount: String,
    /// The token, as CAIP-19 names it.
    asset: String,
    /// Base units are this power of ten of one token.
    decimals: u8,
}

/// What caused a change.
#[derive(Serialize, ToSchema)]
#[schema(as = PostingSource)]
struct SourceBody {
    /// What kind of thing it is.
    #[schema(pattern = "^(deposit|job|withdrawal|batch|split|entry|refund)$")]
    kind: &'static str,
    /// Which one.
    id: String,
}

/// One change of the money of the account's address.
#[derive(Serialize, ToSchema)]
#[schema(as = Posting)]
struct PostingBody {
    /// The journal entry and the line in it.
    #[schema(example = "je_01h455vb4pex5vsknk084sn02q:0")]
    id: String,
    object: PostingObject,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    /// What happened.
    #[schema(pattern = "^(deposit|hold|hold_release|charge|release|split_close|reversal)$")]
    kind: String,
    /// Which part of the balance changed.
    #[schema(pattern = "^(available|held|held_back|payable)$")]
    account: String,
    change: ChangeBody,
    /// That part of the balance after it.
    balance_after: MoneyBody,
    source: SourceBody,
}

impl PostingBody {
    fn new(line: StatementLine, asset: &Asset) -> Self {
        let source = source(&line.source_kind, line.source_id);
        Self {
            id: format!("{}:{}", line.position.entry, line.position.line),
            object: PostingObject::Posting,
            created_at: line.posted_at,
            kind: line.kind,
            account: line.code,
            change: change(line.change, asset),
            balance_after: MoneyBody::new(line.balance_after, asset),
            source,
        }
    }
}

fn change(change: Change, asset: &Asset) -> ChangeBody {
    ChangeBody {
        amount: change.to_string(),
        asset: asset.caip19(),
        decimals: asset.decimals,
    }
}

/// The thing that a ledger source is about; the ledger tells the steps of one job apart, a reader need not.
fn source(kind: &str, id: String) -> SourceBody {
    let (kind, id) = match kind {
        "job_hold" | "job_hold_release" | "job_charge" => ("job", id),
        "withdrawal_hold" | "withdrawal_hold_release" => ("withdrawal", id),
        "seal" => ("batch", id.split('/').next().unwrap_or_default().to_owned()),
        "split_close" => ("split", id),
        "reversal" => ("entry", id),
        "refund" => ("refund", id),
        _ => ("deposit", id),
    };
    SourceBody { kind, id }
}

/// Where a page of the statement begins.
#[derive(Serialize, Deserialize)]
struct PageKey {
    entry: JournalEntryId,
    line: i16,
}

/// Every change of the money of the account's address, newest first. Each names the balance after it, so that
/// the statement adds up at every line.
#[utoipa::path(
    get, path = "/v1/statement", tag = "money", security(("session" = []), ("api_key" = ["balance:read"])),
    params(PageQuery),
    responses(
        (status = 200, body = Page<PostingBody>),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn list_statement(
    State(state): State<AppState>,
    caller: Caller<needs::BalanceRead>,
    list: List,
) -> Result<Page<PostingBody>, Problem> {
    let owner = caller.owner()?;
    let before: Option<PageKey> = list.position(&state, &caller)?;
    let before = before.map(|PageKey { entry, line }| Position { entry, line });
    let mut connection = caller.read(&state).await?;
    let asset = assets::current(&mut connection).await.map_err(no_asset)?;
    let lines = statement::page(&mut connection, owner, asset.id, before, list.fetch()).await?;
    let key = |line: &StatementLine| {
        let Position { entry, line } = line.position;
        PageKey { entry, line }
    };
    Ok(list.page(&state, &caller, lines, key, |line| {
        PostingBody::new(line, &asset)
    }))
}
