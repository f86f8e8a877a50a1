//! Accounts, and the binding of each to one on-chain address.

use alloy_primitives::Address;
use comptoir_domain::{
    credential::{self, Email},
    id::{AccountId, ChallengeId},
};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{PgTransaction, codec, violates};

/// An account.
#[derive(Debug, Clone)]
pub struct Account {
    /// Its identifier.
    pub id: AccountId,
    /// The e-mail address that signs in; `None` where only a wallet does.
    pub email: Option<String>,
    /// What it may act as.
    pub roles: Vec<String>,
    /// The bound address.
    pub address: Option<Address>,
    /// When that was bound.
    pub address_bound_at: Option<OffsetDateTime>,
    /// Are earnings released on-chain without being asked for?
    pub auto_release: bool,
    /// When it signed up.
    pub created_at: OffsetDateTime,
}

struct AccountRow {
    account_id: uuid::Uuid,
    email: Option<String>,
    roles: Vec<String>,
    address: Option<Vec<u8>>,
    address_bound_at: Option<OffsetDateTime>,
    auto_release: bool,
    created_at: OffsetDateTime,
}

impl TryFrom<AccountRow> for Account {
    type Error = sqlx::Error;

    fn try_from(row: AccountRow) -> sqlx::Result<Self> {
        let address = row
            .address
            .map(|stored| codec::to_address("address", &stored))
            .transpose()?;
        Ok(Self {
            id: AccountId(row.account_id),
            email: row.email,
            roles: row.roles,
            address,
            address_bound_at: row.address_bound_at,
            auto_release: row.auto_release,
            created_at: row.created_at,
        })
    }
}

/// Why nobody signed up.
#[derive(Debug, thiserror::Error)]
pub enum SignUpError {
    /// Somebody has it already.
    #[error("the e-mail address has an account")]
    EmailTaken,
    /// Postgres failed.
    #[error("create an account")]
    Database(#[from] sqlx::Error),
}

/// Creates an account with the role `user`.
pub async fn create(
    connection: &mut PgConnection,
    email: &Email,
    password_hash: &str,
    now: OffsetDateTime,
) -> Result<Account, SignUpError> {
    let row = sqlx::query_as!(
        AccountRow,
        "INSERT INTO accounts (account_id, email, password_hash, created_at) VALUES ($1, $2, $3, $4)
         RETURNING account_id, email, roles, address, address_bound_at, auto_release, created_at",
        AccountId::generate().0,
        email.as_str(),
        password_hash,
        now,
    )
    .fetch_one(connection)
    .await
    .map_err(|error| {
        if violates(&error, "accounts_email_once") {
            SignUpError::EmailTaken
        } else {
            error.into()
        }
    })?;
    Ok(row.try_into()?)
}

/// Creates an account with the role `user` that its wallet signs in to, and binds the wallet's address to it.
pub async fn create_for_wallet(
    connection: &mut PgConnection,
    address: Address,
    now: OffsetDateTime,
) -> Result<Account, BindError> {
    let id = AccountId::generate();
    check_bindable(connection, id, address).await?;
    let row = sqlx::query_as!(
        AccountRow,
        "INSERT INTO accounts (account_id, address, address_bound_at, created_at) VALUES ($1, $2, $3, $3)
         RETURNING account_id, email, roles, address, address_bound_at, auto_release, created_at",
        id.0,
        address.as_slice(),
        now,
    )
    .fetch_one(connection)
    .await
    .map_err(taken)?;
    Ok(row.try_into()?)
}

fn taken(error: sqlx::Error) -> BindError {
    if violates(&error, "accounts_address_once") {
        BindError::AddressTaken
    } else {
        error.into()
    }
}

/// The account of this identifier.
pub async fn find(connection: &mut PgConnection, id: AccountId) -> sqlx::Result<Option<Account>> {
    sqlx::query_as!(
        AccountRow,
        "SELECT account_id, email, roles, address, address_bound_at, auto_release, created_at
         FROM accounts WHERE account_id = $1",
        id.0,
    )
    .fetch_optional(connection)
    .await?
    .map(Account::try_from)
    .transpose()
}

/// The account that is bound to this address.
pub async fn find_by_address(
    connection: &mut PgConnection,
    address: Address,
) -> sqlx::Result<Option<Account>> {
    sqlx::query_as!(
        AccountRow,
        "SELECT account_id, email, roles, address, address_bound_at, auto_release, created_at
         FROM accounts WHERE address = $1",
        address.as_slice(),
    )
    .fetch_optional(connection)
    .await?
    .map(Account::try_from)
    .transpose()
}

/// What a sign-in is checked against: the account and the hash of its password.
pub async fn find_password(
    connection: &mut PgConnection,
    email: &Email,
) -> sqlx::Result<Option<(AccountId, String)>> {
    let row = sqlx::query!(
        r#"SELECT account_id, password_hash AS "password_hash!" FROM accounts WHERE email = $1"#,
        email.as_str(),
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| (AccountId(row.account_id), row.password_hash)))
}

