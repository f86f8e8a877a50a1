//! The attempts that a worker holds, and what is to be reported of each.
//!
//! Pure bookkeeping: what the server says goes in, what to tell it comes out.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use comptoir_domain::{
    digest::Sha256,
    id::{AttemptId, LeaseToken, WorkerId},
};
use comptoir_wire::{
    REPORTS_MAX, SELF_CANCEL_AFTER_MS,
    encoded::Base64,
    heartbeat::{HeartbeatReply, Held, LeaseState},
    seal::{result_sha256, seal},
    work::{Ack, AckOutcome, Failure, FailureCause, Report, Reveal, Seal, WorkReply, WorkRequest},
};
use tokio_util::sync::CancellationToken;

use super::{
    attempt::{self, Computed, Outcome},
    folder::Scratch,
};
use crate::engine::{Code, Output};

/// The word for an attempt that was given back because its worker ends.
pub const WORKER_STOPPING: &str = "worker_stopping";
const SELF_CANCEL_AFTER: Duration = Duration::from_millis(SELF_CANCEL_AFTER_MS as u64);

/// A result, committed to or about to be.
#[derive(Debug)]
struct Committed {
    salt: [u8; 32],
    sha256: Sha256,
    names: BTreeMap<String, Sha256>,
    files: Vec<Output>,
    compute_ms: u64,
    /// The files are in it.
    _scratch: Scratch,
}

/// How far an attempt is.
#[derive(Debug)]
enum Stage {
    /// A child computes, or its inputs are on their way.
    Computing,
    /// The result is being uploaded.
    Uploading,
    /// The seal is to be reported.
    Sealing(Committed),
    /// The server has the seal; it will order the reveal.
    Sealed(Committed),
    /// The reveal is to be reported.
    Revealing(Committed),
    /// The server lacks an output, which is being uploaded again.
    UploadingAgain(Committed),
    /// The failure is to be reported.
    Failing(Failure),
}

#[derive(Debug)]
struct Attempt {
    token: LeaseToken,
    cancel: CancellationToken,
    /// When the server last said that the lease lives.
    renewed: Instant,
    stage: Stage,
}

/// An attempt whose outputs the server wants again.
#[derive(Debug)]
pub struct Wanted {
    /// Which.
    pub held: Held,
    /// The files.
    pub files: Vec<Output>,
    /// Ends it.
    pub cancel: CancellationToken,
}

/// The attempts that a worker holds.
#[derive(Debug)]
pub struct Table {
    worker: WorkerId,
    attempts: BTreeMap<AttemptId, Attempt>,
}

impl Table {
    /// The empty table of a worker.
    #[must_use]
    pub const fn new(worker: WorkerId) -> Self {
        Self {
            worker,
            attempts: BTreeMap::new(),
        }
    }

    /// A lease was granted. `None` if the attempt is known already.
    pub fn insert(&mut self, held: Held, now: Instant) -> Option<CancellationToken> {
        if self.attempts.contains_key(&held.attempt_id) {
            return None;
        }
        let cancel = CancellationToken::new();
        let attempt = Attempt {
            token: held.lease_token,
            cancel: cancel.clone(),
            renewed: now,
            stage: Stage::Computing,
        };
        self.attempts.insert(held.attempt_id, attempt);
        Some(cancel)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.attempts.len()
    }

