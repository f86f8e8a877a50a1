//! Settling jobs: what each cost is charged, shared and receipted, and the rest of its budget goes back, in the
//! transaction that completes it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    atto::Atto,
    bill::{Bill, BillError, Billed, DataPrice, Explanation},
    charge::ChargeCarry,
    digest::Sha256,
    id::{AccountId, DatasetId, HoldId, JobId, JournalEntryId, ReceiptId, SplitVersionId},
    ledger::{AccountKey, Earned, Entry, EntryKind, Lines, Source},
    price::{self, Meter, PriceVersion},
    split::{self, InvalidSplit, Party, Split},
};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{
    PgTransaction, assets,
    codec::{to_address, to_numeric, to_wide, wide_to_numeric},
    dataset_inputs::DataCharge,
    datasets,
    holdback::{
        self, Earners,
        proceeds::{self, Proceeds},
    },
    holds::{self, HoldError, HoldSource},
    ledger::{self, PostError},
    receipts::{self, Receipt, ReceiptShare, Subject},
    releases::{self, NewRelease},
    splits,
};

/// A verified job that is to be paid for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobCharge {
    /// The job; its hold pays.
    pub job: JobId,
    /// Whose job it is.
    pub account: AccountId,
    /// The address that pays.
    pub payer: Address,
    /// Row of `assets`.
    pub asset_id: i32,
    /// What was counted.
    pub meter: Meter,
    /// The price version it was quoted.
    pub price: PriceVersion,
    /// What it was quoted, exactly.
    pub amount: Atto,
    /// Who did the work: the address of each worker's owner, and how much it did.
    pub shares: Vec<(Address, u64)>,
    /// What its dataset costs beside the work.
    pub data: Option<DataCharge>,
    /// The digest of what went in.
    pub input: Sha256,
    /// The digest of what came out.
    pub result: Sha256,
    /// The digest of the verdict's kind and evidence.
    pub verdict: Sha256,
}

