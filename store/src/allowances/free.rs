//! Free calls of a day, taken one by one.

use comptoir_domain::id::{AccountId, ModelId};
use sqlx::PgConnection;
use time::OffsetDateTime;

/// Takes one of the calls of a model that cost an account nothing on this day (UTC): false when none is left.
///
/// # Errors
/// When the statement fails.
pub async fn take_free(
    conn: &mut PgConnection,
    account: AccountId,
    model: ModelId,
    per_day: u32,
    now: OffsetDateTime,
) -> sqlx::Result<bool> {
    let taken = sqlx::query!(
        "INSERT INTO free_calls AS it (account_id, model_id, day, taken) SELECT $1, $2, $3, 1 WHERE $4::bigint > 0
         ON CONFLICT (account_id, model_id, day) DO UPDATE SET taken = it.taken + 1 WHERE it.taken < $4",
        account.0,
        model.0,
        now.to_offset(time::UtcOffset::UTC).date(),
        i64::from(per_day),
    )
    .execute(conn)
    .await?;
    Ok(taken.rows_affected() == 1)
}

/// Gives back a free call that failed, to the day on which it was taken.
///
/// # Errors
/// When the statement fails.
pub async fn give_back_free(
    conn: &mut PgConnection,
    account: AccountId,
    model: ModelId,
    taken_at: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE free_calls SET taken = taken - 1 WHERE account_id = $1 AND model_id = $2 AND day = $3 AND taken > 0",
        account.0,
        model.0,
        taken_at.to_offset(time::UtcOffset::UTC).date(),
    )
    .execute(conn)
    .await
    .map(drop)
}
