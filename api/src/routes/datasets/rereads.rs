//! Answers that take long: while the bytes of a dataset leave, it is looked at again whether they may.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use axum::body::Bytes as Piece;
use comptoir_domain::id::AccountId;
use comptoir_store::{
    datasets,
    entitlements::{self, Standing},
    objects::ReadPartError,
    pool,
};
use futures::{Stream, TryStreamExt as _, stream};
use sqlx::PgPool;
use tokio::time::{Duration, Instant};

use super::content::Place;
use crate::AppState;

/// After so many bytes of one answer its right is looked at again,
const RECHECK_BYTES: u64 = 64 << 20;
/// and after so much time.
const RECHECK_AFTER: Duration = Duration::from_mins(1);
/// Connections that look, each with one statement at a time.
const CONNECTIONS: u32 = 4;

/// Looks at rights again, by a statement whose plan is kept. Clones share the connections, which are opened with the first answer that takes long.
#[derive(Clone, Default)]
pub struct Rereads(Arc<OnceLock<PgPool>>);

impl Rereads {
    fn db(&self, of: &PgPool) -> &PgPool {
        self.0.get_or_init(|| pool::keeping_plans(of, CONNECTIONS))
    }
}

impl fmt::Debug for Rereads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rereads").finish_non_exhaustive()
    }
}

/// Why an answer ends before its last byte.
#[derive(Debug, thiserror::Error)]
pub(super) enum Cut {
    #[error("read a file of a dataset")]
    Read(#[from] ReadPartError),
    #[error("the right is over")]
    RightIsOver,
    #[error("look at the right again")]
    Database(#[from] sqlx::Error),
}

/// What is being read, by whom.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reads {
    pub account: AccountId,
    pub place: Place,
    /// Else it is the reader's own, or a sample: everybody's, until it is blocked.
    pub needs_right: bool,
}

impl Reads {
    async fn are_allowed(&self, state: &AppState) -> sqlx::Result<bool> {
        let mut connection = state.rereads.db(&state.db).acquire().await?;
        if !self.needs_right {
            let blocked_by = datasets::blocked_by(&mut connection, self.place.0).await?;
            return Ok(blocked_by.is_none());
        }
        let now = state.now();
        let standing = entitlements::standing(&mut connection, self.account, self.place, now);
        Ok(matches!(standing.await?, Standing::Active(_)))
    }
}

/// The rest of an answer, for as long as it may be read.
pub(super) fn while_allowed(
    state: AppState,
    reads: Reads,
    pieces: impl Stream<Item = Result<Piece, ReadPartError>> + Send + Unpin + 'static,
) -> impl Stream<Item = Result<Piece, Cut>> + Send + 'static {
    let begin = (state, pieces, 0_u64, Instant::now());
    stream::try_unfold(begin, move |(state, mut pieces, sent, since)| async move {
        let is_due = sent >= RECHECK_BYTES || since.elapsed() >= RECHECK_AFTER;
        let (sent, since) = if is_due {
            if !reads.are_allowed(&state).await? {
                return Err(Cut::RightIsOver);
            }
            (0, Instant::now())
        } else {
            (sent, since)
        };
        let piece = pieces.try_next().await?;
        Ok(piece.map(|piece| {
            let sent = sent.saturating_add(piece.len() as u64);
            (piece, (state, pieces, sent, since))
        }))
    })
}
