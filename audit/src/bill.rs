//! Bills: what a receipt's `meter_hash` is the SHA-256 of. With one, the shares of a charge are computed again by carry.

use serde_json::Value;

use crate::{
    calls,
    hash::{sha256, write_canonical},
    sale::{self, Documents},
    value::{Address, Hash, Receipt, ReceiptId, Share, unhex},
};

/// Weights of a split add up to this.
const WHOLE_PPM: u128 = 1_000_000;
/// Most that the house takes, in millionths: a fee of a fifth, and the tenth of a run that a sampled job adds for audits.
const HOUSE_PPM_MAX: u128 = 272_728;
/// Most that the house takes of what a dataset costs, in a job or in a sale, and of calls.
const DATA_HOUSE_PPM_MAX: u128 = 200_000;
/// The kinds of receipts beside those of sales.
const JOB: u8 = 1;
const REWARD: u8 = 5;
const CALLS: u8 = 6;
/// What is known of a reward's bill.
const REWARD_FIELDS: &[&str] = &[
    "contribution",
    "gross_base",
    "parties",
    "reward_per_row_base",
    "rows",
    "split_version",
    "terms_number",
];
/// Most parties of a split.
const PARTIES_MAX: usize = 1_001;

/// One party of a bill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Party {
    payee: Address,
    platform: bool,
    ppm: u128,
    carry: u128,
}

/// The bill of a receipt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bill {
    receipt: Option<ReceiptId>,
    gross: u128,
    terms: Terms,
    documents: Documents,
    parties: Vec<Party>,
    data: Option<Data>,
    hash: Hash,
}

/// What a charge is computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Terms {
    /// A program and its rows, which are not here.
    Job,
    /// A price, and of what lasts the seconds.
    Sale(sale::Terms),
    /// Rows: what they come to.
    Reward(u128),
    /// What was counted of calls, at their prices: what is charged for it.
    Calls(u128),
}

/// What a job's dataset cost: a part of the gross with a split of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Data {
    price: u128,
    platform_ppm: u128,
    parties: Vec<Party>,
}

/// Why a document is no bill, or a bill not a receipt's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBill {
    /// A field is missing or of the wrong kind.
    #[error("the bill has no readable `{0}`")]
    Field(&'static str),
    /// The weights are not those of a split.
    #[error("the weights of the bill do not add up to a million, or the platform's is too high")]
    Weights,
    /// It is the bill of something else.
    #[error("the bill is of another kind than the receipt")]
    Kind,
    /// It has a field that could mean anything.
    #[error("the bill has a field that is not known")]
    Unknown,
    /// It charges something else.
    #[error(
        "the bill charges another gross than the receipt, or than its price and what it counts come to"
    )]
    Gross,
    /// Something else was given.
    #[error("the right is not the one that the receipt names")]
    Right,
    /// Something else made it final.
    #[error(
        "what made it final is not what the receipt names, or is of something else than the right"
    )]
    Finality,
    /// Other seconds passed.
    #[error("the seconds of the bill are not those between the times of its documents")]
    Time,
    /// It shares in another way.
    #[error("the shares are not those that the bill's weights and carries make")]
    Shares,
}

impl Bill {
    /// Reads a bill, or the bill of a receipt document.
    ///
    /// # Errors
    /// Where a field is missing.
    pub fn read(document: &Value) -> Result<Self, InvalidBill> {
        let (bill, receipt) = if document["meter"]["parties"].is_null() {
            (document, None)
        } else {
            let id = document["receipt"]["receipt_id"].as_str();
            let id = id.and_then(|text| unhex(text.strip_prefix("0x")?));
            let id = id.ok_or(InvalidBill::Field("receipt_id"))?;
            (&document["meter"], Some(ReceiptId(id)))
        };
        let gross = bill["gross_base"].as_str().and_then(|it| it.parse().ok());
        let parties = parties(&bill["parties"])?;
        let mut canonical = String::new();
        write_canonical(bill, &mut canonical);
        Ok(Self {
            receipt,
            gross: gross.ok_or(InvalidBill::Field("gross_base"))?,
            terms: Terms::read(bill)?,
            documents: Documents::of(document),
            parties,
            data: data(&bill["data"])?,
            hash: sha256(canonical.as_bytes()),
        })
    }

    /// What a receipt's `meter_hash` must be.
    #[must_use]
    pub const fn hash(&self) -> Hash {
        self.hash
    }

    pub(crate) fn is_for(&self, receipt: ReceiptId) -> bool {
        self.receipt.is_none_or(|id| id == receipt)
    }

