//! What the jobs, purchases and calls of API keys with a limit cost: what open ones hold, and what ended ones were charged.

use std::collections::{BTreeSet, HashMap};

use comptoir_domain::{
    amount::Amount,
    id::ApiKeyId,
    spend_limit::{SpendLimit, SpendPeriod},
};
use sqlx::{PgConnection, types::BigDecimal};
use time::{Date, OffsetDateTime};
use uuid::Uuid;

use crate::{
    PgTransaction,
    codec::{to_amount, to_enum, to_numeric},
    holds::HoldSource,
};

/// A hold would bring its key above its limit.
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

    /// What the key may still spend; `None` for a key without a limit.
    #[must_use]
    pub fn left(&self, key: ApiKeyId) -> Option<Amount> {
        self.budgets.get(&key).map(|budget| budget.left)
    }

    /// Takes a hold out of what the key may spend. A key without a limit is refused nothing.
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

    /// Gives back what was taken for something that was not made.
    pub fn give_back(&mut self, key: ApiKeyId, hold: Amount) {
        if let Some(budget) = self.budgets.get_mut(&key) {
            budget.left = budget.left.checked_add(hold).unwrap_or(budget.left);
        }
    }

    /// Counts what was made with what was taken for it.
    ///
    /// # Errors
    /// When the statement fails.
    pub async fn keep(
        &self,
        tx: &mut PgTransaction<'_>,
        made: &[(ApiKeyId, HoldSource, Amount)],
    ) -> sqlx::Result<()> {
        let (mut kinds, mut sources, mut keys, mut days, mut holds) =
            (vec![], vec![], vec![], vec![], vec![]);
        for (key, source, hold) in made {
            if let Some(budget) = self.budgets.get(key) {
                kinds.push(source.kind().to_owned());
                sources.push(source.id());
                keys.push(key.0);
                days.push(budget.starts_on);
                holds.push(to_numeric(*hold));
            }
        }
        if sources.is_empty() {
            return Ok(());
        }
        sqlx::query!(
            "INSERT INTO api_key_holds (source_kind, source_id, api_key_id, starts_on, held_base)
             SELECT * FROM UNNEST($1::text[], $2::uuid[], $3::uuid[], $4::date[], $5::numeric[])",
            &kinds,
            &sources,
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

/// Moves what ended from what is held to what was charged.
async fn count_ended(tx: &mut PgTransaction<'_>, keys: &[Uuid]) -> sqlx::Result<()> {
    sqlx::query!(
        "WITH ended AS (
             DELETE FROM api_key_holds AS it USING holds AS h
             WHERE it.api_key_id = ANY ($1) AND h.source_kind = it.source_kind AND h.source_id = it.source_id AND h.ended_at IS NOT NULL
             RETURNING it.api_key_id, it.starts_on, it.source_kind, it.source_id
         )
         INSERT INTO api_key_spending AS it (api_key_id, starts_on, charged_base)
         SELECT api_key_id, starts_on, coalesce(sum(CASE source_kind
             WHEN 'job' THEN (SELECT gross_base FROM receipts WHERE job_id = source_id)
             WHEN 'contribution' THEN (SELECT gross_base FROM receipts WHERE contribution_id = source_id)
             WHEN 'allowance' THEN (SELECT charged_base FROM allowances WHERE allowance_id = source_id)
             ELSE (SELECT gross_base FROM receipts WHERE purchase_id = source_id) END), 0)
         FROM ended GROUP BY api_key_id, starts_on
         ON CONFLICT (api_key_id, starts_on) DO UPDATE SET charged_base = it.charged_base + EXCLUDED.charged_base",
        keys,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}

/// What the key's jobs, purchases, rewards and calls of a period hold and were charged.
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
                   SELECT sum(CASE WHEN h.ended_at IS NULL THEN held_base
                       WHEN source_kind = 'job' THEN (SELECT gross_base FROM receipts WHERE job_id = source_id)
                       WHEN source_kind = 'contribution' THEN (SELECT gross_base FROM receipts WHERE contribution_id = source_id)
                       WHEN source_kind = 'allowance' THEN (SELECT charged_base FROM allowances WHERE allowance_id = source_id)
                       ELSE (SELECT gross_base FROM receipts WHERE purchase_id = source_id) END)
                   FROM api_key_holds JOIN holds AS h USING (source_kind, source_id)
                   WHERE api_key_id = $1 AND starts_on = $2
               ), 0) AS "spent!""#,
        key.0,
        starts_on,
    )
    .fetch_one(connection)
    .await?;
    to_amount("spent", &spent)
}
