//! The canonical text of each kind of line.

use super::{
    Heading,
    cursor::{Cursor, Read},
};
use crate::value::{Account, Receipt, ReceiptId, Share, unhex};

pub(super) fn heading(line: &mut Cursor<'_>) -> Read<Heading> {
    line.text("{\"accounts_root\":")?;
    let accounts_root = line.hash()?;
    line.text(",\"audit_head\":")?;
    let audit_head = if line.text("null").is_ok() {
        None
    } else {
        Some(line.hash()?)
    };
    line.text(",\"chain_id\":")?;
    let chain_id = line.count()?;
    line.text(",\"contract\":")?;
    let contract = line.address()?;
    line.text(",\"deposit_seq_seen\":")?;
    let deposit_seq_seen = line.count()?;
    line.text(",\"deposits_seen\":")?;
    let deposits_seen = line.amount()?;
    line.text(",\"generation\":")?;
    let generation = line.integer(u32::MAX.into(), "an integer below 2^32")?;
    line.text(",\"id\":")?;
    let id = line.count()?;
    line.text(",\"object\":\"header\",\"prev_hash\":")?;
    let prev_hash = line.hash()?;
    line.text(",\"receipt_count\":")?;
    let receipt_count = line.count()?;
    line.text(",\"receipts_root\":")?;
    let receipts_root = line.hash()?;
    line.text(",\"total_available\":")?;
    let total_available = line.amount()?;
    line.text(",\"total_payable\":")?;
    let total_payable = line.amount()?;
    line.text("}")?;
    Ok(Heading {
        chain_id,
        contract,
        id,
        generation,
        receipt_count,
        deposit_seq_seen,
        total_payable,
        total_available,
        deposits_seen,
        prev_hash,
        receipts_root,
        accounts_root,
        audit_head,
    })
}

pub(super) fn account(line: &mut Cursor<'_>) -> Read<Account> {
    line.text("{\"account\":")?;
    let account = line.address()?;
    line.text(",\"available\":")?;
    let available = line.amount()?;
    line.text(",\"deposits_seen\":")?;
    let deposits_seen = line.amount()?;
    line.text(",\"object\":\"account\",\"payable\":")?;
    let payable = line.amount()?;
    line.text("}")?;
    Ok(Account {
        account,
        payable,
        available,
        deposits_seen,
    })
}

pub(super) fn receipt(line: &mut Cursor<'_>, shares_max: usize) -> Read<Receipt> {
    line.text("{\"batch_id\":")?;
    let batch_id = line.count()?;
    line.text(",\"gross\":")?;
    let gross = line.amount()?;
    line.text(",\"index\":")?;
    let index = line.count()?;
    line.text(",\"input_hash\":")?;
    let input_hash = line.hash()?;
    line.text(",\"kind\":")?;
    let kind = line.integer(u8::MAX.into(), "an integer below 256")?;
    line.text(",\"meter_hash\":")?;
    let meter_hash = line.hash()?;
    line.text(",\"object\":\"receipt\",\"payer\":")?;
    let payer = line.address()?;
    line.text(",\"receipt_id\":")?;
    let id = "0x and 32 lower-case hexadecimal digits";
    let receipt_id = line.value(34, id, |text| {
        unhex(text.strip_prefix("0x")?).map(ReceiptId)
    })?;
    line.text(",\"result_hash\":")?;
    let result_hash = line.hash()?;
    line.text(",\"splits\":")?;
    let shares = shares(line, shares_max)?;
    line.text(",\"verdict_hash\":")?;
    let verdict_hash = line.hash()?;
    line.text("}")?;
    Ok(Receipt {
        batch_id,
        index,
        receipt_id,
        kind: u8::try_from(kind).map_err(|_| "an integer below 256")?,
        payer,
        gross,
        shares,
        input_hash,
        result_hash,
        meter_hash,
        verdict_hash,
    })
}

fn shares(line: &mut Cursor<'_>, most: usize) -> Read<Vec<Share>> {
    line.text("[")?;
    let mut shares = Vec::new();
    if line.text("]").is_ok() {
        return Ok(shares);
    }
    loop {
        line.text("{\"amount\":")?;
        let amount = line.amount()?;
        line.text(",\"payee\":")?;
        let payee = line.address()?;
        line.text("}")?;
        shares.push(Share { payee, amount });
        if line.text("]").is_ok() {
            return Ok(shares);
        }
        if shares.len() >= most {
            return Err("no more shares");
        }
        line.text(",")?;
    }
}
