//! The life of a version that is loaded: fetched, started, fed with calls, and ended.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use comptoir_domain::name::to_remark;
use comptoir_wire::{
    DETAIL_CHARS_MAX,
    calls::{CALL_BYTES_MAX, Fault, FaultCause, HostOrder},
    work::BlobSize,
};
use serde_bytes::ByteBuf;
use tokio::time::{Instant as Moment, sleep_until, timeout};
use uuid::Uuid;

use super::{
    Hosting,
    table::{Keeper, Start},
};
use crate::{
    daemon::{
        attempt::{INPUT_BYTES_MAX, WALL_MAX},
        client::Purpose,
        folder::Scratch,
        transfer::{self, FetchError, Fetcher},
    },
    engine::{
        Code, Failure, Host, HostTask, Limits,
        host::{FromHost, Happened, WritingTask},
    },
};

/// How long a version may take to be fetched, and how long to be loaded.
const LOADING_MAX: Duration = Duration::from_mins(10);
/// A child that owes an answer and says nothing for so long is ended.
const SILENCE_MAX: Duration = Duration::from_mins(2);

/// Why a version is not loaded any more.
enum Gone {
    /// Nobody needs it.
    PutAway,
    /// It failed.
    Failed(Fault),
}

impl Gone {
    fn failed(cause: FaultCause, detail: impl std::fmt::Display) -> Self {
        Self::Failed(Fault {
            cause,
            // Some of it is what a library or a program said.
            detail: to_remark(&detail.to_string(), DETAIL_CHARS_MAX),
        })
    }

    fn worker(detail: impl std::fmt::Display) -> Self {
        Self::failed(FaultCause::Worker, detail)
    }
}

impl From<Failure> for Gone {
    fn from(failure: Failure) -> Self {
        let cause = match failure.code {
            Code::InvalidProgram | Code::InvalidWeights => FaultCause::Version,
            _ => FaultCause::Worker,
        };
        Self::failed(cause, failure)
    }
}

impl From<FetchError> for Gone {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::Cancelled => Self::PutAway,
            FetchError::Corrupt(_) => Self::failed(FaultCause::Version, error),
            FetchError::Refused { .. } | FetchError::Disk(_) => Self::worker(error),
        }
    }
}

impl Hosting {
    /// Keeps a version until it is put away or its child ends.
    pub(super) async fn keep(self: Arc<Self>, start: Start) {
        let Start { order, keeper, .. } = start;
        let version = order.version;
        let gone = self.host(&order, &keeper).await;
        let why = match gone {
            Gone::PutAway => None,
            Gone::Failed(fault) => {
                tracing::warn!(%version, cause = ?fault.cause, detail = fault.detail, "a version of a model is not hosted any more");
                Some(fault)
            }
        };
        let waiting = self.table().ended(version, why.clone(), Instant::now());
        if keeper.ended.is_cancelled() {
            self.ending
                .send_modify(|ending| *ending = ending.saturating_sub(1));
        }
        let why = why.unwrap_or_else(|| Fault {
            cause: FaultCause::Worker,
            detail: "the worker does not host the version any more".to_owned(),
        });
        self.outbox.add_fault(waiting, &why);
        self.outbox.tell_hosting();
    }

    async fn host(&self, order: &HostOrder, keeper: &Keeper) -> Gone {
        let started = Instant::now();
        // The memory of those that made room is free once they are gone.
        let mut ending = self.ending.subscribe();
        let gone = ending.wait_for(|ending| *ending == 0).await.is_ok();
        debug_assert!(gone, "its sender lives as long as this");
        let scratch = match Scratch::make(self.scratch.join(format!("host-{}", order.version))) {
            Ok(scratch) => scratch,
            Err(error) => return Gone::worker(format_args!("no scratch folder: {error}")),
        };
        let task = match timeout(LOADING_MAX, self.fetch(order, keeper, scratch.path())).await {
            Ok(Ok(task)) => task,
            Ok(Err(gone)) => return gone,
            Err(_) => return Gone::worker("its files take too long to come"),
        };
        let writing = task.writing.as_ref().map(|it| &it.program);
        let files: Vec<PathBuf> = [Some(&task.program), task.weights.as_ref(), writing]
            .into_iter()
            .flatten()
            .map(|name| scratch.path().join(name))
            .collect();
        let limits = Limits {
            memory_bytes: order.memory_bytes,
            wall: WALL_MAX,
            // It writes none.
            file_bytes: 0,
        };
        let on = (self.workshop.device, self.workshop.threads);
        let host = match self
            .workshop
            .launcher
            .host(limits, on, task, scratch.path())
        {
            Ok(host) => host,
            Err(error) => return Gone::worker(format_args!("start a child: {error}")),
        };
        let loaded = || {
            for file in &files {
                transfer::discard(file);
            }
            self.table().loaded(order.version);
            self.outbox.tell_hosting();
            let loaded_ms = started.elapsed().as_millis();
            tracing::info!(version = %order.version, loaded_ms, "a version of a model is loaded");
        };
        self.feed(order.version, host, keeper, loaded).await
    }

