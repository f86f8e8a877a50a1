//! What sellers answer to requests for gated offers.

use comptoir_domain::{
    id::{AccountId, PurchaseId},
    purchase::{PurchaseState, SubscriptionEnd},
};
use time::OffsetDateTime;

use super::{EndError, Purchase, TakeError, end, lock, stall, take, write};
use crate::{PgTransaction, accounts, datasets, subscriptions};

/// Why a request is not answered.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The account sells no such thing.
    #[error("no such sale")]
    NotFound,
    /// It was answered before, or too late.
    #[error("the request is {0}")]
    Answered(PurchaseState),
    /// The right could not be given.
    #[error("grant a request")]
    Grant(#[from] TakeError),
    /// The price could not be given back.
    #[error("give back the price of a request")]
    End(#[from] EndError),
    /// A statement failed.
    #[error("answer a request")]
    Database(#[from] sqlx::Error),
}

/// Approves a request: its time begins now, or when what the buyer rented before is over. Who has it for good by now, from elsewhere, gets the price
/// back instead. The transaction must see everybody. Again changes nothing.
///
/// # Errors
/// When it is not approved; the caller rolls back.
pub async fn approve(
    tx: &mut PgTransaction<'_>,
    (seller, id): (AccountId, PurchaseId),
    now: OffsetDateTime,
) -> Result<(), AnswerError> {
    let purchase = requested(tx, seller, id).await?;
    match purchase.state {
        PurchaseState::Granted | PurchaseState::Settled => Ok(()),
        PurchaseState::Requested if purchase.answer_due_at.is_some_and(|due| due > now) => {
            if let Some(block) = datasets::block(tx, purchase.dataset).await? {
                return Err(TakeError::Blocked(block.by).into());
            }
            Ok(grant(tx, &purchase, now).await?)
        }
        state => Err(AnswerError::Answered(state)),
    }
}

async fn grant(
    tx: &mut PgTransaction<'_>,
    request: &Purchase,
    now: OffsetDateTime,
) -> Result<(), TakeError> {
    // As taking does: one at a time for each buyer.
    accounts::lock(tx, request.account).await?;
    stall::require_ready(tx, (request.dataset, request.version)).await?;
    let it = (request.dataset, request.version, request.kind);
    if let Some(owned) = take::owned(tx, request.account, it, now).await? {
        let reason = format!("the buyer has it already, by {owned}");
        let state = PurchaseState::Refunded;
        end::give_back(tx, request, state, Some(&reason), now).await?;
        if let Some(subscription) = request.subscription {
            subscriptions::end(tx, subscription, SubscriptionEnd::Owned, now).await?;
        }
        return Ok(());
    }
    let of = (request.account, request.dataset, request.offer);
    let starts_at = take::begins_at(tx, of, (request.kind, request.seconds), now).await?;
    write::grant(tx, request, starts_at, now).await
}

/// Denies a request: its price goes back. The transaction must see everybody. Again changes nothing.
///
/// # Errors
/// When it is not denied; the caller rolls back.
pub async fn deny(
    tx: &mut PgTransaction<'_>,
    (seller, id): (AccountId, PurchaseId),
    reason: &str,
    now: OffsetDateTime,
) -> Result<(), AnswerError> {
    let purchase = requested(tx, seller, id).await?;
    match purchase.state {
        PurchaseState::Denied => return Ok(()),
        PurchaseState::Requested => {}
        state => return Err(AnswerError::Answered(state)),
    }
    end::give_back(tx, &purchase, PurchaseState::Denied, Some(reason), now).await?;
    if let Some(subscription) = purchase.subscription {
        subscriptions::end(tx, subscription, SubscriptionEnd::Refused, now).await?;
    }
    Ok(())
}

async fn requested(
    tx: &mut PgTransaction<'_>,
    seller: AccountId,
    id: PurchaseId,
) -> Result<Purchase, AnswerError> {
    let found = lock(tx, id).await?;
    found
        .filter(|it| it.seller == seller)
        .ok_or(AnswerError::NotFound)
}
