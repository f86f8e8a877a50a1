//! Judges the batches that the contract holds: finds the leaf file, the batch before and the deposits, and recomputes.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use comptoir_audit::{
    Address, Before, Committed, Deposit, Evidence, Hash, LeafFile, Limits, Verdict, audit,
    chain::{Block, Contract},
    hash::sha256,
    rpc::RpcError,
};

use super::decide::Judgement;
use crate::audit::source::LeafSource;

/// Judgements that are remembered.
const KNOWN_MAX: usize = 4_096;

/// Where leaf files are looked for and kept.
#[derive(Debug, Clone)]
pub struct Files {
    /// In this order.
    pub sources: Vec<LeafSource>,
    /// Copies of what was found: what an escape needs if the operator goes.
    pub keep: Option<PathBuf>,
    /// The longest that is read.
    pub limits: Limits,
}

/// Judges batches, and remembers what it knows.
#[derive(Debug)]
pub struct Judge {
    files: Files,
    platform: Option<Address>,
    known: HashMap<Hash, Judgement>,
    /// The leaf file of the batch that was judged last, by the hash of its header.
    last: Option<(Hash, Arc<LeafFile>)>,
    deposits: Arc<Vec<Deposit>>,
    /// The block up to which deposits were read.
    read_to: Option<Block>,
}

impl Judge {
    /// Knows nothing yet.
    #[must_use]
    pub fn new(files: Files, platform: Option<Address>) -> Self {
        Self {
            files,
            platform,
            known: HashMap::new(),
            last: None,
            deposits: Arc::default(),
            read_to: None,
        }
    }

    /// Is the batch of a header judged for good?
    #[must_use]
    pub fn knows(&self, hash: Hash) -> bool {
        self.known.contains_key(&hash)
    }

    /// Judges the batch that the contract holds under a number with a hash. What can no longer change is not judged again.
    ///
    /// # Errors
    /// When the node fails. The batch is then as good as undecided.
    pub async fn judge(
        &mut self,
        contract: &Contract,
        (id, hash): (u64, Hash),
        head: &Block,
    ) -> Result<Judgement, RpcError> {
        if let Some(known) = self.known.get(&hash) {
            return Ok(known.clone());
        }
        let committed = contract.committed(id, head).await?;
        let Some(committed) = committed.filter(|it| it.hash == hash) else {
            return Err(RpcError::Malformed("no event of a batch that stands"));
        };
        let bytes = match self.file(id, committed.header.data_hash).await {
            Ok(bytes) => bytes,
            Err(why) => return Ok(Judgement::Unavailable(why)),
        };
        let before = self.before(contract, &committed, head).await?;
        self.read_deposits(contract, head).await?;
        let judgement = self.recompute(committed, bytes, before).await;
        if matches!(judgement, Judgement::Right | Judgement::False(_)) {
            if self.known.len() >= KNOWN_MAX {
                self.known.clear();
            }
            self.known.insert(hash, judgement.clone());
        }
        Ok(judgement)
    }

