//! Which receipts the batches before settled, and in which of them: a receipt is settled once, ever.

use std::collections::HashMap;

use crate::{
    file::LeafFile,
    header::Committed,
    value::{Hash, ReceiptId},
};

/// Why a batch was not added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettledError {
    /// It is not the next one, or has another parent.
    #[error("batch {batch} does not follow batch {last}, the last one whose receipts are known")]
    Gap {
        /// Its number.
        batch: u64,
        /// The last one that was added.
        last: u64,
    },
    /// The file is another one's.
    #[error("the leaf file of batch {batch} has another SHA-256 than the chain names")]
    OtherFile {
        /// Its number.
        batch: u64,
    },
}

/// The receipts of the batches from the first on, without a gap.
#[derive(Debug, Clone, Default)]
pub struct Settled {
    /// Hashes of the headers, that of batch 1 first.
    headers: Vec<Hash>,
    receipts: HashMap<ReceiptId, u64>,
}

impl Settled {
    /// The number of the last batch whose receipts are known.
    #[must_use]
    pub const fn through(&self) -> u64 {
        self.headers.len() as u64
    }

    /// The hash of its header; zero before the first.
    #[must_use]
    pub fn tip(&self) -> Hash {
        self.headers.last().copied().unwrap_or(Hash::ZERO)
    }

    /// The batch that settled a receipt first.
    #[must_use]
    pub fn batch_of(&self, receipt: ReceiptId) -> Option<u64> {
        self.receipts.get(&receipt).copied()
    }

    /// Adds the next batch of the chain's. The file has to be the one that its header names: nothing else of it is checked.
    ///
    /// # Errors
    /// When it is not the next one, or the file is another; nothing is added then.
    pub fn add(&mut self, batch: &Committed, file: &LeafFile) -> Result<(), SettledError> {
        let number = batch.header.id;
        let last = self.through();
        if last.checked_add(1) != Some(number) || batch.header.prev_hash != self.tip() {
            return Err(SettledError::Gap {
                batch: number,
                last,
            });
        }
        if file.sha256 != batch.header.data_hash {
            return Err(SettledError::OtherFile { batch: number });
        }
        self.headers.push(batch.hash);
        for receipt in &file.receipts {
            self.receipts.entry(receipt.receipt_id).or_insert(number);
        }
        Ok(())
    }

    /// Forgets every batch after one: they were vetoed.
    pub fn rewind(&mut self, to: u64) {
        if to < self.through() {
            self.headers
                .truncate(usize::try_from(to).unwrap_or(usize::MAX));
            self.receipts.retain(|_, batch| *batch <= to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        file::Limits,
        header::{Header, Recomputed},
    };

    /// A batch with one receipt.
    fn batch(id: u64, prev_hash: Hash, receipt: u8) -> (Committed, LeafFile) {
        let zero = Hash::ZERO;
        let address = "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359";
        let receipt = format!("{receipt:02x}").repeat(16);
        let text = format!(
            "{{\"accounts_root\":\"{zero}\",\"audit_head\":null,\"chain_id\":31337,\"contract\":\"{address}\",\
             \"deposit_seq_seen\":0,\"deposits_seen\":\"0\",\"generation\":0,\"id\":{id},\"object\":\"header\",\
             \"prev_hash\":\"{prev_hash}\",\"receipt_count\":1,\"receipts_root\":\"{zero}\",\"total_available\":\"0\",\
             \"total_payable\":\"0\"}}\n\
             {{\"batch_id\":{id},\"gross\":\"0\",\"index\":0,\"input_hash\":\"{zero}\",\"kind\":1,\"meter_hash\":\"{zero}\",\
             \"object\":\"receipt\",\"payer\":\"{address}\",\"receipt_id\":\"0x{receipt}\",\"result_hash\":\"{zero}\",\
             \"splits\":[],\"verdict_hash\":\"{zero}\"}}\n"
        );
        let file = LeafFile::parse(text.as_bytes(), &Limits::default()).unwrap();
        let header: Header = Recomputed::of(&file).header.unwrap();
        let hash = Recomputed::of(&file).hash().unwrap();
        let committed = Committed {
            chain_id: 31_337,
            contract: file.heading.contract,
            header,
            hash,
        };
        (committed, file)
    }

    fn id(receipt: u8) -> ReceiptId {
        ReceiptId([receipt; 16])
    }

    #[test]
    fn a_receipt_is_known_by_the_first_batch_that_settled_it_until_that_was_vetoed() {
        let mut settled = Settled::default();
        let (first, file) = batch(1, Hash::ZERO, 1);
        settled.add(&first, &file).unwrap();
        let (second, file) = batch(2, first.hash, 2);
        settled.add(&second, &file).unwrap();
        let (third, file) = batch(3, second.hash, 1);
        settled.add(&third, &file).unwrap();
        assert_eq!((settled.through(), settled.tip()), (3, third.hash));
        assert_eq!(settled.batch_of(id(1)), Some(1));
        assert_eq!(settled.batch_of(id(2)), Some(2));
        settled.rewind(1);
        assert_eq!((settled.through(), settled.tip()), (1, first.hash));
        assert_eq!(settled.batch_of(id(1)), Some(1));
        assert_eq!(settled.batch_of(id(2)), None);
    }

    #[test]
    fn a_gap_another_parent_and_another_file_are_refused() {
        let mut settled = Settled::default();
        let (first, file) = batch(1, Hash::ZERO, 1);
        let (second, second_file) = batch(2, first.hash, 2);
        let gap = |batch, last| Err(SettledError::Gap { batch, last });
        assert_eq!(settled.add(&second, &second_file), gap(2, 0));
        let other = settled.add(&first, &second_file);
        assert_eq!(other, Err(SettledError::OtherFile { batch: 1 }));
        settled.add(&first, &file).unwrap();
        let (stranger, file) = batch(2, Hash([9; 32]), 2);
        assert_eq!(settled.add(&stranger, &file), gap(2, 1));
        assert_eq!(settled.through(), 1);
    }
}
