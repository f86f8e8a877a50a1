//! `/v1/claims`: how far the money of the caller's address is on its way to its wallet.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use alloy_primitives::Address;
use axum::extract::State;
use comptoir_domain::{
    amount::Amount,
    digest::Sha256,
    settlement::{
        AccountDocument,
        file::{self, Opening, Sealed},
    },
};
use comptoir_store::{
    assets,
    batches::{self, Batch},
    deposits, ledger,
    objects::GetError,
    releases,
};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    AppState, Problem,
    auth::{Caller, needs},
    extract::Json,
    money::MoneyBody,
    quoting::no_asset,
};

/// Leaf files that are kept read.
const CACHED: usize = 4;
/// Largest leaf file that is read here; of a larger one, whoever claims takes the proof from the published file.
const LEAF_FILE_MAX: u64 = 256 << 20;

/// A leaf file is named by the digest of its bytes, so what was made of it is good for ever.
static READ: Mutex<VecDeque<(Sha256, Leaves)>> = Mutex::new(VecDeque::new());

type Leaves = Arc<(Opening, Sealed)>;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(find_claims))
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ClaimsObject {
    Claims,
}

/// How far the money of an address is on its way to its wallet. Each sum but `queued` and `claimable_now` counts all
/// that ever was, and contains the next.
#[derive(Serialize, ToSchema)]
struct Claims {
    object: ClaimsObject,
    /// Whose, as CAIP-10 names it.
    account: String,
    /// Waits for the next batches.
    queued: MoneyBody,
    /// Released by the ledger.
    released: MoneyBody,
    /// Released in the newest sealed batch.
    batched: MoneyBody,
    /// Released in the newest batch that the chain holds for good.
    anchored: MoneyBody,
    /// Released in the newest batch whose window has passed.
    claimable: MoneyBody,
    /// Paid out by the contract.
    claimed: MoneyBody,
    /// What `claim` with the document would pay now.
    claimable_now: MoneyBody,
    /// Proves the address's leaf to the contract; `null` while no batch with the address is claimable.
    #[schema(required = true)]
    document: Option<AccountDocument>,
}

/// How far the account's money is on its way to its wallet, with the proof that the contract asks for.
#[utoipa::path(
    get, path = "/v1/claims", tag = "settlement", security(("session" = []), ("api_key" = ["balance:read"])),
    responses(
        (status = 200, body = Claims),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn find_claims(
    State(state): State<AppState>,
    caller: Caller<needs::BalanceRead>,
) -> Result<Json<Claims>, Problem> {
    let owner = caller.owner()?;
    let mut connection = caller.read(&state).await?;
    let asset = assets::current(&mut connection).await.map_err(no_asset)?;
    let queued = releases::queued_of(&mut connection, asset.id, owner).await?;
    let released = ledger::balances(&mut connection, owner, asset.id)
        .await?
        .payable;
    let claimed = deposits::paid_out(&mut connection, asset.id, owner).await?;
    let newest = batches::standing(&mut connection, asset.id).await?;
    let anchored = batches::anchored(&mut connection, asset.id).await?;
    let active = batches::active_for_claims(&mut connection, asset.id).await?;
    // Nothing is read of the object store while a connection waits.
    drop(connection);
    let newest = document(&state, newest.as_ref(), owner).await?;
    let anchored = document(&state, anchored.as_ref(), owner).await?;
    let document = document(&state, active.as_ref(), owner).await?;
    let payable = |document: &Option<AccountDocument>| {
        let base = document
            .as_ref()
            .map_or(0, |document| document.account.payable);
        Amount::from_base(base).unwrap_or(Amount::MAX)
    };
    let money = |amount| MoneyBody::new(amount, &asset);
    let claimable = payable(&document);
    Ok(Json(Claims {
        object: ClaimsObject::Claims,
        account: asset.caip10(owner),
        queued: money(queued),
        released: money(released),
        batched: money(payable(&newest)),
        anchored: money(payable(&anchored)),
        claimable: money(claimable),
        claimed: money(claimed),
        claimable_now: money(claimable.checked_sub(claimed).unwrap_or_default()),
        document,
    }))
}

async fn document(
    state: &AppState,
    batch: Option<&Batch>,
    owner: Address,
) -> Result<Option<AccountDocument>, Problem> {
    let Some(batch) = batch else { return Ok(None) };
    let leaves = leaves(state, batch.data_hash()).await?;
    Ok(leaves.1.account_document(&leaves.0, owner))
}

async fn leaves(state: &AppState, name: Sha256) -> Result<Leaves, Problem> {
    let known = {
        let read = READ.lock().unwrap_or_else(PoisonError::into_inner);
        read.iter()
            .find(|(sha256, _)| *sha256 == name)
            .map(|(_, leaves)| Arc::clone(leaves))
    };
    if let Some(leaves) = known {
        return Ok(leaves);
    }
    let bytes = match state.objects.get_all(name, LEAF_FILE_MAX).await {
        Err(GetError::TooLarge { .. }) => {
            return Err(Problem::unavailable(
                "The batch is too large for proofs from here; take its leaf file",
            ));
        }
        bytes => bytes.map_err(|error| Problem::internal(&error))?,
    };
    let leaves = tokio::task::spawn_blocking(move || file::read(&bytes)).await;
    let leaves = leaves
        .map_err(|error| Problem::internal(&error))?
        .map_err(|error| Problem::internal(&error))?;
    let leaves = Arc::new(leaves);
    let mut read = READ.lock().unwrap_or_else(PoisonError::into_inner);
    read.push_front((name, Arc::clone(&leaves)));
    read.truncate(CACHED);
    Ok(leaves)
}
