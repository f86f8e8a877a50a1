//! The double-entry ledger. The database keeps the balances: a posting moves them, nothing else can.
//!
//! Whoever moves money locks every account first, in id order, and reads afterwards. A transaction that
//! makes several movements should name all accounts in its first [`lock`].

use std::collections::{BTreeMap, BTreeSet, HashSet};

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
    sqlx::query!(
        "SELECT lock_ledger_accounts($1, $2, $3, $4, $5)",
        asset_id,
        &ids,
        &owners as &[Option<Vec<u8>>],
        &codes,
        &scopes as &[Option<uuid::Uuid>],
    )
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

/// Posts entries in their order, all in a few statements: locks the accounts of all, then writes them. `None` for an entry
/// whose source has one already.
///
/// # Errors
/// When an account would be overdrawn by one of them: then none is posted, and the transaction is over.
pub async fn post_all(
    tx: &mut PgTransaction<'_>,
    asset_id: i32,
    entries: &[Entry],
    now: OffsetDateTime,
) -> Result<Vec<Option<JournalEntryId>>, PostError> {
    let accounts = entries.iter().flat_map(Entry::lines);
    lock(tx, asset_id, accounts.map(|(account, _)| *account)).await?;
    post_all_locked(tx, asset_id, entries, now).await
}

/// Posts an entry whose accounts the transaction has locked already.
pub(crate) async fn post_locked(
    tx: &mut PgTransaction<'_>,
    asset_id: i32,
    entry: &Entry,
    now: OffsetDateTime,
) -> Result<JournalEntryId, PostError> {
    let posted = post_all_locked(tx, asset_id, std::slice::from_ref(entry), now).await?;
    let posted = posted.into_iter().next().flatten();
    posted.ok_or(PostError::AlreadyPosted)
}

/// Posts entries in their order, in one statement: each keeps its lines, and each line the balance and the version
/// after it. `None` for an entry whose source has one already. The transaction has locked the accounts of all.
///
/// # Errors
/// When an account would be overdrawn by one of them: then none is posted, and the transaction is over.
pub(crate) async fn post_all_locked(
    tx: &mut PgTransaction<'_>,
    asset_id: i32,
    entries: &[Entry],
    now: OffsetDateTime,
) -> Result<Vec<Option<JournalEntryId>>, PostError> {
    let columns = EntryColumns::of(asset_id, entries);
    let posted = sqlx::query_scalar!(
        r#"WITH entry AS (
             INSERT INTO journal_entries (journal_entry_id, asset_id, kind, source_kind, source_id, reverses, lines, posted_at)
             SELECT it.id, $1, it.kind, it.source_kind, it.source_id, it.reverses, it.lines, $2
             FROM UNNEST($3::uuid[], $4::text[], $5::text[], $6::text[], $7::uuid[], $8::smallint[])
                 AS it (id, kind, source_kind, source_id, reverses, lines)
             ON CONFLICT (source_kind, source_id) DO NOTHING
             RETURNING journal_entry_id
         ), line AS (
             INSERT INTO postings (journal_entry_id, line, asset_id, ledger_account_id, amount_base, balance_after_base, account_version)
             SELECT it.entry, it.number, $1, it.account, it.amount,
                 la.balance_base + sum(it.amount) OVER chain, la.version + row_number() OVER chain
             FROM UNNEST($9::uuid[], $10::smallint[], $11::uuid[], $12::numeric[]) WITH ORDINALITY
                 AS it (entry, number, account, amount, place)
             -- `OFFSET 0` looks each account up, instead of each line for each account there is.
             CROSS JOIN LATERAL (
                 SELECT balance_base, version FROM ledger_accounts WHERE ledger_account_id = it.account OFFSET 0
             ) la
             -- `IS TRUE` keeps this a hashed look-up where joins are pinned to loops over indexes.
             WHERE (it.entry IN (SELECT journal_entry_id FROM entry)) IS TRUE
             WINDOW chain AS (PARTITION BY it.account ORDER BY it.place ROWS UNBOUNDED PRECEDING)
         )
         SELECT journal_entry_id FROM entry"#,
        asset_id,
        now,
        &columns.ids,
        &columns.kinds,
        &columns.source_kinds,
        &columns.source_ids,
        &columns.reverses as &[Option<uuid::Uuid>],
        &columns.lines,
        &columns.line_entries,
        &columns.line_numbers,
        &columns.line_accounts,
        &columns.line_amounts,
    )
    .fetch_all(&mut **tx)
    .await
    .map_err(|error| {
        if violates(&error, "ledger_accounts_not_overdrawn") {
            PostError::InsufficientFunds
        } else {
            error.into()
        }
    })?;
    let posted: HashSet<_> = posted.into_iter().collect();
    let ids = columns.ids.into_iter();
    Ok(ids
        .map(|id| posted.contains(&id).then_some(JournalEntryId(id)))
        .collect())
}

