//! What the jobs of API keys with a limit cost: what open ones hold, and what ended ones were charged.

use std::collections::{BTreeSet, HashMap};

use comptoir_domain::{
    amount::Amount,
    id::{ApiKeyId, JobId},
    spend_limit::{SpendLimit, SpendPeriod},
};
use sqlx::{PgConnection, types::BigDecimal};
use time::{Date, OffsetDateTime};
use uuid::Uuid;

use crate::{
    PgTransaction,
    codec::{to_amount, to_enum, to_numeric},
};

/// A job would bring its key above its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the key's spend limit leaves {left} base units")]
pub struct AboveSpendLimit {
    /// What it may still spend.
    pub left: Amount,
}

/// What some keys may still spend, for as long as the transaction lasts: their rows are locked.
#[derive(Debug, Default)]
pub struct Budgets {
    budgets: HashMap<ApiKeyId, Budget>,
}

#[derive(Debug)]
struct Budget {
    left: Amount,
    starts_on: Date,
}

impl Budgets {
    /// Locks the keys, in order, and counts what ended since the last look. Lock before ledger accounts, which are locked
    /// for longer.
    ///
    /// # Errors
    /// When a statement fails.
    pub async fn lock(
        tx: &mut PgTransaction<'_>,
        keys: impl IntoIterator<Item = ApiKeyId>,
        now: OffsetDateTime,
    ) -> sqlx::Result<Self> {
        let keys: BTreeSet<Uuid> = keys.into_iter().map(|key| key.0).collect();
        let keys: Vec<_> = keys.into_iter().collect();
        if keys.is_empty() {
            return Ok(Self::default());
        }
        let limits = sqlx::query!(
            r#"SELECT api_key_id, created_at, spend_limit_base AS "limit!", spend_period AS "period!" FROM api_keys
               WHERE api_key_id = ANY ($1) AND spend_limit_base IS NOT NULL ORDER BY api_key_id FOR NO KEY UPDATE"#,
            &keys,
        )
        .fetch_all(&mut **tx)
        .await?;
        count_ended(tx, &keys).await?;
        let mut budgets = HashMap::new();
        for row in limits {
            let key = ApiKeyId(row.api_key_id);
            let limit = to_limit(&row.limit, &row.period)?;
            let starts_on = limit.period.starts_on(row.created_at, now);
            let left = limit.left(spent(tx, key, starts_on).await?);
            budgets.insert(key, Budget { left, starts_on });
        }
        Ok(Self { budgets })
    }

    /// Takes a job's hold out of what the key may spend. A key without a limit is refused nothing.
    ///
    /// # Errors
    /// When it is more than is left.
    pub fn take(&mut self, key: ApiKeyId, hold: Amount) -> Result<(), AboveSpendLimit> {
        let Some(budget) = self.budgets.get_mut(&key) else {
            return Ok(());
        };
        let left = budget.left.checked_sub(hold);
        budget.left = left.ok_or(AboveSpendLimit { left: budget.left })?;
        Ok(())
    }

    /// Gives back what was taken for a job that was not made.
    pub fn give_back(&mut self, key: ApiKeyId, hold: Amount) {
        if let Some(budget) = self.budgets.get_mut(&key) {
            budget.left = budget.left.checked_add(hold).unwrap_or(budget.left);
        }
    }

    /// Counts jobs that were made with what was taken for them.
    ///
    /// # Errors
    /// When the statement fails.
    pub async fn keep(
        &self,
        tx: &mut PgTransaction<'_>,
        made: &[(ApiKeyId, JobId, Amount)],
    ) -> sqlx::Result<()> {
        let (mut jobs, mut keys, mut days, mut holds) = (vec![], vec![], vec![], vec![]);
        for (key, job, hold) in made {
            if let Some(budget) = self.budgets.get(key) {
                jobs.push(job.0);
                keys.push(key.0);
                days.push(budget.starts_on);
                holds.push(to_numeric(*hold));
            }
        }
        if jobs.is_empty() {
            return Ok(());
        }
        sqlx::query!(
            "INSERT INTO api_key_jobs (job_id, api_key_id, starts_on, held_base)
             SELECT * FROM UNNEST($1::uuid[], $2::uuid[], $3::date[], $4::numeric[])",
            &jobs,
            &keys,
            &days,
            &holds,
        )
        .execute(&mut **tx)
        .await?;
        Ok(())
    }
}

pub(crate) fn to_limit(amount: &BigDecimal, period: &str) -> sqlx::Result<SpendLimit> {
    Ok(SpendLimit {
        amount: to_amount("spend_limit_base", amount)?,
        period: to_enum("spend_period", period, SpendPeriod::parse)?,
    })
}

/// Moves jobs that ended from what is held to what was charged.
async fn count_ended(tx: &mut PgTransaction<'_>, keys: &[Uuid]) -> sqlx::Result<()> {
    sqlx::query!(
        "WITH ended AS (
             DELETE FROM api_key_jobs USING holds
             WHERE api_key_id = ANY ($1) AND source_kind = 'job' AND source_id = job_id AND ended_at IS NOT NULL
             RETURNING api_key_id, starts_on, job_id
         )
         INSERT INTO api_key_spending AS it (api_key_id, starts_on, charged_base)
         SELECT api_key_id, starts_on, coalesce(sum(gross_base), 0) FROM ended LEFT JOIN receipts USING (job_id)
         GROUP BY api_key_id, starts_on
         ON CONFLICT (api_key_id, starts_on) DO UPDATE SET charged_base = it.charged_base + EXCLUDED.charged_base",
        keys,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}

/// What the key's jobs of a period hold and were charged.
///
/// # Errors
/// When the statement fails.
pub async fn spent(
    connection: &mut PgConnection,
    key: ApiKeyId,
    starts_on: Date,
) -> sqlx::Result<Amount> {
    let spent = sqlx::query_scalar!(
        r#"SELECT coalesce((SELECT charged_base FROM api_key_spending WHERE api_key_id = $1 AND starts_on = $2), 0)
               + coalesce((
                   SELECT sum(CASE WHEN ended_at IS NULL THEN held_base ELSE coalesce(gross_base, 0) END)
                   FROM api_key_jobs JOIN holds ON source_kind = 'job' AND source_id = api_key_jobs.job_id
                       LEFT JOIN receipts ON receipts.job_id = api_key_jobs.job_id
                   WHERE api_key_id = $1 AND starts_on = $2
               ), 0) AS "spent!""#,
        key.0,
        starts_on,
    )
    .fetch_one(connection)
    .await?;
    to_amount("spent", &spent)
}