    /// Is there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.attempts.is_empty()
    }

    /// All leases, for heartbeats.
    #[must_use]
    pub fn leases(&self) -> Vec<Held> {
        self.held(|_| true)
    }

    /// Those for which orders may come.
    #[must_use]
    pub fn awaiting_orders(&self) -> Vec<Held> {
        self.held(|stage| {
            !matches!(
                stage,
                Stage::Revealing(_) | Stage::UploadingAgain(_) | Stage::Failing(_)
            )
        })
    }

    fn held(&self, wanted: impl Fn(&Stage) -> bool) -> Vec<Held> {
        let attempts = self
            .attempts
            .iter()
            .filter(|(_, attempt)| wanted(&attempt.stage));
        let held = attempts.map(|(id, attempt)| Held {
            attempt_id: *id,
            lease_token: attempt.token,
        });
        held.take(REPORTS_MAX).collect()
    }

    /// What is to be reported now; nothing if there is nothing.
    #[must_use]
    pub fn reports(&self) -> Option<WorkRequest> {
        let mut request = WorkRequest::default();
        for (id, attempt) in self.attempts.iter().take(REPORTS_MAX) {
            let (attempt_id, lease_token) = (*id, attempt.token);
            match &attempt.stage {
                Stage::Computing
                | Stage::Uploading
                | Stage::Sealed(_)
                | Stage::UploadingAgain(_) => {}
                Stage::Sealing(result) => request.seals.push(Seal {
                    attempt_id,
                    lease_token,
                    seal: seal(self.worker, attempt_id, &result.salt, result.sha256),
                    compute_ms: result.compute_ms,
                }),
                Stage::Revealing(result) => request.reveals.push(Reveal {
                    attempt_id,
                    lease_token,
                    salt: Base64(result.salt),
                    result_sha256: result.sha256,
                    outputs: result.names.clone(),
                }),
                Stage::Failing(failure) => request.failures.push(failure.clone()),
            }
        }
        let has_none =
            request.seals.is_empty() && request.reveals.is_empty() && request.failures.is_empty();
        (!has_none).then_some(request)
    }

    /// The child of an attempt is done.
    pub fn note_computed(&mut self, id: AttemptId) {
        if let Some(attempt) = self.attempts.get_mut(&id)
            && matches!(attempt.stage, Stage::Computing)
        {
            attempt.stage = Stage::Uploading;
        }
    }

    /// An attempt ended.
    pub fn end(&mut self, id: AttemptId, outcome: Outcome, scratch: Scratch) {
        let Some(attempt) = self.attempts.get_mut(&id) else {
            return;
        };
        if !matches!(attempt.stage, Stage::Computing | Stage::Uploading) {
            return;
        }
        match outcome {
            Outcome::Computed(Computed {
                outputs,
                compute_ms,
            }) => {
                let names: BTreeMap<_, _> = outputs
                    .iter()
                    .map(|it| (it.name.clone(), it.sha256))
                    .collect();
                attempt.stage = Stage::Sealing(Committed {
                    salt: salt(),
                    sha256: result_sha256(&names),
                    names,
                    files: outputs,
                    compute_ms,
                    _scratch: scratch,
                });
            }
            Outcome::Failed(failure) => {
                tracing::warn!(attempt = %id, cause = ?failure.cause, failure.code, failure.detail, "attempt failed");
                attempt.stage = Stage::Failing(failure);
            }
            Outcome::Dropped => self.give_up(id, "the attempt was stopped"),
        }
    }

    /// An attempt could not begin.
    pub fn fail_for_machine(&mut self, id: AttemptId, detail: &str) {
        if let Some(attempt) = self.attempts.get_mut(&id) {
            let held = Held {
                attempt_id: id,
                lease_token: attempt.token,
            };
            attempt.stage = Stage::Failing(attempt::failure(
                held,
                FailureCause::Worker,
                Code::Machine.as_str(),
                detail,
            ));
        }
    }

    /// Gives up an attempt without a report.
    pub fn give_up(&mut self, id: AttemptId, reason: &str) {
        if let Some(attempt) = self.attempts.remove(&id) {
            tracing::info!(attempt = %id, reason, "attempt dropped");
            attempt.cancel.cancel();
        }
    }

    /// Gives up all.
    pub fn give_up_all(&mut self, reason: &str) {
        while let Some(id) = self.attempts.keys().next().copied() {
            self.give_up(id, reason);
        }
    }

    /// Gives back what still computes, or with `all` everything that has no accepted result.
    pub fn give_back(&mut self, all: bool) {
        for (id, attempt) in &mut self.attempts {
            let is_open = all && !matches!(attempt.stage, Stage::Failing(_));
            if is_open || matches!(attempt.stage, Stage::Computing) {
                let held = Held {
                    attempt_id: *id,
                    lease_token: attempt.token,
                };
                attempt.stage = Stage::Failing(attempt::failure(
                    held,
                    FailureCause::Worker,
                    WORKER_STOPPING,
                    "the worker was asked to stop",
                ));
                attempt.cancel.cancel();
                tracing::info!(attempt = %id, "attempt given back");
            }
        }
    }

    /// Takes what an exchange said, leases aside. Returns attempts whose outputs are to be uploaded again.
    pub fn take(&mut self, reply: &WorkReply) -> Vec<Wanted> {
        let wanted = reply
            .acks
            .iter()
            .filter_map(|ack| self.take_ack(ack))
            .collect();
        for order in &reply.reveal {
            self.advance(order.attempt_id, |stage| match stage {
                // The order proves that the seal has arrived, even if its ack was lost.
                Stage::Sealing(result) | Stage::Sealed(result) => Stage::Revealing(result),
                other => other,
            });
        }
        for id in &reply.cancel {
            self.give_up(*id, "the job has ended or the lease is lost");
        }
        wanted
    }

    fn take_ack(&mut self, ack: &Ack) -> Option<Wanted> {
        let id = ack.attempt_id;
        let attempt = self.attempts.get(&id)?;
        let answers = match ack.report {
            Report::Seal => matches!(attempt.stage, Stage::Sealing(_)),
            Report::Reveal => matches!(attempt.stage, Stage::Revealing(_)),
            Report::Failure => matches!(attempt.stage, Stage::Failing(_)),
        };
        if !answers {
            return None;
        }
        match (ack.report, ack.outcome) {
            (Report::Seal, AckOutcome::Accepted) => self.advance(id, |stage| match stage {
                Stage::Sealing(result) => Stage::Sealed(result),
                other => other,
            }),
            (Report::Reveal, AckOutcome::NotOrdered) => self.advance(id, |stage| match stage {
                Stage::Revealing(result) => Stage::Sealed(result),
                other => other,
            }),
            (Report::Reveal, AckOutcome::BlobMissing) => return self.upload_again(id),
            (Report::Reveal, AckOutcome::Accepted) => {
                tracing::info!(attempt = %id, "result taken");
                self.attempts.remove(&id);
            }
            (Report::Failure, AckOutcome::Accepted) => {
                self.attempts.remove(&id);
            }
            (_, AckOutcome::StaleLease) => self.give_up(id, "the lease is gone"),
            (report, outcome) => {
                tracing::error!(attempt = %id, ?report, ?outcome, "the server refused a report");
                self.give_up(id, "the server refused its report");
            }
        }
        None
    }

    fn upload_again(&mut self, id: AttemptId) -> Option<Wanted> {
        self.advance(id, |stage| match stage {
            Stage::Revealing(result) => Stage::UploadingAgain(result),
            other => other,
        });
        let attempt = self.attempts.get(&id)?;
        let Stage::UploadingAgain(result) = &attempt.stage else {
            return None;
        };
        tracing::warn!(attempt = %id, "the server lacks an output; uploading again");
        let held = Held {
            attempt_id: id,
            lease_token: attempt.token,
        };
        Some(Wanted {
            held,
            files: result.files.clone(),
            cancel: attempt.cancel.clone(),
        })
    }

    /// Outputs were uploaded again.
    pub fn note_uploaded_again(&mut self, id: AttemptId) {
        self.advance(id, |stage| match stage {
            Stage::UploadingAgain(result) => Stage::Revealing(result),
            other => other,
        });
    }

    fn advance(&mut self, id: AttemptId, to: impl FnOnce(Stage) -> Stage) {
        if let Some(attempt) = self.attempts.get_mut(&id) {
            let stage = std::mem::replace(&mut attempt.stage, Stage::Computing);
            attempt.stage = to(stage);
        }
    }

    /// Takes the answer to heartbeats that were sent at a moment.
    pub fn take_heartbeats(&mut self, reply: &HeartbeatReply, sent: Instant) {
        for lease in &reply.leases {
            match lease.status {
                LeaseState::Ok => {
                    if let Some(attempt) = self.attempts.get_mut(&lease.attempt_id) {
                        attempt.renewed = attempt.renewed.max(sent);
                    }
                }
                LeaseState::Lost => self.give_up(lease.attempt_id, "the lease is lost"),
                LeaseState::Cancelled => self.give_up(lease.attempt_id, "the job has ended"),
            }
        }
    }

    /// Drops what has not been renewed for too long: it will be somebody else's. Was there any?
    pub fn give_up_unrenewed(&mut self, now: Instant) -> bool {
        let ids: Vec<_> = self
            .attempts
            .iter()
            .filter(|(_, attempt)| {
                now.saturating_duration_since(attempt.renewed) >= SELF_CANCEL_AFTER
            })
            .map(|(id, _)| *id)
            .collect();
        for id in &ids {
            self.give_up(*id, "no heartbeat was answered for too long");
        }
        !ids.is_empty()
    }
}

fn salt() -> [u8; 32] {
    let mut salt = [0; 32];
    aws_lc_rs::rand::fill(&mut salt).expect("the operating system gives random bytes");
    salt
}

#[cfg(test)]
mod tests;