/// Entries and their lines as columns. Lines of an entry are in the order of their accounts.
#[derive(Default)]
struct EntryColumns {
    ids: Vec<uuid::Uuid>,
    kinds: Vec<String>,
    source_kinds: Vec<String>,
    source_ids: Vec<String>,
    reverses: Vec<Option<uuid::Uuid>>,
    lines: Vec<i16>,
    line_entries: Vec<uuid::Uuid>,
    line_numbers: Vec<i16>,
    line_accounts: Vec<uuid::Uuid>,
    line_amounts: Vec<BigDecimal>,
}

impl EntryColumns {
    fn of(asset_id: i32, entries: &[Entry]) -> Self {
        let mut columns = Self::default();
        for entry in entries {
            let id = JournalEntryId::generate().0;
            let lines: BTreeMap<_, _> = entry
                .lines()
                .iter()
                .map(|(account, change)| (account.id(asset_id).0, BigDecimal::from(change.base())))
                .collect();
            columns.ids.push(id);
            columns.kinds.push(entry.kind().as_str().to_owned());
            columns.source_kinds.push(entry.source().kind().to_owned());
            columns.source_ids.push(entry.source().id());
            columns
                .reverses
                .push(entry.source().reversed().map(|it| it.0));
            // More lines than that is refused: the entry would come without some of them.
            columns
                .lines
                .push(i16::try_from(lines.len()).unwrap_or(i16::MAX));
            for (number, (account, amount)) in (0_i16..).zip(lines) {
                columns.line_entries.push(id);
                columns.line_numbers.push(number);
                columns.line_accounts.push(account);
                columns.line_amounts.push(amount);
            }
        }
        columns
    }
}

/// What these owners may spend; an owner without an account has nothing. Lock their accounts first.
pub(crate) async fn spendable(
    conn: &mut PgConnection,
    asset_id: i32,
    owners: &BTreeSet<Address>,
) -> sqlx::Result<BTreeMap<Address, Amount>> {
    let ids: Vec<_> = owners
        .iter()
        .map(|owner| AccountKey::Available(*owner).id(asset_id).0)
        .collect();
    let rows = sqlx::query!(
        r#"SELECT owner AS "owner!", balance_base FROM ledger_accounts WHERE ledger_account_id = ANY ($1)"#,
        &ids,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            let owner = to_address("owner", &row.owner)?;
            Ok((owner, to_amount("balance_base", &row.balance_base)?))
        })
        .collect()
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

/// The accounts that an entry moved.
pub(crate) async fn accounts_of(
    conn: &mut PgConnection,
    entry: JournalEntryId,
) -> sqlx::Result<Vec<AccountKey>> {
    sqlx::query!(
        "SELECT la.owner, la.code, la.scope FROM postings JOIN ledger_accounts la USING (ledger_account_id)
         WHERE journal_entry_id = $1",
        entry.0,
    )
    .fetch_all(conn)
    .await?
    .iter()
    .map(|row| to_key(&row.code, row.owner.as_deref(), row.scope))
    .collect()
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
