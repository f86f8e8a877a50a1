//! After a restored backup: takes in the batches that the contract has and the database does not, their headers from the
//! contract's events, their items from the published leaf files. Each is checked against the hash that the contract holds.

use std::time::Duration;

use alloy::primitives::B256;
use comptoir_domain::{
    amount::Amount,
    asset::Asset,
    digest::Sha256,
    id::{BatchId, ReceiptId},
    settlement::{
        Domain, Header, Receipt,
        file::{self, InvalidBatch, Sealed},
    },
};
use comptoir_store::{
    PgTransaction,
    batches::{self, NewBatch, SealError},
    leader::{FenceError, Lease},
    objects::{GetError, Objects},
    releases::{self, RestoreError},
    transactions,
};
use sqlx::PgPool;
use time::OffsetDateTime;
use url::Url;

use crate::{
    chain::{Chain, ChainError},
    config::Finality,
    exit::LEAF_FILE_MAX,
    verify::{self, VerifyError},
};

/// What was taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Imported {
    /// Batches that were missing.
    pub batches: u64,
    /// Receipts that they settle.
    pub receipts: u64,
    /// What they released and the ledger did not know, in base units.
    pub released: Amount,
    /// The number of the newest batch now.
    pub last: u64,
}

/// Why nothing was taken in.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A settler runs.
    #[error("a settler leads: stop it first")]
    SettlerLeads,
    /// The database's newest batch is not the one that the chain builds on.
    #[error(
        "batch {number} of the database is not the one on the chain: this is another history, not an older one"
    )]
    OtherHistory {
        /// The database's newest batch.
        number: u64,
    },
    /// A leaf file is not there.
    #[error("read the leaf file of batch {batch}")]
    LeafFile {
        /// Which.
        batch: u64,
        /// What the object store said.
        #[source]
        source: GetError,
    },
    /// A leaf file is none.
    #[error("the leaf file of batch {batch}")]
    Leaves {
        /// Which.
        batch: u64,
        /// What is wrong with it.
        #[source]
        source: InvalidBatch,
    },
    /// A leaf file is another batch's.
    #[error("the leaf file of batch {batch} makes another batch than the contract holds")]
    OtherLeaves {
        /// Which.
        batch: u64,
    },
    /// The backup is too old.
    #[error(
        "batch {batch} settles {missing} receipts that the database does not have: restore a newer backup, or replay the \
         write-ahead log up to them"
    )]
    ReceiptsMissing {
        /// Which.
        batch: u64,
        /// How many.
        missing: u64,
    },
    /// The ledger cannot follow.
    #[error(
        "release what the batches released; where deposits are missing, let the settler run until it has read the chain, stop \
         it, and import again"
    )]
    Restore(#[from] RestoreError),
    /// A batch was not stored.
    #[error("store a batch")]
    Seal(#[from] SealError),
    /// The node.
    #[error("read the chain")]
    Chain(#[from] ChainError),
    /// The headers.
    #[error("read the headers")]
    Headers(#[from] VerifyError),
    /// A settler has taken over meanwhile.
    #[error("lead")]
    Fence(#[from] FenceError),
    /// The database.
    #[error("use the database")]
    Database(#[from] sqlx::Error),
}

/// A batch as the chain and its file have it.
struct Found {
    id: BatchId,
    sealed: Sealed,
    bytes: u64,
}

/// Takes in what is missing, all or nothing, and accepts the nonces that were used meanwhile. Batches that are not final yet
/// are left for the next call.
///
/// # Errors
/// When anything does not fit: the database stays as it is.
pub async fn import(
    (db, objects, asset): (PgPool, Objects, Asset),
    (rpcs, timeout): (&[Url], Duration),
    finality: Finality,
    now: OffsetDateTime,
) -> Result<Imported, ImportError> {
    let chain = Chain::connect(rpcs, timeout, &asset)?;
    chain.check_chain().await?;
    let lease = Lease::take(&db, asset.id, "import", now).await?;
    let lease = lease.ok_or(ImportError::SettlerLeads)?;
    let tips = chain.tips(finality).await?;
    let at = tips.final_.block.hash;
    let ours = batches::standing(&mut *db.acquire().await?, asset.id).await?;
    let (number, hash) = ours.map_or((0, B256::ZERO), |it| (it.header.id, it.hash));
    let last = chain.last_batch(at).await?;
    let mut imported = Imported {
        batches: 0,
        receipts: 0,
        released: Amount::ZERO,
        last: number,
    };
    if last <= number {
        return Ok(imported);
    }
    let domain = Domain::new(asset.chain_id, asset.contract);
    let top = (last, chain.kept(last, at).await?.hash);
    let headers = headers(&chain, domain, top, number).await?;
    if headers.first().is_some_and(|first| first.prev_hash != hash) {
        return Err(ImportError::OtherHistory { number });
    }
    let mut nonces = Vec::new();
    for signer in transactions::signers(&mut *db.acquire().await?, asset.chain_id).await? {
        nonces.push((signer, chain.nonce(signer, tips.head.block.hash).await?));
    }
    let mut tx = db.begin().await?;
    lease.fence().hold(&mut tx).await?;
    for header in headers {
        let found = find(&objects, header).await?;
        complete(&mut tx, &found).await?;
        imported.receipts += header.receipt_count;
        imported.batches += 1;
        imported.last = header.id;
        let said: Vec<_> = found
            .sealed
            .accounts
            .iter()
            .map(|it| {
                (
                    it.account,
                    Amount::from_base(it.payable).unwrap_or(Amount::MAX),
                )
            })
            .collect();
        let seal = format!("{}/import", found.id);
        let released = releases::release_again(&mut tx, asset.id, &said, &seal, now).await?;
        imported.released = Amount::sum([imported.released, released]).unwrap_or(Amount::MAX);
        store(&mut tx, asset.id, &found, &domain, now).await?;
    }
    for (signer, used) in nonces {
        transactions::raise_floor(&mut tx, asset.chain_id, signer, used).await?;
    }
    tx.commit().await?;
    Ok(imported)
}

/// The headers of the batches after `to`, oldest first. Each proves itself by the hash that the one above it names, so any
/// node that has them will do.
async fn headers(
    chain: &Chain,
    domain: Domain,
    top: (u64, B256),
    to: u64,
) -> Result<Vec<Header>, ImportError> {
    let mut failure = None;
    for node in chain.providers() {
        match verify::headers_down(node, domain, chain.contract(), top, to).await {
            Ok(mut headers) => {
                headers.reverse();
                return Ok(headers);
            }
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.map_or(ChainError::NoEndpoint.into(), ImportError::from))
}

/// The leaves that a header was made of, by the file that it names.
async fn find(objects: &Objects, header: Header) -> Result<Found, ImportError> {
    let batch = header.id;
    let name = Sha256(header.data_hash.0);
    let bytes = objects
        .get_all(name, LEAF_FILE_MAX)
        .await
        .map_err(|source| ImportError::LeafFile { batch, source })?;
    let (_, sealed) = file::read(&bytes).map_err(|source| ImportError::Leaves { batch, source })?;
    if sealed.header != header {
        return Err(ImportError::OtherLeaves { batch });
    }
    Ok(Found {
        id: BatchId::generate(),
        sealed,
        bytes: bytes.len() as u64,
    })
}

/// Fails where the database lacks what the batch settles.
async fn complete(tx: &mut PgTransaction<'_>, found: &Found) -> Result<(), ImportError> {
    let ids: Vec<_> = found.sealed.receipts.iter().map(id).collect();
    match batches::missing(tx, &ids).await? {
        0 => Ok(()),
        missing => Err(ImportError::ReceiptsMissing {
            batch: found.sealed.header.id,
            missing,
        }),
    }
}

fn id(receipt: &Receipt) -> ReceiptId {
    ReceiptId(uuid::Uuid::from_bytes(receipt.receipt_id.0))
}

async fn store(
    tx: &mut PgTransaction<'_>,
    asset: i32,
    found: &Found,
    domain: &Domain,
    now: OffsetDateTime,
) -> Result<(), ImportError> {
    let sealed = &found.sealed;
    let items = sealed.receipts.iter();
    let items: Vec<_> = items
        .map(|receipt| (id(receipt), receipt.leaf(domain)))
        .collect();
    let batch = NewBatch {
        id: found.id,
        header: sealed.header,
        hash: sealed.hash,
        data_bytes: found.bytes,
        account_count: sealed.accounts.len() as u64,
        items: &items,
    };
    batches::insert(tx, asset, &batch, now).await?;
    Ok(())
}
