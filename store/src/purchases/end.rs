//! How purchases end: a sale becomes final and is charged, or its price goes back.

use comptoir_domain::{
    amount::Amount,
    bill::BillError,
    digest::Sha256,
    id::{PurchaseId, ReceiptId},
    ledger::Earned,
    purchase::{Finality, PurchaseState, SubscriptionEnd},
    sale::{Sale, SaleKind, Time},
};
use serde_json::json;
use sqlx::PgConnection;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{Purchase, lock};
use crate::{
    PgTransaction,
    codec::{to_digest, to_numeric},
    dataset_servings, datasets,
    holdback::proceeds::Proceeds,
    holds::{self, HoldError, HoldSource},
    sales::{self, FinalSale, SaleError, Sold},
    subscriptions::{self, RenewError},
};

/// Why a purchase does not end.
#[derive(Debug, thiserror::Error)]
pub enum EndError {
    /// There is none.
    #[error("no such purchase")]
    NotFound,
    /// It ended before, or nothing was granted.
    #[error("the purchase is {0}")]
    NotOpen(PurchaseState),
    /// Something of it was read already.
    #[error("something of the purchase was read")]
    Served,
    /// Only what lasts for some time ends early, and only what is bought for good is given back.
    #[error("a purchase of this kind does not end so")]
    Kind,
    /// Its charge is out of bounds.
    #[error("bill the purchase")]
    Bill(#[from] BillError),
    /// It could not be charged.
    #[error("charge the purchase")]
    Sale(#[from] SaleError),
    /// Its price could not be given back.
    #[error("give back the price")]
    Hold(#[from] HoldError),
    /// A statement failed.
    #[error("end a purchase")]
    Database(#[from] sqlx::Error),
}

/// Makes the sale of something that is bought for good final, because its first byte is served. One that is final already stays as it
/// is, and so does what lasts for some time. The transaction must see everybody.
///
/// # Errors
/// When it cannot be charged, its price went back already, or its time was ended.
pub async fn make_final(
    tx: &mut PgTransaction<'_>,
    id: PurchaseId,
    now: OffsetDateTime,
) -> Result<(), EndError> {
    let purchase = lock(tx, id).await?.ok_or(EndError::NotFound)?;
    match (purchase.state, purchase.seconds) {
        (PurchaseState::Granted, None) => settle(tx, &purchase, Finality::Served, now, now)
            .await
            .map(drop),
        (PurchaseState::Granted, Some(_)) | (PurchaseState::Settled, None) => Ok(()),
        (state, _) => Err(EndError::NotOpen(state)),
    }
}

/// Gives back the whole price of a purchase of which nothing was served, and takes back the right. The transaction must see everybody.
///
/// # Errors
/// When it is final, or was never granted.
pub async fn refund(
    tx: &mut PgTransaction<'_>,
    purchase: &Purchase,
    reason: &str,
    now: OffsetDateTime,
) -> Result<(), EndError> {
    if purchase.state != PurchaseState::Granted {
        return Err(EndError::NotOpen(purchase.state));
    }
    if dataset_servings::has_begun(tx, purchase.id).await? {
        return Err(EndError::Served);
    }
    give_back(tx, purchase, PurchaseState::Refunded, Some(reason), now).await?;
    end_right(tx, purchase.id, now).await?;
    if let Some(subscription) = purchase.subscription {
        subscriptions::end(tx, subscription, SubscriptionEnd::Refused, now).await?;
    }
    Ok(())
}

/// Ends a rental or the period of a subscription before its time: what was used until `at` is charged, to the second, and the rest goes back. Once
/// something was read, its buyer pays for its least time. One that has not begun costs nothing. The transaction must see everybody.
///
/// # Errors
/// When it does not last for some time, or ended before.
async fn end_early(
    tx: &mut PgTransaction<'_>,
    purchase: &Purchase,
    (because, at): (Finality, OffsetDateTime),
    now: OffsetDateTime,
) -> Result<Option<ReceiptId>, EndError> {
    if purchase.state != PurchaseState::Granted {
        return Err(EndError::NotOpen(purchase.state));
    }
    if purchase.seconds.is_none() {
        return Err(EndError::Kind);
    }
    let receipt = settle(tx, purchase, because, at, now).await?;
    end_right(tx, purchase.id, now).await?;
    Ok(receipt)
}

/// Gives back to its buyer something that was bought for good, of which nothing was read, while its window is open. Again changes nothing. The
/// transaction must see everybody.
///
/// # Errors
/// When it is final, lasts for some time, or was read.
pub async fn refund_to_buyer(
    tx: &mut PgTransaction<'_>,
    purchase: &Purchase,
    now: OffsetDateTime,
) -> Result<(), EndError> {
    if purchase.state == PurchaseState::Refunded {
        return Ok(());
    }
    if purchase.seconds.is_some() {
        return Err(EndError::Kind);
    }
    // Its step may be late.
    if purchase.final_at.is_some_and(|at| at <= now) {
        return Err(EndError::NotOpen(PurchaseState::Settled));
    }
    refund(tx, purchase, "given back by the buyer", now).await
}

/// Ends a rental or a subscription for its buyer: its running period, the one after it that was begun already, and its renewal. The transaction
/// must see everybody.
///
/// # Errors
/// When it does not last for some time, or ended before.
pub async fn end_by_buyer(
    tx: &mut PgTransaction<'_>,
    purchase: &Purchase,
    now: OffsetDateTime,
) -> Result<(), EndError> {
    if purchase.finality == Some(Finality::EndedByBuyer) {
        return Ok(());
    }
    end_early(tx, purchase, (Finality::EndedByBuyer, now), now).await?;
    let Some(subscription) = purchase.subscription else {
        return Ok(());
    };
    let begun = sqlx::query_scalar!(
        "SELECT purchase_id FROM purchases WHERE subscription_id = $1 AND state = 'granted' ORDER BY starts_at",
        subscription.0,
    )
    .fetch_all(&mut **tx)
    .await?;
    for id in begun {
        let period = lock(tx, PurchaseId(id)).await?;
        let period = period.filter(|it| it.state == PurchaseState::Granted);
        if let Some(period) = period {
            end_early(tx, &period, (Finality::EndedByBuyer, now), now).await?;
        }
    }
    Ok(subscriptions::end(tx, subscription, SubscriptionEnd::Cancelled, now).await?)
}

/// Charges a granted purchase, of which time passed until `at`.
pub(super) async fn settle(
    tx: &mut PgTransaction<'_>,
    purchase: &Purchase,
    because: Finality,
    at: OffsetDateTime,
    now: OffsetDateTime,
) -> Result<Option<ReceiptId>, EndError> {
    let block = datasets::block(tx, purchase.dataset).await?;
    // Nobody pays for the time of a block.
    let at = match block {
        Some(block) if purchase.seconds.is_some() => at.min(block.since),
        _ => at,
    };
    let minimum_seconds = minimum_seconds(tx, purchase, because).await?;
    let sale = sale(purchase, minimum_seconds, at);
    let charged = match &sale {
        Some(sale) => sale.gross().ok_or(BillError::TooLarge)?,
        None => Amount::ZERO,
    };
    let receipt = match (sale, purchase.payer, purchase.split) {
        (Some(sale), Some(payer), Some(split)) if !purchase.amount.is_zero() => {
            let it = FinalSale {
                of: Sold::Purchase(purchase.id, sale),
                account: purchase.account,
                payer,
                asset_id: purchase.asset_id,
                split,
                held_back: block.is_some().then_some(Proceeds {
                    of: Earned::Sale(purchase.id),
                    dataset: purchase.dataset,
                    asset_id: purchase.asset_id,
                    payer,
                }),
                sold: sold(tx, purchase).await?,
                right: right(purchase),
                finality: finality(purchase.id, because, at),
            };
            sales::charge(tx, &it, now).await?
        }
        _ => None,
    };
    sqlx::query!(
        "UPDATE purchases SET state = 'settled', charged_base = $2, final_because = $3, ended_at = $4 WHERE purchase_id = $1",
        purchase.id.0,
        to_numeric(charged),
        because.as_str(),
        at,
    )
    .execute(&mut **tx)
    .await?;
    Ok(receipt)
}

/// The seconds that are charged at least: those of its offer, where its buyer ends what was read. A takedown is nobody's choice who paid.
async fn minimum_seconds(
    conn: &mut PgConnection,
    purchase: &Purchase,
    because: Finality,
) -> sqlx::Result<u32> {
    if purchase.minimum_seconds == 0 || !because.is_buyers_choice() {
        return Ok(0);
    }
    let was_read = dataset_servings::has_begun(conn, purchase.id).await?;
    Ok(if was_read {
        purchase.minimum_seconds
    } else {
        0
    })
}

/// What a purchase that ends at `at` costs; `None` of what costs nothing.
fn sale(purchase: &Purchase, minimum_seconds: u32, at: OffsetDateTime) -> Option<Sale> {
    let kind = SaleKind::of(purchase.kind)?;
    let time = purchase.seconds.map(|agreed_seconds| {
        let passed = purchase
            .starts_at
            .map_or(0, |from| (at - from).whole_seconds());
        let used = u32::try_from(passed.max(0)).unwrap_or(u32::MAX);
        Time {
            agreed_seconds,
            used_seconds: used.min(agreed_seconds),
            minimum_seconds,
        }
    });
    Some(Sale {
        kind,
        offer: purchase.offer,
        price_number: purchase.price_number.cast_unsigned(),
        price: purchase.price,
        time,
    })
}

/// The manifest's root of what was sold: the version, or the newest one.
async fn sold(conn: &mut PgConnection, purchase: &Purchase) -> Result<Sha256, EndError> {
    let root = sqlx::query_scalar!(
        r#"SELECT manifest_root AS "root!" FROM dataset_versions
           WHERE dataset_id = $1 AND number IS NOT NULL AND ($2::uuid IS NULL OR version_id = $2) ORDER BY number DESC LIMIT 1"#,
        purchase.dataset.0,
        purchase.version.map(|it| it.0),
    )
    .fetch_one(conn)
    .await?;
    Ok(to_digest("manifest_root", &root)?)
}

/// The digest of the right that was given: `{allows, buyer, dataset, from, purchase, until, version}` in canonical form.
fn right(purchase: &Purchase) -> Sha256 {
    let document = json!({
        "allows": purchase.kind.allows(),
        "buyer": purchase.account,
        "dataset": purchase.dataset,
        "from": purchase.starts_at.map(text),
        "purchase": purchase.id,
        "until": purchase.ends_at.map(text),
        "version": purchase.version,
    });
    Sha256::of_document(&document).expect("texts have a JSON form")
}

/// The digest of what made a sale final: `{at, because, purchase}` in canonical form.
fn finality(purchase: PurchaseId, because: Finality, at: OffsetDateTime) -> Sha256 {
    let document = json!({ "at": text(at), "because": because, "purchase": purchase });
    Sha256::of_document(&document).expect("texts have a JSON form")
}

fn text(at: OffsetDateTime) -> String {
    at.format(&Rfc3339)
        .expect("times of the service are within the calendar")
}

/// Ends a purchase without a charge.
pub(super) async fn give_back(
    tx: &mut PgTransaction<'_>,
    purchase: &Purchase,
    state: PurchaseState,
    reason: Option<&str>,
    now: OffsetDateTime,
) -> Result<(), EndError> {
    if !purchase.amount.is_zero() {
        holds::release(tx, HoldSource::Purchase(purchase.id), now).await?;
    }
    sqlx::query!(
        "UPDATE purchases SET state = $2, reason = $3, ended_at = $4 WHERE purchase_id = $1",
        purchase.id.0,
        state.as_str(),
        reason,
        now,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

async fn end_right(
    tx: &mut PgTransaction<'_>,
    purchase: PurchaseId,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE entitlements SET ended_at = $2 WHERE purchase_id = $1 AND ended_at IS NULL",
        purchase.0,
        now,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}

/// A purchase of which the time has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Its window, or what was paid for, is over.
    Over(PurchaseId),
    /// The seller has not answered in time.
    Unanswered(PurchaseId),
    /// A job read what was bought for good.
    Served(PurchaseId),
    /// Its buyer leaves.
    Leaving(PurchaseId),
    /// It is a period whose next one is to begin when it ends.
    Renewing(PurchaseId),
    /// Its dataset is blocked.
    Blocked(PurchaseId),
}

/// What is due, the oldest first.
///
/// # Errors
/// When the statement fails.
pub async fn due(
    conn: &mut PgConnection,
    now: OffsetDateTime,
    limit: i64,
) -> sqlx::Result<Vec<Due>> {
    let rows = sqlx::query!(
        r#"(SELECT purchase_id AS "id!", 0 AS "what!" FROM purchases WHERE state = 'granted' AND final_at <= $1 ORDER BY final_at LIMIT $2)
           UNION ALL
           (SELECT purchase_id, 1 FROM purchases WHERE state = 'requested' AND answer_due_at <= $1 ORDER BY answer_due_at LIMIT $2)
           UNION ALL
           (SELECT purchase_id, 2 FROM exits x
               JOIN holds h ON h.asset_id = x.asset_id AND h.owner = x.owner AND h.source_kind = 'purchase' AND h.ended_at IS NULL
               JOIN purchases ON purchase_id = h.source_id
            WHERE x.answered_block_number IS NULL LIMIT $2)
           UNION ALL
           (SELECT p.purchase_id, 4 FROM purchases p JOIN purchase_servings USING (purchase_id)
            WHERE p.state = 'granted' AND p.seconds IS NULL LIMIT $2)
           UNION ALL
           (SELECT p.purchase_id, 5 FROM datasets d JOIN purchases p USING (dataset_id)
            WHERE d.blocked_by IS NOT NULL AND p.state IN ('requested', 'granted') LIMIT $2)
           UNION ALL
           (SELECT p.purchase_id, 3 FROM subscriptions s JOIN purchases p USING (subscription_id)
            WHERE s.state = 'active' AND p.state = 'granted' AND p.final_at > $1
                AND p.final_at - least(interval '5 minutes', p.seconds * interval '0.1 second') <= $1
                AND NOT EXISTS (SELECT FROM purchases n WHERE n.subscription_id = s.subscription_id AND n.starts_at > p.starts_at)
            ORDER BY p.final_at LIMIT $2)"#,
        now,
        limit,
    )
    .fetch_all(conn)
    .await?;
    let due = rows.into_iter().map(|row| {
        let id = PurchaseId(row.id);
        match row.what {
            0 => Due::Over(id),
            1 => Due::Unanswered(id),
            2 => Due::Leaving(id),
            4 => Due::Served(id),
            5 => Due::Blocked(id),
            _ => Due::Renewing(id),
        }
    });
    Ok(due.collect())
}

/// Does what is due with one purchase, and renews its subscription. Again changes nothing. The transaction must see everybody.
///
/// # Errors
/// When the money cannot be moved; the caller rolls back, and tries again later.
pub async fn step(
    tx: &mut PgTransaction<'_>,
    due: Due,
    now: OffsetDateTime,
) -> Result<(), RenewError> {
    let (Due::Over(id)
    | Due::Unanswered(id)
    | Due::Leaving(id)
    | Due::Renewing(id)
    | Due::Served(id)
    | Due::Blocked(id)) = due;
    let Some(purchase) = lock(tx, id).await? else {
        return Ok(());
    };
    let block = datasets::block(tx, purchase.dataset).await?;
    // What was over before the block ends as it would have, however late its step is.
    let block = block.filter(|it| purchase.final_at.is_none_or(|at| it.since < at));
    if let Some(block) = block {
        return is_blocked(tx, &purchase, block.since, now).await;
    }
    match (due, purchase.state) {
        (Due::Over(_), PurchaseState::Granted) => is_over(tx, &purchase, now).await,
        (Due::Served(_), PurchaseState::Granted) => Ok(make_final(tx, id, now).await?),
        (Due::Renewing(_), PurchaseState::Granted) => renew(tx, &purchase, now).await,
        (Due::Unanswered(_), PurchaseState::Requested) => {
            give_back(tx, &purchase, PurchaseState::Lapsed, None, now).await?;
            end_subscription(tx, &purchase, SubscriptionEnd::Refused, now).await
        }
        (Due::Leaving(_), PurchaseState::Requested) => {
            let reason = Some("the buyer leaves");
            give_back(tx, &purchase, PurchaseState::Refunded, reason, now).await?;
            end_subscription(tx, &purchase, SubscriptionEnd::Leaving, now).await
        }
        (Due::Leaving(_), PurchaseState::Granted) => {
            if purchase.seconds.is_some() {
                end_early(tx, &purchase, (Finality::BuyerLeft, now), now).await?;
            } else if dataset_servings::has_begun(tx, id).await? {
                make_final(tx, id, now).await?;
            } else {
                refund(tx, &purchase, "the buyer leaves", now).await?;
            }
            end_subscription(tx, &purchase, SubscriptionEnd::Leaving, now).await
        }
        _ => Ok(()),
    }
}

/// What the block of its dataset does to a purchase: time is charged until the block, what was read is charged, and everything else goes back. What
/// is charged is held back.
async fn is_blocked(
    tx: &mut PgTransaction<'_>,
    purchase: &Purchase,
    at: OffsetDateTime,
    now: OffsetDateTime,
) -> Result<(), RenewError> {
    const REASON: &str = "the dataset is blocked";
    match purchase.state {
        PurchaseState::Requested => {
            let state = PurchaseState::Refunded;
            give_back(tx, purchase, state, Some(REASON), now).await?;
        }
        PurchaseState::Granted if purchase.seconds.is_some() => {
            let at = purchase.ends_at.map_or(at, |it| it.min(at));
            end_early(tx, purchase, (Finality::TakenDown, at), now).await?;
        }
        PurchaseState::Granted if dataset_servings::has_begun(tx, purchase.id).await? => {
            make_final(tx, purchase.id, now).await?;
        }
        PurchaseState::Granted => refund(tx, purchase, REASON, now).await?,
        PurchaseState::Settled
        | PurchaseState::Refunded
        | PurchaseState::Denied
        | PurchaseState::Lapsed => return Ok(()),
    }
    end_subscription(tx, purchase, SubscriptionEnd::TakenDown, now).await
}

async fn is_over(
    tx: &mut PgTransaction<'_>,
    purchase: &Purchase,
    now: OffsetDateTime,
) -> Result<(), RenewError> {
    let final_at = purchase.final_at.filter(|at| *at <= now);
    let Some(at) = final_at else {
        return Ok(());
    };
    let because = match purchase.ends_at {
        Some(_) => Finality::TimeOver,
        None => Finality::WindowOver,
    };
    settle(tx, purchase, because, at, now).await?;
    renew(tx, purchase, now).await
}

async fn renew(
    tx: &mut PgTransaction<'_>,
    purchase: &Purchase,
    now: OffsetDateTime,
) -> Result<(), RenewError> {
    match purchase.subscription {
        Some(subscription) => subscriptions::renew(tx, subscription, purchase, now).await,
        None => Ok(()),
    }
}

async fn end_subscription(
    tx: &mut PgTransaction<'_>,
    purchase: &Purchase,
    because: SubscriptionEnd,
    now: OffsetDateTime,
) -> Result<(), RenewError> {
    if let Some(subscription) = purchase.subscription {
        subscriptions::end(tx, subscription, because, now).await?;
    }
    Ok(())
}
