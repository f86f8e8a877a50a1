//! Transactions of one tenant: a query that forgot its condition sees what is the tenant's and nothing else. The policies
//! are in `migrations/*_tenants.sql`.

use alloy_primitives::{Address, hex};
use comptoir_domain::id::AccountId;
use sqlx::{AssertSqlSafe, PgPool};

use crate::PgTransaction;

/// What connections begin with that answer nobody in particular: they see every tenant.
pub(crate) const EVERYBODY: (&str, &str) = ("comptoir.account", "*");

/// Begins a transaction that sees what is the account's, and what belongs to its address. Reads need one too: the wall
/// stands for as long as the transaction.
///
/// # Errors
/// When the database does not answer, or refuses.
pub async fn begin(
    pool: &PgPool,
    account: AccountId,
    owner: Option<Address>,
) -> sqlx::Result<PgTransaction<'static>> {
    let owner = owner.map(hex::encode).unwrap_or_default();
    // One text and no parameters, so that the wall costs no round trip of its own; both values are hexadecimal digits of ours.
    let begin = format!(
        "BEGIN; SET LOCAL comptoir.account = '{}'; SET LOCAL comptoir.owner = '{owner}'",
        account.0
    );
    pool.begin_with(AssertSqlSafe(begin)).await
}
