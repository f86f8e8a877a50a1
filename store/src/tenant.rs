//! Transactions of one tenant: a query that forgot its condition sees what is the tenant's and nothing else. The policies
//! are in `migrations/*_tenants.sql`.

use alloy_primitives::{Address, hex};
use comptoir_domain::id::AccountId;
use sqlx::{AssertSqlSafe, PgPool};

use crate::PgTransaction;

/// What connections begin with that answer nobody in particular: they see every tenant.
pub(crate) const EVERYBODY: (&str, &str) = ("comptoir.account", "*");

/// Whom a transaction is for: an account, and the address that it has.
pub type Tenant = (AccountId, Option<Address>);

/// Each connection plans a statement once and keeps the plan, where planning it anew would cost more than running it. It loops over indexes and nothing
/// else, so that what Postgres knows or does not know of a table changes nothing.
macro_rules! by_index {
    ($begin:literal) => {
        concat!(
            $begin,
            "; SET LOCAL plan_cache_mode = force_generic_plan; SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; \
             SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; SET LOCAL enable_material = off"
        )
    };
}

/// Begins a transaction that sees what is the account's, and what belongs to its address. What writes finds its rows by keys: plans are kept.
///
/// # Errors
/// When the database does not answer, or refuses.
pub async fn begin(pool: &PgPool, tenant: Tenant) -> sqlx::Result<PgTransaction<'static>> {
    wall(by_index!("BEGIN"), pool, tenant).await
}

/// As [`begin`], for what is of several tenants.
///
/// # Errors
/// When the database does not answer, or refuses.
pub async fn begin_for_everybody(pool: &PgPool) -> sqlx::Result<PgTransaction<'static>> {
    pool.begin_with(by_index!("BEGIN")).await
}

/// As [`begin`], to read alone. Reads need a transaction too: the wall stands for as long as it does.
///
/// # Errors
/// When the database does not answer, or refuses.
pub async fn read(pool: &PgPool, tenant: Tenant) -> sqlx::Result<PgTransaction<'static>> {
    wall("BEGIN READ ONLY", pool, tenant).await
}

/// As [`read`], for what finds its rows by keys: plans are kept.
///
/// # Errors
/// When the database does not answer, or refuses.
pub async fn read_by_index(pool: &PgPool, tenant: Tenant) -> sqlx::Result<PgTransaction<'static>> {
    wall(by_index!("BEGIN READ ONLY"), pool, tenant).await
}

/// Lets the rest of a transaction reach what belongs to others: a purchase pays its seller. What the tenant may see was decided before.
///
/// # Errors
/// When the statement fails.
pub async fn widen(tx: &mut PgTransaction<'_>) -> sqlx::Result<()> {
    sqlx::query("SET LOCAL comptoir.account = '*'")
        .execute(&mut **tx)
        .await
        .map(drop)
}

async fn wall(
    begin: &str,
    pool: &PgPool,
    (account, owner): Tenant,
) -> sqlx::Result<PgTransaction<'static>> {
    let owner = owner.map(hex::encode).unwrap_or_default();
    // One text and no parameters, so that the wall costs no round trip of its own; both values are hexadecimal digits of ours.
    let begin = format!(
        "{begin}; SET LOCAL comptoir.account = '{}'; SET LOCAL comptoir.owner = '{owner}'",
        account.0
    );
    pool.begin_with(AssertSqlSafe(begin)).await
}
