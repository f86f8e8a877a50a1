//! `/v1/deposits`: how tokens come in, and those that did.

use alloy_primitives::{Address, B256, Bytes, U256, keccak256};
use axum::extract::State;
use comptoir_domain::{amount::Amount, asset::Asset, id::DepositId};
use comptoir_store::{
    assets, chain,
    deposits::{self, Deposit},
};
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    AppState, Problem,
    auth::{Caller, needs},
    extract::Json,
    money::MoneyBody,
    page::{List, Page, PageQuery},
    quoting::no_asset,
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_deposits))
        .routes(routes!(deposit_instructions))
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum DepositObject {
    Deposit,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum DepositState {
    /// Seen on the chain; it could still leave it.
    Pending,
    /// Final, and part of the balance.
    Credited,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Deposit)]
struct DepositBody {
    #[schema(value_type = String, example = "dep_01h455vb4pex5vsknk084sn02q")]
    id: DepositId,
    object: DepositObject,
    state: DepositState,
    /// Whose it is, as CAIP-10 names it.
    owner: String,
    /// Who sent it.
    sender: String,
    amount: MoneyBody,
    #[schema(value_type = String)]
    transaction_hash: B256,
    block_number: u64,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    credited_at: Option<OffsetDateTime>,
}

impl DepositBody {
    fn new(deposit: &Deposit, asset: &Asset) -> Self {
        Self {
            id: deposit.id,
            object: DepositObject::Deposit,
            state: if deposit.credited_at.is_some() {
                DepositState::Credited
            } else {
                DepositState::Pending
            },
            owner: asset.caip10(deposit.owner),
            sender: asset.caip10(deposit.sender),
            amount: MoneyBody::new(deposit.amount, asset),
            transaction_hash: deposit.tx_hash,
            block_number: deposit.block_number,
            created_at: deposit.seen_at,
            credited_at: deposit.credited_at,
        }
    }
}

/// The deposits to the account's address, newest first; those that are not final yet among them.
#[utoipa::path(
    get, path = "/v1/deposits", tag = "money", security(("session" = []), ("api_key" = ["balance:read"])),
    params(PageQuery),
    responses(
        (status = 200, body = Page<DepositBody>),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn list_deposits(
    State(state): State<AppState>,
    caller: Caller<needs::BalanceRead>,
    list: List,
) -> Result<Page<DepositBody>, Problem> {
    let owner = caller.owner()?;
    let before: Option<DepositId> = list.position(&state, &caller)?;
    let mut connection = caller.read(&state).await?;
    let asset = assets::current(&mut connection).await.map_err(no_asset)?;
    let rows = deposits::list(&mut connection, asset.id, owner, before, list.fetch()).await?;
    Ok(list.page(
        &state,
        &caller,
        rows,
        |row| row.id,
        |row| DepositBody::new(&row, &asset),
    ))
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum InstructionsObject {
    DepositInstructions,
}

/// One call of a contract.
#[derive(Serialize, ToSchema)]
struct ContractCall {
    /// The contract that is called.
    to: String,
    /// What is called.
    signature: &'static str,
    /// What it is called with.
    #[schema(value_type = String)]
    data: Bytes,
}

/// How to deposit.
#[derive(Serialize, ToSchema)]
struct DepositInstructions {
    object: InstructionsObject,
    /// EIP-155 chain id.
    chain_id: u64,
    /// The ERC-20 token.
    token: String,
    /// The settlement contract that it is deposited in.
    contract: String,
    /// The account's bound address: whoever deposits for it credits this account.
    account: String,
    /// The amount in the calls below: one token.
    example: MoneyBody,
    /// First: let the contract take the tokens.
    approve: ContractCall,
    /// Then: deposit them. `depositWithPermit` does both in one call.
    deposit: ContractCall,
    /// How many blocks make a deposit final; `null` where it follows the chain's own finality.
    #[schema(required = true)]
    finality_blocks: Option<u64>,
    /// The newest block that was read, if any was.
    #[schema(required = true)]
    head_block: Option<u64>,
    /// Deposits up to this block are credited.
    #[schema(required = true)]
    final_block: Option<u64>,
}

/// How to deposit: where to, what to call, and when it counts.
#[utoipa::path(
    get, path = "/v1/deposits/instructions", tag = "money", security(("session" = []), ("api_key" = ["balance:read"])),
    responses(
        (status = 200, body = DepositInstructions),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn deposit_instructions(
    State(state): State<AppState>,
    caller: Caller<needs::BalanceRead>,
) -> Result<Json<DepositInstructions>, Problem> {
    let owner = caller.owner()?;
    let mut connection = caller.read(&state).await?;
    let asset = assets::current(&mut connection).await.map_err(no_asset)?;
    let cursor = chain::cursor(&mut connection, asset.id).await?;
    let example = one_token(&asset);
    let amount = U256::from(example.base());
    Ok(Json(DepositInstructions {
        object: InstructionsObject::DepositInstructions,
        chain_id: asset.chain_id,
        token: asset.token.to_string(),
        contract: asset.contract.to_string(),
        account: owner.to_string(),
        example: MoneyBody::new(example, &asset),
        approve: call(
            asset.token,
            "approve(address,uint256)",
            asset.contract,
            amount,
        ),
        deposit: call(asset.contract, "deposit(address,uint256)", owner, amount),
        finality_blocks: cursor.and_then(|cursor| cursor.final_depth),
        head_block: cursor.map(|cursor| cursor.head_number),
        final_block: cursor.map(|cursor| cursor.final_number),
    }))
}

fn one_token(asset: &Asset) -> Amount {
    let base = 10_u128
        .checked_pow(u32::from(asset.decimals))
        .and_then(Amount::from_base);
    base.expect("a token has at most 30 decimals")
}

fn call(to: Address, signature: &'static str, address: Address, amount: U256) -> ContractCall {
    let selector = keccak256(signature);
    let data = [
        &selector[..4],
        address.into_word().as_slice(),
        &amount.to_be_bytes::<32>(),
    ]
    .concat();
    ContractCall {
        to: to.to_string(),
        signature,
        data: data.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_encoded_as_wallets_expect_it() {
        let call = call(
            Address::ZERO,
            "approve(address,uint256)",
            Address::repeat_byte(0x11),
            U256::from(10),
        );
        assert_eq!(
            alloy_primitives::hex::encode(call.data),
            "095ea7b3\
             0000000000000000000000001111111111111111111111111111111111111111\
             000000000000000000000000000000000000000000000000000000000000000a"
        );
    }
}
