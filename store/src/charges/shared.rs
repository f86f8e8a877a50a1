//! What a charge says, beside its hold and its splits.

use comptoir_domain::{
    amount::Amount,
    bill::{Billed, DataPrice},
    id::{DatasetId, HoldId, ReceiptId, SplitVersionId},
    ledger::AccountKey,
    price,
    split::{self, Party, Split},
};
use time::OffsetDateTime;

use super::{ChargeError, JobCharge};
use crate::{
    PgTransaction, assets,
    dataset_inputs::DataCharge,
    datasets,
    holdback::{Earners, proceeds},
    holds::{self, HoldSource},
    receipts,
    splits::{self, OpenVersions},
};

/// A charge whose parties are known.
pub(super) struct Shared<'c> {
    pub charge: &'c JobCharge,
    pub earners: &'c Earners,
    pub split: Split,
    pub version: SplitVersionId,
    pub data: Option<SharedData>,
    pub hold: HoldId,
    pub held: Amount,
}

impl Shared<'_> {
    /// The data's side, with its share of a bill.
    pub(super) fn data<'b>(
        &'b self,
        billed: &'b Billed,
    ) -> Option<(&'b SharedData, &'b split::Shared)> {
        self.data.as_ref().zip(billed.data.as_ref())
    }
}

/// The data's side of a charge whose parties are known.
pub(super) struct SharedData {
    /// The dataset, where it is blocked: its side is held back.
    pub blocked: Option<DatasetId>,
    pub terms: DataPrice,
    pub split: Split,
    pub version: SplitVersionId,
}

impl SharedData {
    pub(super) fn account_of(&self, party: &Party) -> AccountKey {
        match self.blocked {
            Some(_) => proceeds::account_of(party.payee),
            None => splits::account_of(party),
        }
    }
}

/// Checks what each charge says against its hold, and finds its split.
pub(super) async fn prepare<'c>(
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
    let mut versions = OpenVersions::default();
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
        let version = versions.of(tx, asset_id, &split, now).await?;
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
                    version: versions.of(tx, asset_id, &split, now).await?,
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

/// The receipt of a job whose hold has ended, if it was settled with this content.
pub(super) async fn settled_before(
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