/// Locks the account for a change, so that two changes of it come one after the other.
pub async fn lock(tx: &mut PgTransaction<'_>, id: AccountId) -> sqlx::Result<Option<Account>> {
    sqlx::query_as!(
        AccountRow,
        "SELECT account_id, email, roles, address, address_bound_at, auto_release, created_at
         FROM accounts WHERE account_id = $1 FOR NO KEY UPDATE",
        id.0,
    )
    .fetch_optional(&mut **tx)
    .await?
    .map(Account::try_from)
    .transpose()
}

/// Locks accounts, in one order, so that each changes for one at a time.
///
/// # Errors
/// When the statement fails.
pub(crate) async fn lock_all(
    tx: &mut PgTransaction<'_>,
    accounts: impl IntoIterator<Item = AccountId>,
) -> sqlx::Result<()> {
    let ids: Vec<_> = accounts.into_iter().map(|it| it.0).collect();
    sqlx::query_scalar!(
        "SELECT account_id FROM accounts WHERE account_id = ANY ($1) ORDER BY account_id FOR NO KEY UPDATE",
        &ids,
    )
    .fetch_all(&mut **tx)
    .await
    .map(drop)
}

/// Decides whether earnings are released without being asked for.
pub async fn set_auto_release(
    connection: &mut PgConnection,
    id: AccountId,
    auto_release: bool,
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE accounts SET auto_release = $2 WHERE account_id = $1",
        id.0,
        auto_release
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Lets the account act as the platform's operator; it keeps its other roles.
///
/// `false` when there is no such account.
pub async fn grant_platform_role(
    connection: &mut PgConnection,
    email: &Email,
) -> sqlx::Result<bool> {
    let changed = sqlx::query!(
        "UPDATE accounts SET roles = array_append(array_remove(roles, 'platform'), 'platform') WHERE email = $1",
        email.as_str(),
    )
    .execute(connection)
    .await?;
    Ok(changed.rows_affected() == 1)
}

/// Why an address cannot be an account's.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// It is one of the service's own, or nobody can hold its key.
    #[error("the address cannot be an account's")]
    AddressRefused,
    /// Another account has it.
    #[error("the address is bound to another account")]
    AddressTaken,
    /// The account has one.
    #[error("the account has a bound address")]
    AlreadyBound,
    /// Not a challenge of this account.
    #[error("no such challenge")]
    NoChallenge,
    /// The challenge was used or has expired.
    #[error("the challenge was used or has expired")]
    ChallengeSpent,
    /// Postgres failed.
    #[error("bind an address")]
    Database(#[from] sqlx::Error),
}

/// A message that the owner of an address is to sign.
#[derive(Debug, Clone)]
pub struct Challenge {
    /// Its identifier.
    pub id: ChallengeId,
    /// Who is to sign.
    pub address: Address,
    /// What is to be signed.
    pub message: String,
    /// Until when.
    pub expires_at: OffsetDateTime,
}

/// Refuses what [`bind`] would refuse.
pub async fn check_bindable(
    connection: &mut PgConnection,
    account: AccountId,
    address: Address,
) -> Result<(), BindError> {
    check_changeable(connection, account, address).await?;
    let bound = find(connection, account).await?;
    if bound.is_some_and(|account| account.address.is_some()) {
        return Err(BindError::AlreadyBound);
    }
    Ok(())
}

/// Refuses an address that the account may not change to, nor bind as its first: it has it, or cannot.
pub async fn check_changeable(
    connection: &mut PgConnection,
    account: AccountId,
    address: Address,
) -> Result<(), BindError> {
    let used = sqlx::query!(
        r#"SELECT
            EXISTS (SELECT FROM assets WHERE $1 IN (token, contract, platform)) AS "ours!",
            (SELECT account_id FROM accounts WHERE address = $1) AS holder"#,
        address.as_slice(),
    )
    .fetch_one(connection)
    .await?;
    if used.ours || credential::is_ownerless(address) {
        return Err(BindError::AddressRefused);
    }
    match used.holder {
        Some(holder) if holder == account.0 => Err(BindError::AlreadyBound),
        Some(_) => Err(BindError::AddressTaken),
        None => Ok(()),
    }
}

/// Remembers a challenge.
pub async fn create_challenge(
    connection: &mut PgConnection,
    account: AccountId,
    challenge: &Challenge,
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO address_challenges (challenge_id, account_id, address, message, expires_at)
         VALUES ($1, $2, $3, $4, $5)",
        challenge.id.0,
        account.0,
        challenge.address.as_slice(),
        challenge.message,
        challenge.expires_at,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Forgets at most `limit` challenges that expired; says how many.
pub async fn forget_challenges(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    limit: i64,
) -> sqlx::Result<u64> {
    let forgotten = sqlx::query!(
        "DELETE FROM address_challenges WHERE challenge_id IN
            (SELECT challenge_id FROM address_challenges WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2)",
        now,
        limit,
    )
    .execute(connection)
    .await?;
    Ok(forgotten.rows_affected())
}

/// The challenge that a signature answers; locked until the transaction ends, so that it is spent once.
pub async fn lock_challenge(
    tx: &mut PgTransaction<'_>,
    account: AccountId,
    id: ChallengeId,
    now: OffsetDateTime,
) -> Result<Challenge, BindError> {
    let row = sqlx::query!(
        "SELECT address, message, expires_at, used_at FROM address_challenges
         WHERE challenge_id = $1 AND account_id = $2 FOR NO KEY UPDATE",
        id.0,
        account.0,
    )
    .fetch_optional(&mut **tx)
    .await?
    .ok_or(BindError::NoChallenge)?;
    if row.used_at.is_some() || row.expires_at <= now {
        return Err(BindError::ChallengeSpent);
    }
    let address = codec::to_address("address", &row.address)?;
    Ok(Challenge {
        id,
        address,
        message: row.message,
        expires_at: row.expires_at,
    })
}

/// Spends a challenge that was answered.
pub async fn spend_challenge(
    tx: &mut PgTransaction<'_>,
    id: ChallengeId,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE address_challenges SET used_at = $2 WHERE challenge_id = $1",
        id.0,
        now
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Binds the address of a challenge whose signature was checked, and spends the challenge.
pub async fn bind(
    tx: &mut PgTransaction<'_>,
    account: AccountId,
    challenge: &Challenge,
    now: OffsetDateTime,
) -> Result<Account, BindError> {
    check_bindable(tx, account, challenge.address).await?;
    spend_challenge(tx, challenge.id, now).await?;
    let row = sqlx::query_as!(
        AccountRow,
        "UPDATE accounts SET address = $2, address_bound_at = $3 WHERE account_id = $1 AND address IS NULL
         RETURNING account_id, email, roles, address, address_bound_at, auto_release, created_at",
        account.0,
        challenge.address.as_slice(),
        now,
    )
    .fetch_optional(&mut **tx)
    .await
    .map_err(taken)?
    .ok_or(BindError::AlreadyBound)?;
    Ok(row.try_into()?)
}
