//! Judges the batches that the contract holds: finds the leaf file, the batch before and the deposits, and recomputes.

use std::{collections::HashMap, sync::Arc};

use comptoir_audit::{
    Address, Before, Committed, Deposit, Evidence, Hash, LeafFile, Settled, Verdict, audit,
    chain::{Block, Contract},
    rpc::RpcError,
};

use super::{decide::Judgement, files::Files, history::History};

/// Judgements that are remembered.
const KNOWN_MAX: usize = 4_096;

/// What a batch is judged by, beside the chain.
struct Gathered {
    bytes: Vec<u8>,
    /// The file of the batch before; `None` for batch 1.
    before: Result<Option<Arc<LeafFile>>, String>,
    earlier: Result<Arc<Settled>, String>,
}

/// Judges batches, and remembers what it knows.
#[derive(Debug)]
pub struct Judge {
    files: Files,
    platform: Option<Address>,
    known: HashMap<Hash, Judgement>,
    /// The leaf file of the batch that was judged last, by the hash of its header.
    last: Option<(Hash, Arc<LeafFile>)>,
    /// What was settled before.
    history: History,
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
            history: History::default(),
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
        let bytes = match self.files.read(id, committed.header.data_hash).await {
            Ok(bytes) => bytes,
            Err(why) => return Ok(Judgement::Unavailable(why)),
        };
        let before = self.before(contract, &committed, head).await?;
        self.read_deposits(contract, head).await?;
        let earlier = self
            .history
            .before(contract, &self.files, &committed, head)
            .await?;
        let evidence = Gathered {
            bytes,
            before,
            earlier,
        };
        let judgement = self.recompute(committed, evidence).await;
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
    async fn recompute(&mut self, committed: Committed, gathered: Gathered) -> Judgement {
        let (limits, platform) = (self.files.limits, self.platform);
        let deposits = Arc::clone(&self.deposits);
        let audited = tokio::task::spawn_blocking(move || {
            let audited = audit(&Evidence {
                file: &gathered.bytes,
                limits,
                committed: Ok(&committed),
                before: match &gathered.before {
                    Ok(None) => Before::Nothing,
                    Ok(Some(file)) => Before::File(file),
                    Err(why) => Before::Missing(why),
                },
                earlier: gathered.earlier.as_deref().map_err(String::as_str),
                deposits: Ok(&deposits),
                platform,
                bills: &[],
            });
            (audited, committed)
        });
        let (audited, committed) = match audited.await {
            Ok(done) => done,
            Err(error) => return Judgement::Undecided(format!("the audit was cut short: {error}")),
        };
        let reason = audited.report.reason();
        match audited.report.verdict() {
            Verdict::Right => {
                if let Some(file) = audited.file {
                    self.history.settle(&committed, &file);
                    self.last = Some((committed.hash, Arc::new(file)));
                }
                Judgement::Right
            }
            Verdict::False => Judgement::False(reason),
            Verdict::Undecided => Judgement::Undecided(reason),
        }
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
        let file = match self.files.read(id, parent.header.data_hash).await {
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