    #[expect(
        clippy::large_types_passed_by_value,
        reason = "moved into the thread that recomputes"
    )]
    async fn recompute(
        &mut self,
        committed: Committed,
        bytes: Vec<u8>,
        before: Result<Option<Arc<LeafFile>>, String>,
    ) -> Judgement {
        let (limits, platform) = (self.files.limits, self.platform);
        let deposits = Arc::clone(&self.deposits);
        let audited = tokio::task::spawn_blocking(move || {
            let audited = audit(&Evidence {
                file: &bytes,
                limits,
                committed: Ok(&committed),
                before: match &before {
                    Ok(None) => Before::Nothing,
                    Ok(Some(file)) => Before::File(file),
                    Err(why) => Before::Missing(why),
                },
                deposits: Ok(&deposits),
                platform,
                bills: &[],
            });
            (audited, committed.hash)
        });
        let (audited, hash) = match audited.await {
            Ok(done) => done,
            Err(error) => return Judgement::Undecided(format!("the audit was cut short: {error}")),
        };
        let reason = audited.report.reason();
        match audited.report.verdict() {
            Verdict::Right => {
                self.last = audited.file.map(|file| (hash, Arc::new(file)));
                Judgement::Right
            }
            Verdict::False => Judgement::False(reason),
            Verdict::Undecided => Judgement::Undecided(reason),
        }
    }

    /// The leaf file that a hash names, wherever it is; kept for later.
    async fn file(&self, id: u64, data_hash: Hash) -> Result<Vec<u8>, String> {
        let kept = self
            .files
            .keep
            .as_ref()
            .map(|folder| folder.join(format!("{}.jsonl", data_hash.digits())));
        if let Some(kept) = &kept
            && let Ok(bytes) = tokio::fs::read(kept).await
            && sha256(&bytes) == data_hash
        {
            return Ok(bytes);
        }
        let mut told = Vec::new();
        for source in &self.files.sources {
            match source
                .read(id, Some(data_hash), self.files.limits.bytes)
                .await
            {
                Ok(bytes) if sha256(&bytes) == data_hash => {
                    if let Some(kept) = &kept
                        && let Err(error) = keep(kept, &bytes).await
                    {
                        tracing::warn!(error = format!("{error:#}"), "a leaf file was not kept");
                    }
                    return Ok(bytes);
                }
                Ok(bytes) => told.push(format!(
                    "{} has another file, {}",
                    source.place(id, Some(data_hash)),
                    sha256(&bytes)
                )),
                Err(error) => told.push(format!("{error:#}")),
            }
        }
        Err(told.join("; "))
    }

    /// The leaf file of the batch before; `None` for batch 1.
    async fn before(
        &self,
        contract: &Contract,
        committed: &Committed,
        head: &Block,
    ) -> Result<Result<Option<Arc<LeafFile>>, String>, RpcError> {
        let id = committed.header.id.saturating_sub(1);
        if id == 0 {
            return Ok(Ok(None));
        }
        if let Some((hash, file)) = &self.last
            && *hash == committed.header.prev_hash
        {
            return Ok(Ok(Some(Arc::clone(file))));
        }
        let parent = contract.committed(id, head).await?;
        let Some(parent) = parent.filter(|it| it.hash == committed.header.prev_hash) else {
            return Ok(Err(format!(
                "the chain holds another batch {id} than the parent"
            )));
        };
        let file = match self.file(id, parent.header.data_hash).await {
            Ok(bytes) => {
                LeafFile::parse(&bytes, &self.files.limits).map_err(|error| error.to_string())
            }
            Err(why) => Err(why),
        };
        let file = file.map(|file| Some(Arc::new(file)));
        Ok(file.map_err(|why| format!("batch {id}, before it, has no leaf file: {why}")))
    }

    /// Reads the deposits of the blocks that are new; all of them anew after a reorganisation.
    async fn read_deposits(&mut self, contract: &Contract, head: &Block) -> Result<(), RpcError> {
        let stands = match self.read_to {
            Some(block) => contract
                .block_at(block.number)
                .await?
                .is_some_and(|it| it.hash == block.hash),
            None => false,
        };
        if !stands {
            self.deposits = Arc::default();
        }
        let from = self
            .read_to
            .filter(|_| stands)
            .map_or(0, |block| block.number + 1);
        if from <= head.number {
            let new = contract.deposits(from, head.number).await?;
            Arc::make_mut(&mut self.deposits).extend(new);
        }
        self.read_to = Some(*head);
        Ok(())
    }
}

/// Writes a file in one step: whoever reads it finds all of it or nothing.
async fn keep(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let unfinished = path.with_extension("part");
    tokio::fs::write(&unfinished, bytes)
        .await
        .with_context(|| format!("write {}", unfinished.display()))?;
    tokio::fs::rename(&unfinished, path)
        .await
        .with_context(|| format!("write {}", path.display()))
}
