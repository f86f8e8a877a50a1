//! The double-entry ledger. The database keeps the balances: a posting moves them, nothing else can.
//!
//! Whoever moves money locks every account first, in id order, and reads afterwards. A transaction that
//! makes several movements should name all accounts in its first [`lock`].

use std::collections::BTreeMap;

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    id::JournalEntryId,
    ledger::{AccountKey, Change, Entry, EntryKind, InvalidEntry, Lines, Source},
};
use sqlx::{PgConnection, types::BigDecimal};
use time::OffsetDateTime;

use crate::{
    PgTransaction,
    codec::{to_address, to_amount},
    violates,
};

/// What an owner has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Balances {
    /// What it may spend.
    pub available: Amount,
    /// What is locked for its jobs and withdrawals.
    pub held: Amount,
    /// Earned, inside the holdback.
    pub held_back: Amount,
    /// Released on-chain, cumulative.
    pub payable: Amount,
}

/// What belongs to no owner. Fees and dust are the platform's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HouseBalances {
    /// The platform's share of charges, not yet released.
    pub fees: Amount,
    /// Fractions of base units that parties of splits carry, as whole units.
    pub split_dust: Amount,
    /// Everything that was ever deposited.
    pub deposits: Amount,
}

/// Why an entry was not posted.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// An account would fall below zero.
    #[error("insufficient funds")]
    InsufficientFunds,
    /// The source made its entry before.
    #[error("the source has its entry already")]
    AlreadyPosted,
    /// The lines are not an entry.
    #[error("make a journal entry")]
    Invalid(#[from] InvalidEntry),
    /// A statement failed.
    #[error("post a journal entry")]
    Database(#[from] sqlx::Error),
}

/// Creates the accounts that do not exist and locks all, in id order, until the transaction ends. What is read
/// after it is true until then.
///
/// # Errors
/// When a statement fails.
pub async fn lock(
    tx: &mut PgTransaction<'_>,
    asset_id: i32,
    accounts: impl IntoIterator<Item = AccountKey>,
) -> sqlx::Result<()> {
    let accounts: BTreeMap<_, _> = accounts
        .into_iter()
        .map(|key| (key.id(asset_id).0, key))
        .collect();
    let ids: Vec<_> = accounts.keys().copied().collect();
    let owners: Vec<_> = accounts
        .values()
        .map(|key| key.owner().map(|it| it.to_vec()))
        .collect();
    let codes: Vec<_> = accounts.values().map(|key| key.code().to_owned()).collect();
    let scopes: Vec<_> = accounts
        .values()
        .map(|key| key.scope().map(|it| it.0))
        .collect();
    // Before any lock, and in one order: nobody waits for a row that its own waiters are about to make.
    sqlx::query!(
        "INSERT INTO ledger_accounts (ledger_account_id, asset_id, owner, code, scope)
         SELECT wanted.id, $1, wanted.owner, wanted.code, wanted.scope
         FROM UNNEST($2::uuid[], $3::bytea[], $4::text[], $5::uuid[]) AS wanted (id, owner, code, scope)
         WHERE NOT EXISTS (SELECT FROM ledger_accounts WHERE ledger_account_id = wanted.id)
         ORDER BY wanted.id
         ON CONFLICT DO NOTHING",
        asset_id,
        &ids,
        &owners as &[Option<Vec<u8>>],
        &codes,
        &scopes as &[Option<uuid::Uuid>],
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!("SELECT lock_ledger_accounts($1)", &ids)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// Posts an entry: locks its accounts, then writes it with all its lines in one statement.
///
/// # Errors
/// When an account would be overdrawn, or the source has its entry already.
pub async fn post(
    tx: &mut PgTransaction<'_>,
    asset_id: i32,
    entry: &Entry,
    now: OffsetDateTime,
) -> Result<JournalEntryId, PostError> {
    lock(
        tx,
        asset_id,
        entry.lines().iter().map(|(account, _)| *account),
    )
    .await?;
    post_locked(tx, asset_id, entry, now).await
}

/// Posts an entry whose accounts the transaction has locked already.
pub(crate) async fn post_locked(
    tx: &mut PgTransaction<'_>,
    asset_id: i32,
    entry: &Entry,
    now: OffsetDateTime,
) -> Result<JournalEntryId, PostError> {
    let id = JournalEntryId::generate();
    let reverses = match entry.source() {
        Source::Reversal(reversed) => Some(reversed.0),
        Source::Deposit(_)
        | Source::JobHold(_)
        | Source::JobHoldRelease(_)
        | Source::JobCharge(_)
        | Source::WithdrawalHold(_)
        | Source::WithdrawalHoldRelease(_)
        | Source::Seal(_)
        | Source::SplitClose(_) => None,
    };
    let lines: BTreeMap<_, _> = entry
        .lines()
        .iter()
        .map(|(account, change)| (account.id(asset_id).0, BigDecimal::from(change.base())))
        .collect();
    let (accounts, changes): (Vec<_>, Vec<_>) = lines.into_iter().unzip();
    let posted = sqlx::query!(
        "WITH entry AS (
             INSERT INTO journal_entries (journal_entry_id, asset_id, kind, source_kind, source_id, reverses, lines, posted_at)
             VALUES ($1, $2, $3, $4, $5, $6, cardinality($8::uuid[]), $7)
             ON CONFLICT (source_kind, source_id) DO NOTHING
             RETURNING journal_entry_id, asset_id
         )
         INSERT INTO postings (journal_entry_id, line, asset_id, ledger_account_id, amount_base)
         SELECT entry.journal_entry_id, line.number - 1, entry.asset_id, line.account, line.amount
         FROM entry, UNNEST($8::uuid[], $9::numeric[]) WITH ORDINALITY AS line (account, amount, number)",
        id.0,
        asset_id,
        entry.kind().as_str(),
        entry.source().kind(),
        entry.source().id(),
        reverses,
        now,
        &accounts,
        &changes,
    )
    .execute(&mut **tx)
    .await
    .map_err(|error| {
        if violates(&error, "ledger_accounts_not_overdrawn") {
            PostError::InsufficientFunds
        } else {
            error.into()
        }
    })?;
    if posted.rows_affected() == 0 {
        return Err(PostError::AlreadyPosted);
    }
    Ok(id)
}

/// Credits a deposit that the chain has made final. `source_id` names it on the chain, so that it counts once.
///
/// # Errors
/// When it was credited before.
pub async fn deposit(
    tx: &mut PgTransaction<'_>,
    asset_id: i32,
    owner: Address,
    amount: Amount,
    source_id: &str,
    now: OffsetDateTime,
) -> Result<JournalEntryId, PostError> {
    let entry = Lines::default()
        .debit(AccountKey::Deposits, amount)
        .credit(AccountKey::Available(owner), amount)
        .into_entry(EntryKind::Deposit, Source::Deposit(source_id.to_owned()))?;
    post(tx, asset_id, &entry, now).await
}

/// Takes an entry back with one that is linked to it. An entry is reversed once, and never a reversal.
///
/// # Errors
/// When it was reversed before, does not exist, or its money is no longer there.
pub async fn reverse(
    tx: &mut PgTransaction<'_>,
    reversed: JournalEntryId,
    now: OffsetDateTime,
) -> Result<JournalEntryId, PostError> {
    let rows = sqlx::query!(
        "SELECT la.asset_id, la.owner, la.code, la.scope, p.amount_base
         FROM journal_entries e
         JOIN postings p USING (journal_entry_id)
         JOIN ledger_accounts la USING (ledger_account_id)
         WHERE e.journal_entry_id = $1 AND e.kind <> 'reversal'",
        reversed.0,
    )
    .fetch_all(&mut **tx)
    .await?;
    let asset_id = rows.first().ok_or(InvalidEntry::Empty)?.asset_id;
    let mut lines = Lines::default();
    for row in rows {
        let key = to_key(&row.code, row.owner.as_deref(), row.scope)?;
        lines = lines.change(key, to_change("amount_base", &row.amount_base)?.negated());
    }
    let entry = lines.into_entry(EntryKind::Reversal, Source::Reversal(reversed))?;
    post(tx, asset_id, &entry, now).await
}

/// What an owner has.
///
/// # Errors
/// When the statement fails.
pub async fn balances(
    conn: &mut PgConnection,
    owner: Address,
    asset_id: i32,
) -> sqlx::Result<Balances> {
    let rows = sqlx::query!(
        "SELECT code, balance_base FROM ledger_accounts WHERE asset_id = $1 AND owner = $2",
        asset_id,
        owner.as_slice(),
    )
    .fetch_all(conn)
    .await?;
    let mut balances = Balances::default();
    for row in rows {
        balances.set(&row.code, to_amount("balance_base", &row.balance_base)?)?;
    }
    Ok(balances)
}

/// What every owner that ever had a ledger account has, by address. Consistent with whatever else the
/// transaction's snapshot shows.
///
/// # Errors
/// When the statement fails.
pub async fn all_owner_balances(
    conn: &mut PgConnection,
    asset_id: i32,
) -> sqlx::Result<BTreeMap<Address, Balances>> {
    let rows = sqlx::query!(
        r#"SELECT owner AS "owner!", code, balance_base FROM ledger_accounts WHERE asset_id = $1 AND owner IS NOT NULL"#,
        asset_id,
    )
    .fetch_all(conn)
    .await?;
    let mut owners: BTreeMap<_, Balances> = BTreeMap::new();
    for row in rows {
        let owner = owners.entry(to_address("owner", &row.owner)?).or_default();
        owner.set(&row.code, to_amount("balance_base", &row.balance_base)?)?;
    }
    Ok(owners)
}

/// What belongs to no owner. Sum of all owners' balances, fees and dust = deposits.
///
/// # Errors
/// When the statement fails.
pub async fn house_balances(conn: &mut PgConnection, asset_id: i32) -> sqlx::Result<HouseBalances> {
    let sums = sqlx::query!(
        r#"SELECT
             coalesce(sum(balance_base) FILTER (WHERE code = 'fees'), 0) AS "fees!",
             coalesce(sum(balance_base) FILTER (WHERE code = 'split_dust'), 0) AS "split_dust!",
             coalesce(-sum(balance_base) FILTER (WHERE code = 'deposits'), 0) AS "deposits!"
           FROM ledger_accounts WHERE asset_id = $1 AND owner IS NULL"#,
        asset_id,
    )
    .fetch_one(conn)
    .await?;
    Ok(HouseBalances {
        fees: to_amount("fees", &sums.fees)?,
        split_dust: to_amount("split_dust", &sums.split_dust)?,
        deposits: to_amount("deposits", &sums.deposits)?,
    })
}

impl Balances {
    /// Everything that stays off-chain: what the account's leaf calls `available`. `None` when it passes any amount.
    #[must_use]
    pub fn off_chain(&self) -> Option<Amount> {
        Amount::sum([self.available, self.held, self.held_back])
    }

    fn set(&mut self, code: &str, balance: Amount) -> sqlx::Result<()> {
        let field = match code {
            "available" => &mut self.available,
            "held" => &mut self.held,
            "held_back" => &mut self.held_back,
            "payable" => &mut self.payable,
            _ => return Err(unknown("code", code)),
        };
        *field = balance;
        Ok(())
    }
}

/// A signed change from `numeric`.
pub(crate) fn to_change(column: &'static str, stored: &BigDecimal) -> sqlx::Result<Change> {
    let digits = stored
        .is_integer()
        .then(|| stored.with_scale(0).to_string());
    let base = digits.and_then(|digits| digits.parse().ok());
    base.and_then(Change::from_base)
        .ok_or_else(|| unknown(column, &stored.to_string()))
}

fn to_key(code: &str, owner: Option<&[u8]>, scope: Option<uuid::Uuid>) -> sqlx::Result<AccountKey> {
    let owner = owner.map(|owner| to_address("owner", owner)).transpose()?;
    match (code, owner, scope) {
        ("available", Some(owner), None) => Ok(AccountKey::Available(owner)),
        ("held", Some(owner), None) => Ok(AccountKey::Held(owner)),
        ("held_back", Some(owner), None) => Ok(AccountKey::HeldBack(owner)),
        ("payable", Some(owner), None) => Ok(AccountKey::Payable(owner)),
        ("fees", None, None) => Ok(AccountKey::Fees),
        ("split_dust", None, Some(version)) => Ok(AccountKey::SplitDust(
            comptoir_domain::id::SplitVersionId(version),
        )),
        ("deposits", None, None) => Ok(AccountKey::Deposits),
        _ => Err(unknown("code", code)),
    }
}

fn unknown(column: &'static str, stored: &str) -> sqlx::Error {
    sqlx::Error::ColumnDecode {
        index: column.into(),
        source: format!("{stored:?} is not known").into(),
    }
}
