//! What anybody may hand to somebody who verifies: receipts with their proofs, and leaf files.

use alloy_primitives::{Address, B256, FixedBytes};
use comptoir_audit::{LeafFile, Limits, Recomputed};
use comptoir_domain::{
    bill::{Bill, BilledParty},
    calls::CallsBill,
    charge::ChargeCarry,
    digest::Sha256,
    id::{OfferId, SplitVersionId},
    job::{Device, Tier},
    price::{Meter, PriceVersion, Rate},
    sale::{Sale, SaleBill, SaleKind, Time},
    settlement::{
        Account, AccountDocument, Receipt, ReceiptDocument, Split as Share,
        document::Disclosure,
        file::{self, Opening, Sealed},
        salted,
    },
    split::Split,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use uuid::Uuid;

use crate::seeds::Seed;

/// A receipt or an account's leaf, as `comptoir verify` and `comptoir bill` read it.
pub fn receipt(input: &[u8]) -> bool {
    let Ok(value) = serde_json::from_slice::<Value>(input) else {
        return false;
    };
    let receipt = document::<ReceiptDocument>(&value);
    if let Some(receipt) = &receipt {
        let proven = receipt.verify().is_ok();
        let job = serde_json::from_value::<Bill>(receipt.meter.clone());
        let sale = serde_json::from_value::<SaleBill>(receipt.meter.clone());
        let calls = serde_json::from_value::<CallsBill>(receipt.meter.clone());
        let others = comptoir_audit::bill::Bill::read(&value);
        let holds = job.is_ok_and(|bill| bill.recompute(&bill.meter, &bill.price).is_ok())
            || sale.is_ok_and(|bill| bill.recompute().is_ok())
            || calls.is_ok_and(|bill| bill.recompute().is_ok());
        if holds && proven {
            let other = others.expect("the second implementation reads it too");
            assert_eq!(other.hash().0, receipt.receipt.meter_hash.0);
        }
    }
    let account = document::<AccountDocument>(&value);
    if let Some(account) = &account
        && let Ok(verified) = account.verify()
    {
        assert_eq!(verified.batch, account.header.id);
    }
    receipt.is_some() || account.is_some()
}

/// A document that is read, is written, and read again as the same.
fn document<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(
    value: &Value,
) -> Option<T> {
    let document: T = serde_json::from_value(value.clone()).ok()?;
    let written = serde_json::to_value(&document).expect("a document has a JSON form");
    let again: T = serde_json::from_value(written).expect("what was written can be read");
    assert_eq!(document, again);
    Some(document)
}

/// The leaf file of a batch. Whatever the first implementation takes, the second takes, and both make the same batch of it.
pub fn leaf_file(input: &[u8]) -> bool {
    let other = LeafFile::parse(input, &Limits::default());
    let others = other.as_ref().map(|it| Recomputed::of(it).hash());
    let first = input.split(|byte| *byte == b'\n').next();
    drop(file::audit_head(first.unwrap_or_default()));
    let Ok((_, sealed)) = file::read(input) else {
        return false;
    };
    let others = others.expect("the second implementation reads it too");
    assert_eq!(others.map(|it| it.0), Some(sealed.hash.0));
    true
}

/// Documents that are read, and prove something.
pub fn receipts() -> Vec<Seed> {
    let (sealed, _) = batch(&job());
    let opening = opening();
    let disclosed = |content: &[u8]| Disclosure {
        sha256: Sha256::of(content),
        salt: B256::repeat_byte(1),
    };
    let mut receipt = ReceiptDocument {
        chain_id: opening.chain_id,
        contract: opening.contract,
        header: sealed.header,
        receipt: sealed.receipts[1].clone(),
        input: Some(disclosed(b"input")),
        result: Some(disclosed(b"result")),
        meter: job().bill,
        right: None,
        finality: None,
        proof: sealed.receipts_tree.proof(1).expect("it has a leaf"),
    };
    receipt.verify().expect("this is a receipt");
    let whole = to_seed("receipt", &receipt);
    let (sold, _) = batch(&sale());
    let sale = ReceiptDocument {
        header: sold.header,
        receipt: sold.receipts[1].clone(),
        meter: sale().bill,
        proof: sold.receipts_tree.proof(1).expect("it has a leaf"),
        ..receipt.clone()
    };
    sale.verify().expect("this is a receipt");
    (receipt.input, receipt.result) = (None, None);
    let account = sealed
        .account_document(&opening, Address::repeat_byte(255))
        .expect("it has a leaf");
    account.verify().expect("this is an account");
    vec![
        whole,
        to_seed("receipt-of-others", &receipt),
        to_seed("receipt-of-a-sale", &sale),
        to_seed("account", &account),
    ]
}

/// Leaf files that are read.
pub fn leaf_files() -> Vec<Seed> {
    let (_, whole) = batch(&job());
    let mut opening = opening();
    opening.audit_head = None;
    let (_, empty) = file::seal(&opening, Vec::new(), Vec::new()).expect("nothing adds up");
    vec![Seed::new("whole", whole), Seed::new("empty", empty)]
}

fn to_seed(name: &str, document: &impl Serialize) -> Seed {
    let text = serde_json::to_vec(document).expect("a document has a JSON form");
    Seed::new(name, text)
}

/// What the receipts of a batch charge.
struct Charge {
    kind: u8,
    gross: u128,
    parties: Vec<BilledParty>,
    bill: Value,
    digest: Sha256,
}

fn job() -> Charge {
    let meter = Meter::training(5_000, 1_437, 4, Tier::Replicated).expect("it is small");
    let price = PriceVersion {
        id: 3,
        device: Device::Cpu,
        rate_nano: Rate::from_nano(1_234_567_890_123).expect("it is small"),
        minimum: "1".parse().expect("digits"),
        platform_ppm: 50_000,
    };
    let shares = [(Address::repeat_byte(1), 2), (Address::repeat_byte(2), 1)];
    let split = Split::new(Address::repeat_byte(9), price.platform_ppm, &shares);
    let split = split.expect("these are weights");
    let before = ChargeCarry::new("700000000000000000".parse().expect("digits"));
    let version = SplitVersionId(Uuid::from_bytes([5; 16]));
    let carries = [500_000, 250_000, 250_000];
    let charged = Bill::charge((meter, price), before, version, &split, &carries);
    let bill = charged.expect("it is small").bill;
    Charge {
        kind: 1,
        gross: bill.gross.base(),
        bill: serde_json::to_value(&bill).expect("a bill has a JSON form"),
        digest: bill.digest(),
        parties: bill.parties,
    }
}

fn sale() -> Charge {
    let sale = Sale {
        kind: SaleKind::Subscription,
        offer: OfferId(Uuid::from_bytes([6; 16])),
        price_number: 2,
        price: "1000003".parse().expect("digits"),
        time: Some(Time {
            agreed_seconds: 86_400,
            used_seconds: 50_000,
            minimum_seconds: 0,
        }),
    };
    let shares = [(Address::repeat_byte(1), 2), (Address::repeat_byte(2), 1)];
    let split = Split::new(Address::repeat_byte(9), 50_000, &shares);
    let split = split.expect("these are weights");
    let version = SplitVersionId(Uuid::from_bytes([5; 16]));
    let (bill, _) = sale
        .bill(version, &split, &[500_000, 250_000, 250_000])
        .expect("it is small");
    Charge {
        kind: bill.kind.leaf_kind(),
        gross: bill.gross_base.base(),
        bill: serde_json::to_value(&bill).expect("a bill has a JSON form"),
        digest: bill.digest(),
        parties: bill.parties,
    }
}

fn opening() -> Opening {
    Opening {
        chain_id: 31_337,
        contract: Address::repeat_byte(7),
        id: 5,
        generation: 2,
        deposit_seq_seen: 9,
        prev_hash: B256::repeat_byte(6),
        audit_head: Some(Sha256::of(b"event")),
    }
}

/// Three receipts of the charge and two accounts, with the file that publishes them.
fn batch(charge: &Charge) -> (Sealed, Vec<u8>) {
    let shares = charge.parties.iter().map(|it| Share {
        payee: it.party.payee,
        amount: it.credit.base(),
    });
    let shares: Vec<_> = shares.collect();
    let salt = B256::repeat_byte(1);
    let receipts = (0..3).map(|n| Receipt {
        batch_id: 0,
        index: 0,
        receipt_id: FixedBytes::repeat_byte(n),
        kind: charge.kind,
        payer: Address::repeat_byte(1),
        gross: charge.gross,
        splits: shares.clone(),
        input_hash: salted(salt, Sha256::of(b"input")),
        result_hash: salted(salt, Sha256::of(b"result")),
        meter_hash: B256::from(charge.digest.0),
        verdict_hash: B256::repeat_byte(3),
    });
    let accounts = (0..2_u8).map(|n| Account {
        account: Address::repeat_byte(255 - n),
        payable: 100,
        available: u128::from(n),
        deposits_seen: 100 + u128::from(n),
    });
    file::seal(&opening(), receipts.collect(), accounts.collect()).expect("they add up")
}