    /// Computes the charge again, but for a job's, and its shares: `carry += gross * ppm`, `credit = carry / 10^6`, for each party. The
    /// documents beside the bill must be those of the receipt.
    ///
    /// # Errors
    /// When the receipt says something else.
    pub fn explain(&self, receipt: &Receipt) -> Result<(), InvalidBill> {
        let (kind, gross, house_max, sale) = match &self.terms {
            Terms::Job => (JOB, self.gross, HOUSE_PPM_MAX, None),
            Terms::Sale(it) => (it.kind, it.gross, DATA_HOUSE_PPM_MAX, Some(it)),
            // Nothing is taken of a reward.
            Terms::Reward(earned) => (REWARD, *earned, 0, None),
            Terms::Calls(charged) => (CALLS, *charged, DATA_HOUSE_PPM_MAX, None),
        };
        // Only a job has data beside work; it and calls have no documents: their verdict is another's to tell.
        let (is_job, is_work) = (kind == JOB, matches!(kind, JOB | CALLS));
        if receipt.kind != kind
            || (!is_job && self.data.is_some())
            || (is_work && self.documents.are_there())
        {
            return Err(InvalidBill::Kind);
        }
        check_weights(&self.parties, house_max)?;
        if self.gross != receipt.gross || gross != self.gross {
            return Err(InvalidBill::Gross);
        }
        self.documents.explain(receipt, sale)?;
        let data = self.data.as_ref().map_or(0, |it| it.price);
        let work = self.gross.checked_sub(data).ok_or(InvalidBill::Gross)?;
        let mut shares = receipt.shares.iter();
        explain_shares(&self.parties, work, &mut shares)?;
        if let Some(data) = &self.data {
            let fees = check_weights(&data.parties, DATA_HOUSE_PPM_MAX)?;
            if fees != data.platform_ppm {
                return Err(InvalidBill::Weights);
            }
            explain_shares(&data.parties, data.price, &mut shares)?;
        }
        shares.next().map_or(Ok(()), |_| Err(InvalidBill::Shares))
    }
}

/// Weights make a whole, of which the platform has no more than it may: how much.
fn check_weights(parties: &[Party], platform_max: u128) -> Result<u128, InvalidBill> {
    let whole: u128 = parties.iter().map(|it| it.ppm).sum();
    let fees = parties.iter().filter(|it| it.platform);
    let fees: u128 = fees.map(|it| it.ppm).sum();
    if whole == WHOLE_PPM && fees <= platform_max {
        Ok(fees)
    } else {
        Err(InvalidBill::Weights)
    }
}

/// The next shares are what these parties get of an amount.
fn explain_shares<'s>(
    parties: &[Party],
    amount: u128,
    shares: &mut impl Iterator<Item = &'s Share>,
) -> Result<(), InvalidBill> {
    for party in parties {
        let share = shares.next().ok_or(InvalidBill::Shares)?;
        if share.payee != party.payee || share.amount != credit(amount, *party)? {
            return Err(InvalidBill::Shares);
        }
    }
    Ok(())
}

/// `(gross * ppm + carry) / 10^6` without passing 2^128: the whole millions of the gross give `ppm` each.
fn credit(gross: u128, party: Party) -> Result<u128, InvalidBill> {
    let rest = (gross % WHOLE_PPM) * party.ppm + party.carry;
    let whole = (gross / WHOLE_PPM).checked_mul(party.ppm);
    whole
        .and_then(|whole| whole.checked_add(rest / WHOLE_PPM))
        .ok_or(InvalidBill::Shares)
}

impl Terms {
    fn read(bill: &Value) -> Result<Self, InvalidBill> {
        if !bill["reward_per_row_base"].is_null() {
            return earned(bill).map(Self::Reward);
        }
        if !bill["tariff"].is_null() {
            return calls::charge(bill).map(Self::Calls);
        }
        if bill["kind"].is_null() {
            return Ok(Self::Job);
        }
        sale::Terms::read(bill).map(Self::Sale)
    }
}

/// What the rows of a contribution earn.
fn earned(bill: &Value) -> Result<u128, InvalidBill> {
    sale::refuse_unknown(bill, REWARD_FIELDS)?;
    let field = InvalidBill::Field;
    let per_row = bill["reward_per_row_base"].as_str();
    let per_row = per_row.and_then(|it| it.parse::<u128>().ok());
    let rows = bill["rows"].as_u64().ok_or(field("rows"))?;
    let earned = per_row.ok_or(field("reward_per_row_base"))?;
    earned.checked_mul(rows.into()).ok_or(InvalidBill::Gross)
}

fn parties(value: &Value) -> Result<Vec<Party>, InvalidBill> {
    let parties = value.as_array().filter(|it| it.len() <= PARTIES_MAX);
    let parties = parties.ok_or(InvalidBill::Field("parties"))?;
    parties.iter().map(party).collect()
}

