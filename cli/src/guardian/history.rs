//! The receipts of every batch before the one that is judged, read from their leaf files once.

use std::sync::Arc;

use comptoir_audit::{
    Committed, LeafFile, Settled,
    chain::{Block, Contract, RING},
    rpc::RpcError,
};

use super::files::Files;

/// Leaf files that one look reads. A guardian that comes late to a long history judges the newest batch meanwhile: a false one
/// is found by every other check.
const FILES_MAX: u64 = 500;

/// What is known of the batches before.
#[derive(Debug, Default)]
pub struct History {
    settled: Arc<Settled>,
}

impl History {
    /// The receipts of all batches before one that stands, or why they are not all known.
    ///
    /// # Errors
    /// When the node fails.
    pub async fn before(
        &mut self,
        contract: &Contract,
        files: &Files,
        batch: &Committed,
        head: &Block,
    ) -> Result<Result<Arc<Settled>, String>, RpcError> {
        let last = batch.header.id.saturating_sub(1);
        if self.settled.through() > last {
            Arc::make_mut(&mut self.settled).rewind(last);
        }
        if self.settled.through() < last || self.settled.tip() != batch.header.prev_hash {
            let missing = self.missing(contract, last, head).await?;
            if let Err(why) = self.read(files, missing).await {
                return Ok(Err(why));
            }
        }
        let through = self.settled.through();
        Ok(if through == last {
            Ok(Arc::clone(&self.settled))
        } else {
            Err(format!(
                "the receipts of the batches up to {through} are read, up to {last} are wanted"
            ))
        })
    }

    /// A batch was found right: its file need not be read again.
    pub fn settle(&mut self, batch: &Committed, file: &LeafFile) {
        let settled = Arc::make_mut(&mut self.settled);
        if settled.through().checked_add(1) == Some(batch.header.id)
            && let Err(error) = settled.add(batch, file)
        {
            tracing::debug!(%error, "the receipts of a batch are read later");
        }
    }

    /// The batches that are not read yet, oldest first. Those that a veto replaced are forgotten: none was older than the ring.
    async fn missing(
        &mut self,
        contract: &Contract,
        last: u64,
        head: &Block,
    ) -> Result<Vec<Committed>, RpcError> {
        loop {
            let through = self.settled.through();
            let found = if through < last {
                contract.lineage(through + 1, last, head).await?
            } else {
                None
            };
            let found = found.unwrap_or_default();
            let fits = found
                .first()
                .is_some_and(|next| next.header.prev_hash == self.settled.tip());
            if fits || through == 0 {
                return Ok(found);
            }
            Arc::make_mut(&mut self.settled).rewind(through.saturating_sub(RING));
        }
    }

    async fn read(&mut self, files: &Files, batches: Vec<Committed>) -> Result<(), String> {
        let most = usize::try_from(FILES_MAX).unwrap_or(usize::MAX);
        for batch in batches.into_iter().take(most) {
            let number = batch.header.id;
            let bytes = files.read(number, batch.header.data_hash).await;
            let bytes = bytes.map_err(|why| format!("batch {number} has no leaf file: {why}"))?;
            let limits = files.limits;
            let file = tokio::task::spawn_blocking(move || LeafFile::parse(&bytes, &limits));
            let file = file
                .await
                .map_err(|error| format!("the file of batch {number} was not read: {error}"))?
                .map_err(|error| format!("the file of batch {number}: {error}"))?;
            Arc::make_mut(&mut self.settled)
                .add(&batch, &file)
                .map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}
