//! Below which available balance an account wants to be told.

use comptoir_domain::{amount::Amount, id::AccountId};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::codec::{to_amount, to_numeric};

/// Below how much of this asset the account wants to be told.
pub async fn find(
    conn: &mut PgConnection,
    account: AccountId,
    asset: i32,
) -> sqlx::Result<Option<Amount>> {
    let stored = sqlx::query_scalar!(
        "SELECT threshold_base FROM balance_alerts WHERE account_id = $1 AND asset_id = $2",
        account.0,
        asset,
    )
    .fetch_optional(conn)
    .await?;
    stored
        .map(|it| to_amount("threshold_base", &it))
        .transpose()
}

/// Says below how much; `None`: not at all.
pub async fn set(
    conn: &mut PgConnection,
    account: AccountId,
    asset: i32,
    threshold: Option<Amount>,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    let Some(threshold) = threshold else {
        return sqlx::query!(
            "DELETE FROM balance_alerts WHERE account_id = $1",
            account.0
        )
        .execute(conn)
        .await
        .map(drop);
    };
    sqlx::query!(
        "INSERT INTO balance_alerts (account_id, asset_id, threshold_base, created_at) VALUES ($1, $2, $3, $4)
         ON CONFLICT (account_id) DO UPDATE SET asset_id = EXCLUDED.asset_id, threshold_base = EXCLUDED.threshold_base",
        account.0,
        asset,
        to_numeric(threshold),
        now,
    )
    .execute(conn)
    .await
    .map(drop)
}
