//! Subscriptions: each period is a purchase, and the end of one begins the next.

use comptoir_domain::{
    amount::Amount,
    id::{AccountId, ApiKeyId, DatasetId, OfferId, PurchaseId, SubscriptionId},
    purchase::{PurchaseState, SubscriptionEnd, SubscriptionState},
};
use sqlx::{PgConnection, types::BigDecimal};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    PgTransaction, accounts,
    codec::{to_amount, to_enum, to_numeric},
    holds::HoldError,
    limits, offers, payees,
    purchases::{self, EndError, Period, Purchase, TakeError},
};

/// A purchase that renews itself.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// Its identifier.
    pub id: SubscriptionId,
    /// The subscriber.
    pub account: AccountId,
    /// The offer.
    pub offer: OfferId,
    /// The most that a period may cost.
    pub cap: Amount,
    /// The API key that its periods are counted against.
    pub spender: Option<ApiKeyId>,
    /// Where it stands.
    pub state: SubscriptionState,
    /// Why it ends.
    pub ended_because: Option<SubscriptionEnd>,
    /// The newest of its periods, of those that were not given back before they began.
    pub period: PurchaseId,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// When it ended.
    pub ended_at: Option<OffsetDateTime>,
}

/// Why a step of purchases was not done.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// The period could not be charged.
    #[error("end a period")]
    End(#[from] EndError),
    /// The next one could not begin.
    #[error("begin a period")]
    Take(#[from] TakeError),
    /// A statement failed.
    #[error("renew a subscription")]
    Database(#[from] sqlx::Error),
}

/// Makes a subscription.
pub(crate) async fn create(
    tx: &mut PgTransaction<'_>,
    id: SubscriptionId,
    (account, spender): (AccountId, Option<ApiKeyId>),
    (offer, cap): (OfferId, Amount),
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO subscriptions (subscription_id, account_id, offer_id, cap_base, state, created_at, api_key_id) VALUES ($1, $2, $3, $4, 'active', $5, $6)",
        id.0,
        account.0,
        offer.0,
        to_numeric(cap),
        now,
        spender.map(|it| it.0),
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}

/// Ends a subscription; its periods are ended by whoever calls. Again changes nothing.
///
/// # Errors
/// When the statement fails.
pub async fn end(
    tx: &mut PgTransaction<'_>,
    id: SubscriptionId,
    because: SubscriptionEnd,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE subscriptions SET state = 'ended', ended_because = coalesce(ended_because, $2), ended_at = $3
         WHERE subscription_id = $1 AND state <> 'ended'",
        id.0,
        because.as_str(),
        now,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}

/// Lets a subscription of the account end with its period. What was paid for ahead goes back, and so does what its seller has not answered: that
/// subscription ends at once. Again changes nothing. The transaction must see everybody.
///
/// # Errors
/// When the money cannot be moved.
pub async fn cancel(
    tx: &mut PgTransaction<'_>,
    (account, id): (AccountId, SubscriptionId),
    now: OffsetDateTime,
) -> Result<(), EndError> {
    let found = find(tx, account, id).await?.ok_or(EndError::NotFound)?;
    // Periods come before subscriptions, as where they are renewed.
    let period = purchases::lock(tx, found.period).await?;
    let asked = period.filter(|it| it.state == PurchaseState::Requested);
    if let Some(request) = asked {
        return purchases::take_back(tx, &request, now).await;
    }
    purchases::give_back_upcoming(tx, id, "the subscription was cancelled", now).await?;
    let runs = sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM purchases WHERE subscription_id = $1 AND state = 'granted') AS "runs!""#,
        id.0,
    )
    .fetch_one(&mut **tx)
    .await?;
    // Its last period was over, and the one after that is given back: there is nothing left to end with.
    if !runs {
        return Ok(end(tx, id, SubscriptionEnd::Cancelled, now).await?);
    }
    sqlx::query!(
        "UPDATE subscriptions SET state = 'ending', ended_because = 'cancelled' WHERE subscription_id = $1 AND state = 'active'",
        id.0,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Changes the most that a period may cost, from the next one on.
///
/// # Errors
/// When the statement fails.
pub async fn set_cap(
    tx: &mut PgTransaction<'_>,
    id: SubscriptionId,
    cap: Amount,
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE subscriptions SET cap_base = $2 WHERE subscription_id = $1",
        id.0,
        to_numeric(cap),
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}

/// Begins the period after this one, unless it was begun. What cannot be renewed yet is tried again until the period is over: then the subscription
/// ends, and says why.
pub(crate) async fn renew(
    tx: &mut PgTransaction<'_>,
    id: SubscriptionId,
    last: &Purchase,
    now: OffsetDateTime,
) -> Result<(), RenewError> {
    let Some(subscription) = lock(tx, last.account, id).await? else {
        return Ok(());
    };
    if subscription.period != last.id {
        return Ok(());
    }
    let hindered = match subscription.state {
        SubscriptionState::Active => begin_next(tx, &subscription, last, now).await?,
        SubscriptionState::Ending => Some(SubscriptionEnd::Cancelled),
        SubscriptionState::Ended => None,
    };
    let is_over = last.ends_at.is_none_or(|at| at <= now);
    match hindered {
        Some(because) if is_over => end(tx, id, because, now).await?,
        _ if subscription.state == SubscriptionState::Active => note(tx, id, hindered).await?,
        _ => {}
    }
    Ok(())
}

/// Notes why the next period does not begin, which its subscriber is told of once; or that it does.
async fn note(
    tx: &mut PgTransaction<'_>,
    id: SubscriptionId,
    hindered: Option<SubscriptionEnd>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE subscriptions SET hindered_by = $2 WHERE subscription_id = $1 AND hindered_by IS DISTINCT FROM $2",
        id.0,
        hindered.map(SubscriptionEnd::as_str),
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}

/// How a subscription ends whose dataset is not to be had any more; `None`: it is.
async fn off_the_list(
    tx: &mut PgTransaction<'_>,
    dataset: DatasetId,
) -> sqlx::Result<Option<SubscriptionEnd>> {
    let row = sqlx::query!(
        r#"SELECT state = 'listed' AS "is_listed!", blocked_by IS NOT NULL AS "is_blocked!", is_frozen(account_id) AS "is_frozen!"
           FROM datasets WHERE dataset_id = $1"#,
        dataset.0,
    )
    .fetch_one(&mut **tx)
    .await?;
    Ok(match (row.is_blocked, row.is_listed, row.is_frozen) {
        (true, ..) => Some(SubscriptionEnd::TakenDown),
        (false, false, _) => Some(SubscriptionEnd::Withdrawn),
        (false, true, true) => Some(SubscriptionEnd::SellerFrozen),
        (false, true, false) => None,
    })
}

/// Why no next period begins; `None`: it does.
async fn begin_next(
    tx: &mut PgTransaction<'_>,
    subscription: &Subscription,
    last: &Purchase,
    now: OffsetDateTime,
) -> Result<Option<SubscriptionEnd>, RenewError> {
    // Without a gap; and nobody pays for time in which a late step left him without a right.
    let starts_at = last.ends_at.map_or(now, |it| it.max(now));
    let offer = offers::find(tx, subscription.offer, starts_at).await?;
    let Some(offer) = offer.filter(|it| it.closed_at.is_none()) else {
        return Ok(Some(SubscriptionEnd::OfferClosed));
    };
    if let Some(end) = off_the_list(tx, offer.dataset).await? {
        return Ok(Some(end));
    }
    if limits::is_frozen(tx, last.account).await? {
        return Ok(Some(SubscriptionEnd::Frozen));
    }
    let it = (offer.dataset, offer.terms.version, offer.terms.kind);
    let owned = purchases::owned(tx, last.account, it, now).await?;
    if owned.is_some() {
        return Ok(Some(SubscriptionEnd::Owned));
    }
    if offer.price.amount > subscription.cap {
        return Ok(Some(SubscriptionEnd::PriceAboveCap));
    }
    let account = accounts::find(tx, last.account).await?;
    let payees = payees::of(tx, offer.dataset).await?;
    let period = Period {
        account: last.account,
        payer: account.and_then(|it| it.address),
        // A key that is gone since does not end it; its limit does.
        spender: subscription.spender,
        offer: &offer,
        payees: &payees,
        held: offer.price.amount,
        seconds: last.seconds,
        subscription: Some((subscription.id, None)),
        note: None,
        answer_seconds: None,
        starts_at,
    };
    let mut point = sqlx::Acquire::begin(&mut **tx).await?;
    match purchases::begin_period(&mut point, period, now).await {
        Ok(_) => {
            point.commit().await?;
            Ok(None)
        }
        Err(
            TakeError::Hold(HoldError::InsufficientFunds { .. }) | TakeError::NoAddress("buyer"),
        ) => {
            point.rollback().await?;
            Ok(Some(SubscriptionEnd::InsufficientFunds))
        }
        Err(TakeError::AboveSpendLimit(_)) => {
            point.rollback().await?;
            Ok(Some(SubscriptionEnd::SpendLimit))
        }
        // Its seller cannot be paid, so there is nothing on sale.
        Err(TakeError::NoAddress(_)) => {
            point.rollback().await?;
            Ok(Some(SubscriptionEnd::OfferClosed))
        }
        Err(TakeError::Hold(HoldError::Leaving)) => {
            point.rollback().await?;
            Ok(Some(SubscriptionEnd::Leaving))
        }
        Err(error) => Err(error.into()),
    }
}

/// Locks a subscription of the account.
///
/// # Errors
/// When the statement fails, or what is stored is not a subscription.
pub async fn lock(
    tx: &mut PgTransaction<'_>,
    account: AccountId,
    id: SubscriptionId,
) -> sqlx::Result<Option<Subscription>> {
    let locked = sqlx::query_scalar!(
        "SELECT subscription_id FROM subscriptions WHERE subscription_id = $1 AND account_id = $2 FOR NO KEY UPDATE",
        id.0,
        account.0,
    )
    .fetch_optional(&mut **tx)
    .await?;
    match locked {
        Some(id) => Ok(find_all(tx, &[id]).await?.pop()),
        None => Ok(None),
    }
}

/// A subscription of the account.
///
/// # Errors
/// When the statement fails, or what is stored is not a subscription.
pub async fn find(
    conn: &mut PgConnection,
    account: AccountId,
    id: SubscriptionId,
) -> sqlx::Result<Option<Subscription>> {
    let found = find_all(conn, &[id.0]).await?.pop();
    Ok(found.filter(|it| it.account == account))
}

/// The account's subscriptions, newest first, older than `before`.
///
/// # Errors
/// When the statement fails, or what is stored is not a subscription.
pub async fn list(
    conn: &mut PgConnection,
    account: AccountId,
    before: Option<SubscriptionId>,
    limit: i64,
) -> sqlx::Result<Vec<Subscription>> {
    let ids = sqlx::query_scalar!(
        "SELECT subscription_id FROM subscriptions
         WHERE account_id = $1 AND ($2::uuid IS NULL OR subscription_id < $2) ORDER BY subscription_id DESC LIMIT $3",
        account.0,
        before.map(|it| it.0),
        limit,
    )
    .fetch_all(&mut *conn)
    .await?;
    find_all(conn, &ids).await
}

async fn find_all(conn: &mut PgConnection, ids: &[Uuid]) -> sqlx::Result<Vec<Subscription>> {
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT s.subscription_id, s.account_id, s.offer_id, s.cap_base, s.api_key_id, s.state, s.ended_because, s.created_at, s.ended_at,
               p.purchase_id
           FROM subscriptions s
           JOIN LATERAL (SELECT purchase_id FROM purchases p WHERE p.subscription_id = s.subscription_id AND (p.ended_at < p.starts_at) IS NOT TRUE
               ORDER BY starts_at DESC LIMIT 1) p ON true
           WHERE s.subscription_id = ANY ($1) ORDER BY s.subscription_id DESC"#,
        ids,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Subscription::try_from).collect()
}

struct Row {
    subscription_id: Uuid,
    account_id: Uuid,
    offer_id: Uuid,
    cap_base: BigDecimal,
    api_key_id: Option<Uuid>,
    state: String,
    ended_because: Option<String>,
    created_at: OffsetDateTime,
    ended_at: Option<OffsetDateTime>,
    purchase_id: Uuid,
}

impl TryFrom<Row> for Subscription {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        let because = row.ended_because;
        let because = because.map(|it| to_enum("ended_because", &it, SubscriptionEnd::parse));
        Ok(Self {
            id: SubscriptionId(row.subscription_id),
            account: AccountId(row.account_id),
            offer: OfferId(row.offer_id),
            cap: to_amount("cap_base", &row.cap_base)?,
            spender: row.api_key_id.map(ApiKeyId),
            state: to_enum("state", &row.state, SubscriptionState::parse)?,
            ended_because: because.transpose()?,
            period: PurchaseId(row.purchase_id),
            created_at: row.created_at,
            ended_at: row.ended_at,
        })
    }
}
