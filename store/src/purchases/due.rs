//! What time does to purchases: windows and rentals end, requests lapse, subscriptions renew themselves.

use comptoir_domain::{
    id::PurchaseId,
    purchase::{Finality, PurchaseState, SubscriptionEnd},
};
use sqlx::PgConnection;
use time::{Duration, OffsetDateTime};

use super::{
    Purchase,
    end::{end_early, give_back, make_final, refund, settle},
    lock,
};
use crate::{
    PgTransaction, dataset_servings, datasets,
    subscriptions::{self, RenewError},
};

/// When a step that failed is tried again.
const RETRY_AFTER: Duration = Duration::minutes(1);

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

impl Due {
    /// Which purchase.
    #[must_use]
    pub const fn purchase(self) -> PurchaseId {
        let (Self::Over(id)
        | Self::Unanswered(id)
        | Self::Leaving(id)
        | Self::Renewing(id)
        | Self::Served(id)
        | Self::Blocked(id)) = self;
        id
    }
}

/// What is due, the oldest first; what failed a moment ago is left out.
///
/// # Errors
/// When the statement fails.
pub async fn due(
    conn: &mut PgConnection,
    now: OffsetDateTime,
    limit: i64,
) -> sqlx::Result<Vec<Due>> {
    let rows = sqlx::query!(
        r#"(SELECT purchase_id AS "id!", 0 AS "what!" FROM purchases WHERE state = 'granted' AND final_at <= $1 AND (retry_at <= $1) IS NOT FALSE ORDER BY final_at LIMIT $2)
           UNION ALL
           (SELECT purchase_id, 1 FROM purchases WHERE state = 'requested' AND answer_due_at <= $1 AND (retry_at <= $1) IS NOT FALSE ORDER BY answer_due_at LIMIT $2)
           UNION ALL
           (SELECT purchase_id, 2 FROM exits x
               JOIN holds h ON h.asset_id = x.asset_id AND h.owner = x.owner AND h.source_kind = 'purchase' AND h.ended_at IS NULL
               JOIN purchases ON purchase_id = h.source_id
            WHERE x.answered_block_number IS NULL AND (retry_at <= $1) IS NOT FALSE LIMIT $2)
           UNION ALL
           (SELECT p.purchase_id, 4 FROM purchases p JOIN purchase_servings USING (purchase_id)
            WHERE p.state = 'granted' AND p.seconds IS NULL AND (retry_at <= $1) IS NOT FALSE LIMIT $2)
           UNION ALL
           (SELECT p.purchase_id, 5 FROM datasets d JOIN purchases p USING (dataset_id)
            WHERE d.blocked_by IS NOT NULL AND p.state IN ('requested', 'granted') AND (retry_at <= $1) IS NOT FALSE LIMIT $2)
           UNION ALL
           (SELECT p.purchase_id, 3 FROM subscriptions s JOIN purchases p USING (subscription_id)
            WHERE s.state = 'active' AND p.state = 'granted' AND p.final_at > $1 AND (retry_at <= $1) IS NOT FALSE
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

/// Lets a purchase whose step failed wait, so that it does not stand before the others.
///
/// # Errors
/// When the statement fails.
pub async fn put_off(conn: &mut PgConnection, due: Due, now: OffsetDateTime) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE purchases SET retry_at = $2 WHERE purchase_id = $1 AND ended_at IS NULL",
        due.purchase().0,
        now.saturating_add(RETRY_AFTER),
    )
    .execute(conn)
    .await
    .map(drop)
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
    let id = due.purchase();
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
