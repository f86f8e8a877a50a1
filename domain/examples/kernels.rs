//! The kernels whose instructions are counted: `scripts/kernels` runs each under callgrind, beside a run that does nothing, and
//! compares the difference with `domain/examples/kernels.txt`.

use std::{error::Error, hint::black_box};

use alloy_primitives::{Address, B256, keccak256};
use comptoir_domain::{
    amount::Amount,
    bill::Bill,
    charge::ChargeCarry,
    id::{JobId, SplitVersionId},
    job::{Device, Tier},
    ledger::{AccountKey, EntryKind, Lines, Source},
    price::{Meter, PriceVersion, Rate},
    settlement::merkle::{Tree, verify},
    split::Split,
};

/// Leaves of the tree.
const LEAVES: u32 = 4_096;
/// Every so many leaves, one is proven.
const PROVEN: usize = 64;
/// Charges in a row.
const CHARGES: u32 = 1_000;

fn main() -> Result<(), Box<dyn Error>> {
    match std::env::args().nth(1).as_deref() {
        Some("nothing") => Ok(()),
        Some("merkle") => merkle(),
        Some("ledger") => ledger(),
        _ => Err("name a kernel: nothing, merkle or ledger".into()),
    }
}

/// A tree, and proofs against its root.
fn merkle() -> Result<(), Box<dyn Error>> {
    let leaves: Vec<B256> = (0..LEAVES)
        .map(|number| keccak256(number.to_be_bytes()))
        .collect();
    let tree = Tree::new(black_box(&leaves));
    for (place, leaf) in leaves.iter().enumerate().step_by(PROVEN) {
        let proof = tree.proof(place).ok_or("a proof")?;
        if !verify(tree.root(), *leaf, &proof) {
            return Err("a proof does not hold".into());
        }
    }
    Ok(())
}

/// Charges of one payer, each billed, shared among three and made into a ledger entry.
fn ledger() -> Result<(), Box<dyn Error>> {
    let [payer, platform, first, second] = [1, 2, 3, 4].map(Address::repeat_byte);
    let price = PriceVersion {
        id: 1,
        device: Device::Cpu,
        rate_nano: Rate::from_nano(1_234_567_891).ok_or("a rate")?,
        minimum: Amount::from_base(1_000).ok_or("an amount")?,
        platform_ppm: 50_000,
    };
    let meter = Meter::inference(109_386, 1_797, Tier::Replicated).ok_or("a meter")?;
    let version = SplitVersionId(uuid::Uuid::from_u128(7));
    let split = Split::new(platform, price.platform_ppm, &[(first, 2), (second, 1)])?;
    let mut carries = vec![0; split.parties().len()];
    let mut used = ChargeCarry::default();
    for number in 0..CHARGES {
        let billed = Bill::charge((meter, price), used, version, &split, &carries)?;
        used = billed.carry;
        carries.clone_from(&billed.shared.carries);
        let mut lines = Lines::default().debit(AccountKey::Held(payer), billed.bill.gross);
        for (party, credit) in split.parties().iter().zip(&billed.shared.credits) {
            let account = if party.platform {
                AccountKey::Fees
            } else {
                AccountKey::Available(party.payee)
            };
            lines = lines.credit(account, *credit);
        }
        let job = JobId(uuid::Uuid::from_u128(u128::from(number)));
        let entry = lines
            .change(AccountKey::SplitDust(version), billed.shared.dust)
            .into_entry(EntryKind::Charge, Source::JobCharge(job))?;
        black_box((entry, billed.bill.digest()));
    }
    Ok(())
}