fn data(value: &Value) -> Result<Option<Data>, InvalidBill> {
    if value.is_null() {
        return Ok(None);
    }
    let price = value["terms"]["price_base"].as_str();
    let price = price.and_then(|it| it.parse().ok());
    let platform_ppm = value["terms"]["platform_ppm"].as_u64();
    Ok(Some(Data {
        price: price.ok_or(InvalidBill::Field("price_base"))?,
        platform_ppm: platform_ppm
            .ok_or(InvalidBill::Field("platform_ppm"))?
            .into(),
        parties: parties(&value["parties"])?,
    }))
}

fn party(value: &Value) -> Result<Party, InvalidBill> {
    let field = InvalidBill::Field;
    let millionths = |value: &Value| value.as_u64().map(u128::from).filter(|it| *it <= WHOLE_PPM);
    let inner = &value["party"];
    let payee = inner["payee"].as_str().and_then(Address::parse_any_case);
    Ok(Party {
        payee: payee.ok_or(field("payee"))?,
        platform: inner["platform"].as_bool().ok_or(field("platform"))?,
        ppm: millionths(&inner["ppm"]).ok_or(field("ppm"))?,
        carry: millionths(&value["carry_before"]).ok_or(field("carry_before"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn address(byte: u8) -> Address {
        Address([byte; 20])
    }

    fn bill(gross: &str, parties: &[(u8, u64, u64)]) -> Value {
        let parties: Vec<_> = parties
            .iter()
            .map(|(payee, ppm, carry)| {
                json!({ "party": { "payee": address(*payee).to_string(), "platform": *payee == 9, "ppm": ppm },
                    "carry_before": carry, "credit_base": "0" })
            })
            .collect();
        json!({ "gross_base": gross, "parties": parties })
    }

    fn receipt(gross: u128, shares: &[(u8, u128)]) -> Receipt {
        Receipt {
            batch_id: 1,
            index: 0,
            receipt_id: ReceiptId::default(),
            kind: 1,
            payer: address(1),
            gross,
            shares: shares
                .iter()
                .map(|(payee, amount)| Share {
                    payee: address(*payee),
                    amount: *amount,
                })
                .collect(),
            input_hash: Hash::ZERO,
            result_hash: Hash::ZERO,
            meter_hash: Hash::ZERO,
            verdict_hash: Hash::ZERO,
        }
    }

    #[test]
    fn shares_are_computed_again_by_carry() {
        let read = Bill::read(&bill("7", &[(9, 50_000, 700_000), (2, 950_000, 400_000)])).unwrap();
        // 7 * 0.05 + 0.7 = 1.05 and 7 * 0.95 + 0.4 = 7.05: the dust gives one.
        assert_eq!(read.explain(&receipt(7, &[(9, 1), (2, 7)])), Ok(()));
        for wrong in [
            &[(9, 0), (2, 7)][..],
            &[(9, 1), (2, 6)],
            &[(9, 1)],
            &[(2, 7), (9, 1)],
        ] {
            assert_eq!(read.explain(&receipt(7, wrong)), Err(InvalidBill::Shares));
        }
        assert_eq!(
            read.explain(&receipt(8, &[(9, 1), (2, 7)])),
            Err(InvalidBill::Gross)
        );
    }

    fn of_kind(kind: u8, receipt: Receipt) -> Receipt {
        Receipt { kind, ..receipt }
    }

    #[test]
    fn the_house_takes_of_each_kind_what_it_may_and_bills_are_of_their_kind() {
        let takes = |ppm: u64, kind: u8| {
            let mut bill = bill("100", &[(9, ppm, 0), (2, 1_000_000 - ppm, 0)]);
            if kind == 2 {
                (bill["kind"], bill["price_base"]) = ("purchase".into(), "100".into());
            }
            let house = u128::from(ppm / 10_000);
            let shares = [(9, house), (2, 100 - house)];
            Bill::read(&bill)?.explain(&of_kind(kind, receipt(100, &shares)))
        };
        assert_eq!(takes(270_000, JOB), Ok(()));
        assert_eq!(takes(200_000, 2), Ok(()));
        assert_eq!(takes(210_000, 2), Err(InvalidBill::Weights));
        for kind in [0, 3, 4, REWARD, CALLS, 64] {
            assert_eq!(takes(0, kind), Err(InvalidBill::Kind));
        }
        let mut reward = bill("21", &[(9, 1_000_000, 0)]);
        reward["reward_per_row_base"] = "7".into();
        reward["rows"] = 3.into();
        let reward = Bill::read(&reward).unwrap();
        let receipt = receipt(21, &[(9, 21)]);
        let of = |kind| reward.explain(&of_kind(kind, receipt.clone()));
        assert_eq!(of(REWARD), Err(InvalidBill::Weights));
        assert_eq!(of(JOB), Err(InvalidBill::Kind));
    }

    #[test]
    fn a_reward_is_what_its_rows_earn() {
        let mut document = bill("21", &[(2, 1_000_000, 0)]);
        document["reward_per_row_base"] = "7".into();
        document["rows"] = 3.into();
        let receipt = of_kind(REWARD, receipt(21, &[(2, 21)]));
        let explain = |document: &Value| Bill::read(document)?.explain(&receipt);
        assert_eq!(explain(&document), Ok(()));
        document["rows"] = 4.into();
        assert_eq!(explain(&document), Err(InvalidBill::Gross));
        document["rows"] = u64::MAX.into();
        document["reward_per_row_base"] = u128::MAX.to_string().into();
        assert_eq!(explain(&document), Err(InvalidBill::Gross));
        document["rows"] = Value::Null;
        assert_eq!(explain(&document), Err(InvalidBill::Field("rows")));
    }

    #[test]
    fn a_sale_is_what_its_price_and_its_seconds_come_to() {
        let mut document = bill("413", &[(2, 1_000_000, 0)]);
        document["kind"] = "rental".into();
        document["price_base"] = "7".into();
        document["time"] = json!({ "agreed_seconds": 60, "used_seconds": 59 });
        let receipt = of_kind(3, receipt(413, &[(2, 413)]));
        let explain = |document: &Value| Bill::read(document)?.explain(&receipt);
        assert_eq!(explain(&document), Ok(()));
        // The charge and its shares still agree with the receipt: only the seconds do not.
        document["time"]["used_seconds"] = 58.into();
        assert_eq!(explain(&document), Err(InvalidBill::Gross));
        document["time"]["minimum_seconds"] = 59.into();
        assert_eq!(explain(&document), Ok(()));
        document["kind"] = "subscription".into();
        assert_eq!(explain(&document), Err(InvalidBill::Kind));
        document["discount_base"] = "1".into();
        assert_eq!(explain(&document), Err(InvalidBill::Unknown));
    }

    #[test]
    fn what_a_dataset_cost_is_shared_by_a_split_of_its_own_behind_that_of_the_work() {
        let mut document = bill("17", &[(9, 50_000, 700_000), (2, 950_000, 400_000)]);
        document["data"] = bill("0", &[(9, 100_000, 0), (3, 900_000, 0)]);
        document["data"]["terms"] = json!({ "price_base": "10", "platform_ppm": 100_000 });
        let read = Bill::read(&document).unwrap();
        // 7 of the 17 are for the work; the data's 10 give 1 and 9.
        let shares = [(9, 1), (2, 7), (9, 1), (3, 9)];
        assert_eq!(read.explain(&receipt(17, &shares)), Ok(()));
        for wrong in [
            &[(9, 1), (2, 7)][..],
            &[(9, 1), (2, 7), (9, 0), (3, 10)],
            &[(9, 1), (3, 9), (9, 1), (2, 7)],
        ] {
            let explained = read.explain(&receipt(17, wrong));
            assert_eq!(explained, Err(InvalidBill::Shares));
        }
        document["data"]["terms"]["platform_ppm"] = 0.into();
        let read = Bill::read(&document).unwrap();
        let explained = read.explain(&receipt(17, &shares));
        assert_eq!(explained, Err(InvalidBill::Weights));
        document["data"]["terms"]["price_base"] = "18".into();
        let read = Bill::read(&document).unwrap();
        let explained = read.explain(&receipt(17, &shares));
        assert_eq!(explained, Err(InvalidBill::Gross));
    }

    #[test]
    fn the_largest_gross_is_shared_without_passing_a_bound() {
        let most = u128::MAX;
        let read = Bill::read(&bill(&most.to_string(), &[(2, 1_000_000, 0)])).unwrap();
        assert_eq!(read.explain(&receipt(most, &[(2, most)])), Ok(()));
    }

    #[test]
    fn weights_that_are_no_split_are_refused() {
        for parties in [&[(2, 999_999, 0)][..], &[(9, 272_729, 0), (2, 727_271, 0)]] {
            let read = Bill::read(&bill("7", parties)).unwrap();
            assert_eq!(read.explain(&receipt(7, &[])), Err(InvalidBill::Weights));
        }
        assert_eq!(Bill::read(&json!({})), Err(InvalidBill::Field("parties")));
    }

    #[test]
    fn the_hash_of_a_bill_does_not_depend_on_the_order_of_its_keys() {
        let one: Value =
            serde_json::from_str(r#"{"gross_base":"1","parties":[],"b":1,"a":{"z":true,"y":"é"}}"#)
                .unwrap();
        let read = Bill::read(&one).unwrap();
        let canonical = r#"{"a":{"y":"é","z":true},"b":1,"gross_base":"1","parties":[]}"#;
        assert_eq!(read.hash(), sha256(canonical.as_bytes()));
    }
}
