//! Closing an allowance: each of its windows is charged by what the payer carries, shared and receipted, and the rest of the hold goes back, in one
//! transaction.

use std::collections::{BTreeMap, BTreeSet};

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    bill::{BillError, Explanation},
    calls::{CallCarry, Calls, CallsBill},
    digest::Sha256,
    id::{AccountId, AllowanceId, JournalEntryId, ModelId, ReceiptId, SplitVersionId},
    ledger::{AccountKey, Entry, EntryKind, Lines, Source},
    split::{InvalidSplit, Shared, Split},
};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{
    PgTransaction, assets, charges,
    codec::{to_address, to_amount, to_atto, to_numeric, wide_to_numeric},
    holds::{self, HoldError, HoldSource},
    ledger::{self, PostError},
    receipts::{self, Receipt, ReceiptShare, Subject},
    releases::{self, NewRelease},
    splits,
    usage::{self, OpenWindow},
};

/// What stands for a verdict in the leaf of calls: the digest of this text, until calls are audited.
const UNAUDITED: &[u8] = b"calls: not audited";

/// Why an allowance was not closed.
#[derive(Debug, thiserror::Error)]
pub enum CloseError {
    /// No such allowance.
    #[error("there is no such allowance")]
    NotFound,
    /// A split version was closed in this very moment; the transaction may be tried again.
    #[error("a split version was closed meanwhile")]
    SplitClosed,
    /// Nobody can be paid.
    #[error("split the charge")]
    Split(#[from] InvalidSplit),
    /// A number is out of bounds.
    #[error("bill the calls")]
    Bill(#[from] BillError),
    /// The hold could not be ended.
    #[error("end the hold")]
    Hold(#[from] HoldError),
    /// An entry was refused.
    #[error("post the charges")]
    Post(#[from] PostError),
    /// No such asset.
    #[error("read the asset")]
    Asset(#[from] assets::AssetError),
    /// A statement failed.
    #[error("close an allowance")]
    Database(#[from] sqlx::Error),
}

/// An allowance that is closed.
struct Closing {
    id: AllowanceId,
    account: AccountId,
    payer: Address,
    asset_id: i32,
}

/// A window whose parties are known.
struct Payable {
    window: OpenWindow,
    split: Split,
    version: SplitVersionId,
    file: Sha256,
}

/// A window that was billed.
struct Billed {
    bill: CallsBill,
    shared: Shared,
}

type Stream = (ModelId, i32);

/// Charges every window of an allowance, shares the charges, queues what is released by itself, writes the receipts and gives back the rest of the
/// hold. A window whose calls come to no whole base unit keeps its carry and has no receipt. The transaction must be one that sees everybody: it
/// pays others. Closing again changes nothing and names the same receipts.
///
/// # Errors
/// When it cannot be charged; the caller rolls back.
pub async fn close(
    tx: &mut PgTransaction<'_>,
    id: AllowanceId,
    now: OffsetDateTime,
) -> Result<Vec<ReceiptId>, CloseError> {
    let Some(closing) = lock(tx, id).await? else {
        return Ok(receipts_of(tx, id).await?);
    };
    let payable = prepare(tx, &closing, now).await?;
    ledger::lock(tx, closing.asset_id, accounts(&closing, &payable)).await?;
    let held = holds::end(tx, HoldSource::Allowance(id), now).await?;
    let billed = bill(tx, &closing, &payable, held).await?;
    let (entries, charged) = entries(&closing, (&payable, &billed), held)?;
    let posted = ledger::post_all_locked(tx, closing.asset_id, &entries, now).await?;
    let earned: Vec<_> = payable.iter().zip(&billed).flat_map(earnings).collect();
    releases::queue(tx, closing.asset_id, &earned, now).await?;
    mark_closed(tx, &closing, (&payable, &billed), charged, now).await?;
    let mut posted = posted.into_iter();
    let mut written = Vec::new();
    for (it, billed) in payable.iter().zip(billed) {
        if !billed.bill.gross_base.is_zero() {
            let entry = posted.next().flatten().ok_or(PostError::AlreadyPosted)?;
            written.push(receipt((&closing, it), entry, billed, now));
        }
    }
    // What follows the charges is what was given back.
    if posted.any(|it| it.is_none()) {
        return Err(PostError::AlreadyPosted.into());
    }
    receipts::insert_all(tx, &written).await?;
    Ok(written.into_iter().map(|it| it.id).collect())
}

/// Locks an allowance: nothing is counted against it any more. `None` where it is closed.
async fn lock(tx: &mut PgTransaction<'_>, id: AllowanceId) -> Result<Option<Closing>, CloseError> {
    let row = sqlx::query!(
        "SELECT account_id, payer, asset_id, closed_at FROM allowances WHERE allowance_id = $1 FOR NO KEY UPDATE",
        id.0,
    )
    .fetch_optional(&mut **tx)
    .await?
    .ok_or(CloseError::NotFound)?;
    if row.closed_at.is_some() {
        return Ok(None);
    }
    Ok(Some(Closing {
        id,
        account: AccountId(row.account_id),
        payer: to_address("payer", &row.payer)?,
        asset_id: row.asset_id,
    }))
}

async fn receipts_of(conn: &mut PgConnection, id: AllowanceId) -> sqlx::Result<Vec<ReceiptId>> {
    let ids = sqlx::query_scalar!(
        "SELECT receipt_id FROM receipts JOIN usage_windows USING (window_id) WHERE allowance_id = $1 ORDER BY receipt_id",
        id.0,
    )
    .fetch_all(conn)
    .await?;
    Ok(ids.into_iter().map(ReceiptId).collect())
}

/// Finds who shares each window, and names its usage file. Before the ledger is locked, because a file may be long.
async fn prepare(
    tx: &mut PgTransaction<'_>,
    closing: &Closing,
    now: OffsetDateTime,
) -> Result<Vec<Payable>, CloseError> {
    let platform = assets::platform(tx, closing.asset_id).await?;
    let mut payable = Vec::new();
    for window in usage::windows_of(tx, closing.id).await? {
        let price = &window.price;
        let split = price
            .shares
            .split((platform, price.platform_ppm), window.worker_owner)?;
        let version = splits::open_version(tx, closing.asset_id, &split, now).await?;
        let file = usage::file_digest(tx, window.id).await?;
        payable.push(Payable {
            window,
            split,
            version,
            file,
        });
    }
    Ok(payable)
}

/// Every ledger account that the charges touch.
fn accounts(closing: &Closing, payable: &[Payable]) -> Vec<AccountKey> {
    let own = [
        AccountKey::Held(closing.payer),
        AccountKey::Available(closing.payer),
    ];
    let mut accounts = own.to_vec();
    for it in payable {
        accounts.extend(it.split.parties().iter().map(splits::account_of));
        accounts.push(AccountKey::SplitDust(it.version));
    }
    accounts
}

/// Bills the windows one after the other: what one leaves of a base unit, the next of the same price begins with. The bills are in the order of the
/// windows; where the hold falls short of a unit, it lacks it for those that are owed least.
async fn bill(
    tx: &mut PgTransaction<'_>,
    closing: &Closing,
    payable: &[Payable],
    held: Amount,
) -> Result<Vec<Billed>, CloseError> {
    let streams: BTreeSet<Stream> = payable.iter().map(stream).collect();
    let mut used = carries(tx, closing.payer, &streams).await?;
    let mut standing: BTreeMap<SplitVersionId, Vec<u32>> = BTreeMap::new();
    for it in payable {
        let stored = splits::find(tx, it.version).await?.filter(|it| !it.closed);
        standing.insert(it.version, stored.ok_or(CloseError::SplitClosed)?.carries);
    }
    let owed = |it: &Payable| {
        let carry = used.get(&stream(it)).copied().unwrap_or_default();
        std::cmp::Reverse(carry.owed())
    };
    let mut order: Vec<_> = (0..payable.len()).collect();
    order.sort_by_key(|place| owed(&payable[*place]));
    let mut left = held;
    let mut bills: Vec<Option<Billed>> = payable.iter().map(|_| None).collect();
    for place in order {
        let it = &payable[place];
        let carries = standing
            .get_mut(&it.version)
            .ok_or(CloseError::SplitClosed)?;
        let before = used.entry(stream(it)).or_default();
        let (bill, after, shared) =
            calls(it).bill((*before, left), it.version, &it.split, carries)?;
        left = left
            .checked_sub(bill.gross_base)
            .ok_or(BillError::TooLarge)?;
        *before = after;
        carries.clone_from(&shared.carries);
        bills[place] = Some(Billed { bill, shared });
    }
    save_carries(tx, closing.payer, &used).await?;
    for (version, carries) in &standing {
        splits::save_carries(tx, *version, carries).await?;
    }
    let bills: Option<Vec<_>> = bills.into_iter().collect();
    Ok(bills.expect("the order has each place once"))
}

const fn stream(it: &Payable) -> Stream {
    (it.window.price.model, it.window.price.number)
}

const fn calls(it: &Payable) -> Calls {
    Calls {
        window: it.window.id,
        model: it.window.price.model,
        version: it.window.version,
        price_number: it.window.price.number.cast_unsigned(),
        tariff: it.window.price.tariff,
        counted: it.window.counted,
    }
}

/// The entries of the charges, in the order of the windows, then that of the rest of the hold; and what is charged in all.
fn entries(
    closing: &Closing,
    (payable, billed): (&[Payable], &[Billed]),
    held: Amount,
) -> Result<(Vec<Entry>, Amount), CloseError> {
    let (own_held, own) = (
        AccountKey::Held(closing.payer),
        AccountKey::Available(closing.payer),
    );
    let mut entries = Vec::with_capacity(payable.len() + 1);
    let mut rest = held;
    for (it, billed) in payable.iter().zip(billed) {
        let gross = billed.bill.gross_base;
        if gross.is_zero() {
            continue;
        }
        rest = rest.checked_sub(gross).ok_or(BillError::TooLarge)?;
        let mut lines = Lines::default()
            .debit(own_held, gross)
            .change(AccountKey::SplitDust(it.version), billed.shared.dust);
        for (party, credit) in it.split.parties().iter().zip(&billed.shared.credits) {
            lines = lines.credit(splits::account_of(party), *credit);
        }
        let entry = lines.into_entry(EntryKind::Charge, Source::CallsCharge(it.window.id));
        entries.push(entry.map_err(PostError::from)?);
    }
    if !rest.is_zero() {
        let source = Source::AllowanceHoldRelease(closing.id);
        let lines = Lines::default().debit(own_held, rest).credit(own, rest);
        let entry = lines.into_entry(EntryKind::HoldRelease, source);
        entries.push(entry.map_err(PostError::from)?);
    }
    let charged = held.checked_sub(rest).ok_or(BillError::TooLarge)?;
    Ok((entries, charged))
}

fn earnings((it, billed): (&Payable, &Billed)) -> Vec<NewRelease> {
    let credits = it.split.parties().iter().zip(&billed.shared.credits);
    credits.filter_map(NewRelease::of).collect()
}

async fn mark_closed(
    tx: &mut PgTransaction<'_>,
    closing: &Closing,
    (payable, billed): (&[Payable], &[Billed]),
    charged: Amount,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    let windows: Vec<_> = payable.iter().map(|it| it.window.id.0).collect();
    let gross = billed.iter().map(|it| to_numeric(it.bill.gross_base));
    let gross: Vec<_> = gross.collect();
    sqlx::query!(
        "UPDATE usage_windows SET charged_base = it.gross, closed_at = $3
         FROM UNNEST($1::uuid[], $2::numeric[]) AS it (id, gross) WHERE window_id = it.id",
        &windows,
        &gross,
        now,
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "UPDATE allowances SET charged_base = $2, closed_at = $3 WHERE allowance_id = $1",
        closing.id.0,
        to_numeric(charged),
        now,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}

fn receipt(
    (closing, it): (&Closing, &Payable),
    entry: JournalEntryId,
    billed: Billed,
    now: OffsetDateTime,
) -> Receipt {
    let bill = billed.bill;
    let shares = bill.parties.iter().map(|it| ReceiptShare {
        payee: it.party.payee,
        amount: it.credit,
    });
    Receipt {
        id: it.window.id.receipt(),
        asset_id: closing.asset_id,
        account: closing.account,
        subject: Subject::Calls(it.window.id),
        entry,
        payer: closing.payer,
        gross: bill.gross_base,
        split_version: it.version,
        shares: shares.collect(),
        input: it.window.manifest,
        input_salt: charges::salt(),
        result: it.file,
        result_salt: charges::salt(),
        bill_sha256: bill.digest(),
        bill: Explanation::Calls(bill),
        verdict_sha256: Sha256::of(UNAUDITED),
        documents: None,
        created_at: now,
    }
}

/// What a payer has used of prices. Lock the payer's accounts first.
async fn carries(
    conn: &mut PgConnection,
    payer: Address,
    streams: &BTreeSet<Stream>,
) -> sqlx::Result<BTreeMap<Stream, CallCarry>> {
    let (models, numbers): (Vec<_>, Vec<_>) = streams
        .iter()
        .map(|(model, number)| (model.0, *number))
        .unzip();
    let rows = sqlx::query!(
        "SELECT c.model_id, c.price_number, used_atto, charged_base
         FROM UNNEST($2::uuid[], $3::integer[]) AS it (model, number)
         JOIN call_carries c ON c.payer = $1 AND c.model_id = it.model AND c.price_number = it.number",
        payer.as_slice(),
        &models,
        &numbers,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            let used = to_atto("used_atto", &row.used_atto)?;
            let charged = to_amount("charged_base", &row.charged_base)?;
            let carry = CallCarry::new(used, charged)
                .ok_or_else(|| sqlx::Error::Decode("more was charged than used".into()))?;
            Ok(((ModelId(row.model_id), row.price_number), carry))
        })
        .collect()
}

async fn save_carries(
    conn: &mut PgConnection,
    payer: Address,
    carries: &BTreeMap<Stream, CallCarry>,
) -> sqlx::Result<()> {
    let (mut models, mut numbers, mut used, mut charged) = (vec![], vec![], vec![], vec![]);
    for ((model, number), carry) in carries {
        models.push(model.0);
        numbers.push(*number);
        used.push(wide_to_numeric(carry.used().atto()));
        charged.push(to_numeric(carry.charged()));
    }
    sqlx::query!(
        "INSERT INTO call_carries (payer, model_id, price_number, used_atto, charged_base)
         SELECT $1, it.model, it.number, it.used, it.charged
         FROM UNNEST($2::uuid[], $3::integer[], $4::numeric[], $5::numeric[]) AS it (model, number, used, charged)
         ON CONFLICT (payer, model_id, price_number)
         DO UPDATE SET used_atto = excluded.used_atto, charged_base = excluded.charged_base",
        payer.as_slice(),
        &models,
        &numbers,
        &used,
        &charged,
    )
    .execute(conn)
    .await
    .map(drop)
}