    async fn fetch(
        &self,
        order: &HostOrder,
        keeper: &Keeper,
        scratch: &Path,
    ) -> Result<HostTask, Gone> {
        let writing = order.writing.as_ref();
        let blobs = [
            Some(order.program),
            order.weights,
            writing.map(|it| it.program),
        ];
        let sizes = blobs.iter().flatten().map(|blob| blob.bytes);
        let bytes = sizes.fold(0_u64, u64::saturating_add);
        if bytes > INPUT_BYTES_MAX {
            let detail =
                format!("the version has {bytes} bytes; at most {INPUT_BYTES_MAX} are fetched");
            return Err(Gone::worker(detail));
        }
        let fetcher = Fetcher {
            client: &self.workshop.client,
            cache: &self.workshop.cache,
            purpose: Purpose::Hosting(&order.ticket),
            cancel: &keeper.ended,
        };
        let fetch = async |name: &str, blob: BlobSize| -> Result<PathBuf, FetchError> {
            fetcher.fetch(blob, &scratch.join(name)).await?;
            Ok(name.into())
        };
        Ok(HostTask {
            program: fetch("program", order.program).await?,
            weights: match order.weights {
                Some(weights) => Some(fetch("weights", weights).await?),
                None => None,
            },
            writing: match writing {
                Some(writing) => Some(WritingTask {
                    program: fetch("writing", writing.program).await?,
                    ids: writing.ids.clone(),
                    positions: writing.positions.clone(),
                    logits: writing.logits.clone(),
                    context: writing.context,
                    texts_max: writing.texts_max,
                }),
                None => None,
            },
            batch_max: order.batch_max,
        })
    }

    /// Passes calls to a child and its answers on, until one of both has enough.
    async fn feed(
        &self,
        version: Uuid,
        mut host: Host,
        keeper: &Keeper,
        loaded: impl FnOnce(),
    ) -> Gone {
        let mut loaded = Some(loaded);
        let mut heard = Moment::now();
        let mut is_deaf = false;
        let gone = loop {
            let (has_news, owes) = self.table().waits(version);
            let (has_news, patience) = match (&loaded, owes) {
                (Some(_), _) => (false, Some(LOADING_MAX)),
                (None, true) => (has_news, Some(SILENCE_MAX)),
                (None, false) => (has_news, None),
            };
            tokio::select! {
                () = keeper.ended.cancelled() => break Gone::PutAway,
                () = keeper.wake.notified() => {}
                room = host.room(), if has_news && !is_deaf => match room {
                    Some(room) => {
                        room.send(&self.table().frames(version, Instant::now()));
                        if !owes {
                            heard = Moment::now();
                        }
                    }
                    // It has ended, or will be ended for its silence.
                    None => is_deaf = true,
                },
                happened = host.next() => {
                    match happened {
                        Some(Happened::Said(frames)) => {
                            if let Err(gone) = self.pass_on(version, frames, &mut loaded) {
                                break gone;
                            }
                        }
                        Some(Happened::Ended(failure)) => return failure.into(),
                        None => return Gone::worker("its supervisor has ended"),
                    }
                    tokio::select! {
                        () = keeper.ended.cancelled() => break Gone::PutAway,
                        () = self.outbox.room() => {}
                    }
                    heard = Moment::now();
                }
                () = sleep_since(heard, patience) => break Gone::worker("the child fell silent"),
            }
        };
        host.end().await;
        gone
    }

    /// Passes on what a child says.
    fn pass_on(
        &self,
        version: Uuid,
        frames: Vec<FromHost>,
        loaded: &mut Option<impl FnOnce()>,
    ) -> Result<(), Gone> {
        let mut answers: Vec<(Uuid, bool, ByteBuf)> = Vec::with_capacity(frames.len());
        for frame in frames {
            match (frame, loaded.take()) {
                (FromHost::Loaded, Some(loaded)) => loaded(),
                (
                    FromHost::Answer {
                        id,
                        is_last,
                        answer,
                    },
                    None,
                ) if answer.len() <= CALL_BYTES_MAX => {
                    if self.table().answered(version, id, is_last) {
                        answers.push((id, is_last, answer));
                    }
                }
                _ => return Err(Gone::worker("the child says what it must not")),
            }
        }
        self.outbox.add(answers);
        Ok(())
    }
}

async fn sleep_since(heard: Moment, patience: Option<Duration>) {
    match patience {
        Some(patience) => sleep_until(heard + patience).await,
        None => std::future::pending().await,
    }
}