/// Why a job was not settled.
#[derive(Debug, thiserror::Error)]
pub enum ChargeError {
    /// The quoted amount is not meter times price.
    #[error("the quoted amount is not meter times price")]
    AmountMismatch,
    /// Nothing is held for the job, or not this payer's money, or no longer.
    #[error("nothing of the payer is held for the job")]
    NotHeld,
    /// The charge is larger than the hold.
    #[error("the charge is larger than what is held for the job")]
    HoldTooSmall,
    /// The job was settled before, with another content.
    #[error("the job was settled before, as {0}, with another content")]
    SettledOtherwise(ReceiptId),
    /// The split version was closed in this very moment; the transaction may be tried again.
    #[error("the split version was closed meanwhile")]
    SplitClosed,
    /// Nobody can be paid.
    #[error("split the charge")]
    Split(#[from] InvalidSplit),
    /// A number is out of bounds.
    #[error("bill the job")]
    Bill(#[from] BillError),
    /// The hold could not be ended.
    #[error("end the hold")]
    Hold(#[from] HoldError),
    /// The entry was refused.
    #[error("post the charge")]
    Post(#[from] PostError),
    /// No such asset.
    #[error("read the asset")]
    Asset(#[from] assets::AssetError),
    /// A statement failed.
    #[error("settle a job")]
    Database(#[from] sqlx::Error),
}

/// Charges a job, shares the charge, gives back the rest of the hold, queues what is released by itself and
/// writes the receipt. Settling a job again with the same content changes nothing and names the same receipt.
///
/// # Errors
/// When the job cannot be paid for as described; the caller rolls back.
pub async fn settle_job(
    tx: &mut PgTransaction<'_>,
    charge: &JobCharge,
    now: OffsetDateTime,
) -> Result<ReceiptId, ChargeError> {
    settle_holding_back(tx, charge, &Earners::new(), now).await
}

/// Settles a job as [`settle_job`] does, and holds back what these owners earn with it.
pub async fn settle_holding_back(
    tx: &mut PgTransaction<'_>,
    charge: &JobCharge,
    earners: &Earners,
    now: OffsetDateTime,
) -> Result<ReceiptId, ChargeError> {
    let settled = settle_all(tx, &[(charge, earners)], now).await?;
    settled.first().copied().ok_or(ChargeError::NotHeld)
}

/// Settles jobs one after the other, as [`settle_holding_back`] does each, in a few statements for all. The receipts, in
/// their order.
///
/// # Errors
/// When one of them cannot be paid for as described: then none is; the caller rolls back, and settles them one by one.
pub async fn settle_all(
    tx: &mut PgTransaction<'_>,
    charges: &[(&JobCharge, &Earners)],
    now: OffsetDateTime,
) -> Result<Vec<ReceiptId>, ChargeError> {
    let mut receipts: HashMap<JobId, ReceiptId> = HashMap::new();
    let mut by_asset: BTreeMap<i32, Vec<(&JobCharge, &Earners)>> = BTreeMap::new();
    for (charge, earners) in charges {
        let of_asset = by_asset.entry(charge.asset_id).or_default();
        of_asset.push((charge, earners));
    }
    for (asset_id, of_asset) in by_asset {
        receipts.extend(settle_of_asset(tx, asset_id, &of_asset, now).await?);
    }
    let settled = charges.iter().map(|(it, _)| receipts.get(&it.job).copied());
    settled
        .collect::<Option<Vec<_>>>()
        .ok_or(ChargeError::NotHeld)
}

/// A charge whose parties are known.
struct Shared<'c> {
    charge: &'c JobCharge,
    earners: &'c Earners,
    split: Split,
    version: SplitVersionId,
    data: Option<SharedData>,
    hold: HoldId,
    held: Amount,
}

/// The data's side of a charge whose parties are known.
struct SharedData {
    /// The dataset, where it is blocked: its side is held back.
    blocked: Option<DatasetId>,
    terms: DataPrice,
    split: Split,
    version: SplitVersionId,
}

impl SharedData {
    fn account_of(&self, party: &Party) -> AccountKey {
        match self.blocked {
            Some(_) => proceeds::account_of(party.payee),
            None => splits::account_of(party),
        }
    }
}

impl Shared<'_> {
    /// The data's side, with its share of a bill.
    fn data<'b>(&'b self, billed: &'b Billed) -> Option<(&'b SharedData, &'b split::Shared)> {
        self.data.as_ref().zip(billed.data.as_ref())
    }
}

async fn settle_of_asset(
    tx: &mut PgTransaction<'_>,
    asset_id: i32,
    charges: &[(&JobCharge, &Earners)],
    now: OffsetDateTime,
) -> Result<Vec<(JobId, ReceiptId)>, ChargeError> {
    let shared = prepare(tx, asset_id, charges, now).await?;
    // These locks guard all that follows: the payers' holds and carries, the splits' carries, the fees.
    ledger::lock(tx, asset_id, accounts(&shared)).await?;
    let holds: Vec<HoldId> = shared.iter().map(|it| it.hold).collect();
    let ended = holds::end_all(tx, &holds, now).await?;
    let (mut settled, mut open) = (Vec::new(), Vec::new());
    for it in shared {
        if ended.contains(&it.hold) {
            open.push(it);
        } else {
            let receipt = settled_before(tx, &it).await?;
            settled.push((it.charge.job, receipt));
        }
    }
    let billed = bill(tx, asset_id, &open).await?;
    let (entries, earned) = entries(&open, &billed)?;
    let posted = ledger::post_all_locked(tx, asset_id, &entries, now).await?;
    releases::queue(tx, asset_id, &earned, now).await?;
    let mut written = Vec::with_capacity(open.len());
    for ((it, billed), posted) in open.iter().zip(billed).zip(posted) {
        hold_back(tx, it, &billed, now).await?;
        let posted = posted.ok_or(PostError::AlreadyPosted)?;
        written.push(receipt(it, posted, billed, now));
    }
    receipts::insert_all(tx, &written).await?;
    let of_jobs = written.into_iter();
    settled.extend(of_jobs.filter_map(|it| Some((it.subject.job()?, it.id))));
    Ok(settled)
}

/// Every ledger account that the charges touch.
fn accounts(shared: &[Shared<'_>]) -> Vec<AccountKey> {
    let mut accounts = Vec::new();
    for it in shared {
        let payees = it.split.parties().iter();
        accounts.extend(payees.map(|party| account_of(party, it.earners)));
        if let Some(data) = &it.data {
            let parties = data.split.parties().iter();
            accounts.extend(parties.map(|party| data.account_of(party)));
            accounts.push(AccountKey::SplitDust(data.version));
        }
        accounts.extend([
            AccountKey::Held(it.charge.payer),
            AccountKey::Available(it.charge.payer),
            AccountKey::SplitDust(it.version),
        ]);
    }
    accounts
}

/// Checks what each charge says against its hold, and finds its split.
async fn prepare<'c>(
    tx: &mut PgTransaction<'_>,
    asset_id: i32,
    charges: &[(&'c JobCharge, &'c Earners)],
    now: OffsetDateTime,
) -> Result<Vec<Shared<'c>>, ChargeError> {
    let platform = assets::platform(tx, asset_id).await?;
    let jobs = charges.iter().map(|(it, _)| it.job);
    let sources: Vec<_> = jobs.map(HoldSource::Job).collect();
    let holds = holds::find_all(tx, &sources).await?;
    let read = charges.iter().filter_map(|(it, _)| it.data.as_ref());
    let read: Vec<_> = read.map(|it| it.dataset).collect();
    let blocks = datasets::blocks(tx, &read).await?;
    let mut versions: HashMap<Sha256, SplitVersionId> = HashMap::new();
    let mut shared = Vec::with_capacity(charges.len());
    for (charge, earners) in charges {
        if price::amount(&charge.meter, &charge.price) != Some(charge.amount) {
            return Err(ChargeError::AmountMismatch);
        }
        let house_ppm = price::house_ppm(&charge.meter, &charge.price);
        let split = Split::new(platform, house_ppm, &charge.shares)?;
        let hold = holds
            .get(&charge.job.0)
            .filter(|it| (it.hold.owner, it.hold.asset_id) == (charge.payer, asset_id))
            .ok_or(ChargeError::NotHeld)?;
        let version = open_version(tx, asset_id, &split, &mut versions, now).await?;
        let data = match &charge.data {
            None => None,
            Some(DataCharge {
                terms,
                shares,
                dataset,
            }) => {
                let split = Split::new(platform, terms.platform_ppm, shares)?;
                Some(SharedData {
                    blocked: blocks.contains_key(dataset).then_some(*dataset),
                    terms: *terms,
                    version: open_version(tx, asset_id, &split, &mut versions, now).await?,
                    split,
                })
            }
        };
        shared.push(Shared {
            charge,
            earners,
            split,
            version,
            data,
            hold: hold.id,
            held: hold.hold.amount,
        });
    }
    Ok(shared)
}

async fn open_version(
    tx: &mut PgTransaction<'_>,
    asset_id: i32,
    split: &Split,
    versions: &mut HashMap<Sha256, SplitVersionId>,
    now: OffsetDateTime,
) -> sqlx::Result<SplitVersionId> {
    let digest = split.digest();
    let version = match versions.get(&digest) {
        Some(version) => *version,
        None => splits::open_version(tx, asset_id, split, now).await?,
    };
    versions.insert(digest, version);
    Ok(version)
}

/// Bills charges one after the other: what one leaves of a base unit, the next begins with.
async fn bill(
    tx: &mut PgTransaction<'_>,
    asset_id: i32,
    shared: &[Shared<'_>],
) -> Result<Vec<Billed>, ChargeError> {
    let (mut streams, mut versions) = (BTreeSet::new(), BTreeSet::new());
    for it in shared {
        streams.insert((it.charge.payer, it.charge.price.id));
        versions.insert(it.version);
        versions.extend(it.data.iter().map(|data| data.version));
    }
    let mut used = carries(tx, asset_id, &streams).await?;
    let mut standing: BTreeMap<SplitVersionId, Vec<u32>> = BTreeMap::new();
    for version in versions {
        let stored = splits::find(tx, version).await?.filter(|it| !it.closed);
        standing.insert(version, stored.ok_or(ChargeError::SplitClosed)?.carries);
    }
    let mut bills = Vec::with_capacity(shared.len());
    for it in shared {
        let before = used
            .entry((it.charge.payer, it.charge.price.id))
            .or_default();
        let carries = standing
            .get_mut(&it.version)
            .ok_or(ChargeError::SplitClosed)?;
        let billed = Bill::charge(
            (it.charge.meter, it.charge.price),
            *before,
            it.version,
            &it.split,
            carries,
        )?;
        *before = billed.carry;
        carries.clone_from(&billed.shared.carries);
        bills.push(add_data(it, billed, &mut standing)?);
    }
    save_carries(tx, asset_id, &used).await?;
    for (version, carries) in &standing {
        splits::save_carries(tx, *version, carries).await?;
    }
    Ok(bills)
}

/// Adds the data's side. Its split may be that of the work, if the same are paid in the same parts: then it goes on with what that left.
fn add_data(
    it: &Shared<'_>,
    billed: Billed,
    standing: &mut BTreeMap<SplitVersionId, Vec<u32>>,
) -> Result<Billed, ChargeError> {
    let Some(data) = &it.data else {
        return Ok(billed);
    };
    let carries = standing
        .get_mut(&data.version)
        .ok_or(ChargeError::SplitClosed)?;
    let billed = billed.with_data(data.terms, data.version, &data.split, carries)?;
    if let Some(shared) = &billed.data {
        carries.clone_from(&shared.carries);
    }
    Ok(billed)
}

/// The ledger entries of charges, and what is queued to be released of them.
fn entries(
    shared: &[Shared<'_>],
    billed: &[Billed],
) -> Result<(Vec<Entry>, Vec<NewRelease>), ChargeError> {
    let (mut entries, mut earned) = (Vec::new(), Vec::new());
    for (it, billed) in shared.iter().zip(billed) {
        entries.push(entry(it, billed)?);
        earned.extend(earnings(it, billed));
    }
    Ok((entries, earned))
}

fn entry(it: &Shared<'_>, billed: &Billed) -> Result<Entry, ChargeError> {
    let payer = it.charge.payer;
    let rest = it.held.checked_sub(billed.bill.gross);
    let lines = Lines::default()
        .debit(AccountKey::Held(payer), it.held)
        .credit(
            AccountKey::Available(payer),
            rest.ok_or(ChargeError::HoldTooSmall)?,
        );
    let mut lines = share(lines, &it.split, it.version, (billed, it.earners));
    if let Some((data, shared)) = it.data(billed) {
        for (party, credit) in data.split.parties().iter().zip(&shared.credits) {
            lines = lines.credit(data.account_of(party), *credit);
        }
        lines = lines.change(AccountKey::SplitDust(data.version), shared.dust);
    }
    let entry = lines.into_entry(EntryKind::Charge, Source::JobCharge(it.charge.job));
    Ok(entry.map_err(PostError::from)?)
}

fn share(
    mut lines: Lines,
    split: &Split,
    version: SplitVersionId,
    (billed, earners): (&Billed, &Earners),
) -> Lines {
    for (party, credit) in split.parties().iter().zip(&billed.shared.credits) {
        lines = lines.credit(account_of(party, earners), *credit);
    }
    lines.change(AccountKey::SplitDust(version), billed.shared.dust)
}

fn is_held_back(party: &Party, earners: &Earners) -> bool {
    !party.platform && earners.contains_key(&party.payee)
}

fn account_of(party: &Party, earners: &Earners) -> AccountKey {
    if is_held_back(party, earners) {
        AccountKey::HeldBack(party.payee)
    } else {
        splits::account_of(party)
    }
}

async fn hold_back(
    tx: &mut PgTransaction<'_>,
    it: &Shared<'_>,
    billed: &Billed,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    let credits = it.split.parties().iter().zip(&billed.shared.credits);
    let earned: Vec<_> = credits
        .filter(|(party, _)| is_held_back(party, it.earners))
        .map(|(party, credit)| (party.payee, *credit))
        .collect();
    let of = (it.charge.job, it.charge.asset_id, it.charge.payer);
    holdback::keep(tx, of, &earned, it.earners, now).await?;
    let blocked = it.data(billed);
    let blocked = blocked.and_then(|(data, shared)| Some((data.blocked?, data, shared)));
    let Some((dataset, data, shared)) = blocked else {
        return Ok(());
    };
    let of = Proceeds {
        of: Earned::Data(it.charge.job),
        dataset,
        asset_id: it.charge.asset_id,
        payer: it.charge.payer,
    };
    proceeds::keep(tx, of, (&data.split, shared), now).await
}

/// The receipt of a job whose hold has ended, if it was settled with this content.
async fn settled_before(
    tx: &mut PgTransaction<'_>,
    it: &Shared<'_>,
) -> Result<ReceiptId, ChargeError> {
    let charge = it.charge;
    let receipt = receipts::find_of_job(tx, charge.job)
        .await?
        .ok_or(ChargeError::NotHeld)?;
    let bill = receipt.job_bill().ok_or(ChargeError::NotHeld)?;
    let parties = bill.credited().map(|it| it.party);
    let data = it.data.iter();
    let data_parties = data.clone().flat_map(|it| it.split.parties());
    let expected = it.split.parties().iter().chain(data_parties);
    let same = (receipt.account, receipt.payer) == (charge.account, charge.payer)
        && (bill.meter, bill.price) == (charge.meter, charge.price)
        && (receipt.input, receipt.result, receipt.verdict_sha256)
            == (charge.input, charge.result, charge.verdict)
        && parties.eq(expected.copied())
        && (bill.data.iter().map(|it| it.terms)).eq(data.map(|it| it.terms));
    if same {
        Ok(receipt.id)
    } else {
        Err(ChargeError::SettledOtherwise(receipt.id))
    }
}

/// What payers have used of price versions. Lock the payers' accounts first.
async fn carries(
    conn: &mut PgConnection,
    asset_id: i32,
    streams: &BTreeSet<(Address, i32)>,
) -> sqlx::Result<BTreeMap<(Address, i32), ChargeCarry>> {
    let (payers, versions): (Vec<_>, Vec<_>) = streams
        .iter()
        .map(|(payer, version)| (payer.to_vec(), *version))
        .unzip();
    let rows = sqlx::query!(
        "SELECT charge_carries.payer, price_version_id, cum_atto
         FROM UNNEST($2::bytea[], $3::integer[]) AS it (payer, version)
         JOIN charge_carries ON asset_id = $1 AND charge_carries.payer = it.payer AND price_version_id = it.version",
        asset_id,
        &payers,
        &versions,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            let payer = to_address("payer", &row.payer)?;
            let used = Atto::from_atto(to_wide("cum_atto", &row.cum_atto)?)
                .ok_or_else(|| sqlx::Error::Decode("`cum_atto` is above every amount".into()))?;
            Ok(((payer, row.price_version_id), ChargeCarry::new(used)))
        })
        .collect()
}

async fn save_carries(
    conn: &mut PgConnection,
    asset_id: i32,
    carries: &BTreeMap<(Address, i32), ChargeCarry>,
) -> sqlx::Result<()> {
    let (mut payers, mut versions, mut used, mut charged) = (vec![], vec![], vec![], vec![]);
    for ((payer, version), carry) in carries {
        payers.push(payer.to_vec());
        versions.push(*version);
        used.push(wide_to_numeric(carry.used().atto()));
        charged.push(to_numeric(carry.charged()));
    }
    sqlx::query!(
        "INSERT INTO charge_carries (asset_id, payer, price_version_id, cum_atto, charged_base)
         SELECT $1, it.payer, it.version, it.used, it.charged
         FROM UNNEST($2::bytea[], $3::integer[], $4::numeric[], $5::numeric[]) AS it (payer, version, used, charged)
         ON CONFLICT (asset_id, payer, price_version_id)
         DO UPDATE SET cum_atto = excluded.cum_atto, charged_base = excluded.charged_base",
        asset_id,
        &payers,
        &versions,
        &used,
        &charged,
    )
    .execute(conn)
    .await
    .map(drop)
}

/// What is earned now; what is held back is queued when it is released.
fn earnings(it: &Shared<'_>, billed: &Billed) -> Vec<NewRelease> {
    let earned = it.split.parties().iter().zip(&billed.shared.credits);
    let data = it.data(billed).into_iter();
    let data = data.filter(|(it, _)| it.blocked.is_none());
    let data = data.flat_map(|(it, shared)| it.split.parties().iter().zip(&shared.credits));
    earned
        .filter(|(party, _)| !is_held_back(party, it.earners))
        .chain(data)
        .filter_map(NewRelease::of)
        .collect()
}

fn receipt(it: &Shared<'_>, entry: JournalEntryId, billed: Billed, now: OffsetDateTime) -> Receipt {
    let (charge, bill) = (it.charge, billed.bill);
    let shares = bill.credited();
    Receipt {
        id: ReceiptId::generate(),
        asset_id: charge.asset_id,
        account: charge.account,
        subject: Subject::Job(charge.job),
        entry,
        payer: charge.payer,
        gross: bill.gross,
        split_version: it.version,
        shares: shares
            .map(|it| ReceiptShare {
                payee: it.party.payee,
                amount: it.credit,
            })
            .collect(),
        input: charge.input,
        input_salt: salt(),
        result: charge.result,
        result_salt: salt(),
        bill_sha256: bill.digest(),
        bill: Explanation::Job(bill),
        verdict_sha256: charge.verdict,
        documents: None,
        created_at: now,
    }
}

/// Hides a digest in a leaf.
pub(crate) fn salt() -> [u8; 32] {
    let mut salt = [0; 32];
    aws_lc_rs::rand::fill(&mut salt).expect("the operating system gives random bytes");
    salt
}
