//! What sellers answer to requests for gated offers.

use comptoir_domain::{
    id::{AccountId, PurchaseId},
    purchase::{PurchaseState, SubscriptionEnd},
};
use time::OffsetDateTime;

use super::{EndError, Purchase, TakeError, end, lock, take};
use crate::{PgTransaction, datasets, subscriptions};

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

/// Approves a request: its time begins now. The transaction must see everybody. Again changes nothing.
///
/// # Errors
/// When it is not approved; the caller rolls back.
pub async fn approve(
    tx: &mut PgTransaction<'_>,
    (seller, id): (AccountId, PurchaseId),
    refund_seconds: u32,
    now: OffsetDateTime,
) -> Result<(), AnswerError> {
    let purchase = requested(tx, seller, id).await?;
    match purchase.state {
        PurchaseState::Granted | PurchaseState::Settled => Ok(()),
        PurchaseState::Requested if purchase.answer_due_at.is_some_and(|due| due > now) => {
            if let Some(block) = datasets::block(tx, purchase.dataset).await? {
                return Err(TakeError::Blocked(block.by).into());
            }
            Ok(take::grant(tx, &purchase, now, refund_seconds, now).await?)
        }
        state => Err(AnswerError::Answered(state)),
    }
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
