//! One attempt, from lease to uploaded result: fetch, compute in a child, report, upload.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use comptoir_domain::{
    digest::Sha256,
    job::{Cause, Device},
    name::to_remark,
};
use comptoir_wire::{
    attempt::EventKind,
    dataset::{SealedDataset, SealedFile},
    heartbeat::Held,
    work::{BlobSize, Failure, FailureCause, Lease},
};
use reqwest::StatusCode;
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    cache::Cache,
    client::{Client, Purpose},
    display::{Bar, Display},
    streams::{self, Pace, Stream},
    transfer::{self, FetchError, Fetcher, GaveUp, SealedError},
};
use crate::engine::{
    self, Code, Description, Event, Job, JobTask, Launcher, Limits, Output, Segment, Task,
    limits::FILE_BYTES_MAX,
};

/// Events that wait for the network; then the child waits.
const EVENTS_WAITING_MAX: usize = 256;
/// Checkpoints that wait for their upload; then the child waits.
const SEGMENTS_WAITING_MAX: usize = 2;
/// How far the server's clock may be from this one: a job is not ended for that.
const CLOCK_SPARE: Duration = Duration::from_mins(1);
/// Bytes of all inputs of one attempt at most.
pub(super) const INPUT_BYTES_MAX: u64 = 64 << 30;
/// No job runs longer, whatever its deadline says.
pub(super) const WALL_MAX: Duration = Duration::from_hours(30 * 24);

/// What attempts of one worker share.
#[derive(Debug)]
pub struct Workshop {
    /// The server.
    pub client: Client,
    /// Starts children.
    pub launcher: Launcher,
    /// Blobs at hand.
    pub cache: Cache,
    /// Where tensors live.
    pub device: Device,
    /// Threads of libtorch.
    pub threads: u16,
    /// Most memory that a job may need, in bytes.
    pub memory_bytes: u64,
    /// Shows progress.
    pub display: Display,
}

/// A result that is uploaded.
#[derive(Debug)]
pub struct Computed {
    /// The files, which the server may want again.
    pub outputs: Vec<Output>,
    /// How long the child ran.
    pub compute_ms: u64,
}

/// How an attempt ends.
#[derive(Debug)]
pub enum Outcome {
    /// With a result.
    Computed(Computed),
    /// Without one.
    Failed(Failure),
    /// It is not this worker's any more: nothing is reported.
    Dropped,
}

/// Why an attempt has no result.
enum Stop {
    Dropped,
    Failed {
        cause: FailureCause,
        code: String,
        detail: String,
    },
}

impl Stop {
    fn worker(code: &str, detail: impl std::fmt::Display) -> Self {
        Self::Failed {
            cause: FailureCause::Worker,
            code: code.to_owned(),
            detail: detail.to_string(),
        }
    }
}

impl From<engine::Failure> for Stop {
    fn from(failure: engine::Failure) -> Self {
        let cause = match failure.cause() {
            Cause::Client => FailureCause::Client,
            Cause::Worker | Cause::Operator | Cause::Chain => FailureCause::Worker,
        };
        Self::Failed {
            cause,
            code: failure.code.as_str().to_owned(),
            detail: failure.detail,
        }
    }
}

/// A failure in the words of the protocol.
#[must_use]
pub fn failure(held: Held, cause: FailureCause, code: &str, detail: &str) -> Failure {
    Failure {
        attempt_id: held.attempt_id,
        lease_token: held.lease_token,
        cause,
        code: code.to_owned(),
        // Some of it is what a library or a program said.
        detail: to_remark(detail, comptoir_wire::DETAIL_CHARS_MAX),
    }
}

impl Workshop {
    /// Runs an attempt to its end. `computed` is called when the child is done and only uploads remain.
    pub async fn run(
        &self,
        lease: Lease,
        scratch: &Path,
        cancel: &CancellationToken,
        computed: impl FnOnce(),
    ) -> Outcome {
        let held = Held {
            attempt_id: lease.attempt_id,
            lease_token: lease.lease_token,
        };
        match self.perform(lease, held, scratch, cancel, computed).await {
            Ok(computed) if !cancel.is_cancelled() => Outcome::Computed(computed),
            Ok(_) | Err(Stop::Dropped) => Outcome::Dropped,
            Err(_) if cancel.is_cancelled() => Outcome::Dropped,
            Err(Stop::Failed {
                cause,
                code,
                detail,
            }) => Outcome::Failed(failure(held, cause, &code, &detail)),
        }
    }

    async fn perform(
        &self,
        lease: Lease,
        held: Held,
        scratch: &Path,
        cancel: &CancellationToken,
        computed: impl FnOnce(),
    ) -> Result<Computed, Stop> {
        self.check(&lease)?;
        let bar = self.display.bar(held.attempt_id, lease.job.kind());
        let blobs = self.fetch(&lease, held, scratch, cancel).await?;
        let dataset = self.fetch_dataset(&lease, held, scratch, cancel).await?;
        let blob_bytes_max = lease.limits.blob_bytes_max;
        let limits = limits(&lease);
        let description = Description {
            task: Task::Job(Box::new(JobTask {
                spec: lease.job.clone(),
                blobs,
                dataset,
                resume: lease.resume.map(|_| PathBuf::from(RESUME)),
                until_step: lease.until_step,
            })),
            device: self.device,
            threads: self.threads,
        };
        let started = Instant::now();
        let job = self
            .launcher
            .spawn(limits, description, scratch)
            .map_err(|error| Stop::worker("machine", format_args!("start a child: {error}")))?;
        let outputs = self.follow(job, held, cancel, &bar).await?;
        let compute_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        computed();
        for output in &outputs {
            if output.bytes > blob_bytes_max {
                let detail = format!(
                    "output `{}` has {} bytes; at most {blob_bytes_max} are taken",
                    output.name, output.bytes
                );
                return Err(too_large(detail));
            }
        }
        transfer::upload_outputs(&self.client, held, &outputs, cancel)
            .await
            .map_err(refused_upload)?;
        Ok(Computed {
            outputs,
            compute_ms,
        })
    }

    /// Refuses what this worker cannot run, whatever the server believes.
    fn check(&self, lease: &Lease) -> Result<(), Stop> {
        lease
            .job
            .validate()
            .map_err(|error| Stop::worker("invalid_lease", error))?;
        let listed: std::collections::BTreeSet<_> =
            lease.blobs.iter().map(|blob| blob.sha256).collect();
        if listed != lease.job.blobs() || listed.len() != lease.blobs.len() {
            return Err(Stop::worker(
                "invalid_lease",
                "the lease does not list the blobs of its job, each once",
            ));
        }
        let checkpoint = lease.resume.map(|checkpoint| checkpoint.bytes);
        let sizes = lease.blobs.iter().map(|blob| blob.bytes).chain(checkpoint);
        let bytes = sizes.fold(0_u64, u64::saturating_add);
        if bytes > INPUT_BYTES_MAX {
            let detail =
                format!("the inputs have {bytes} bytes; at most {INPUT_BYTES_MAX} are fetched");
            return Err(Stop::worker("input_too_large", detail));
        }
        let needed = lease.limits.memory_bytes;
        if needed > self.memory_bytes {
            let detail = format!(
                "the job needs {needed} bytes of memory; this worker gives {}",
                self.memory_bytes
            );
            return Err(Stop::worker("memory_short", detail));
        }
        Ok(())
    }

    async fn fetch(
        &self,
        lease: &Lease,
        held: Held,
        scratch: &Path,
        cancel: &CancellationToken,
    ) -> Result<BTreeMap<Sha256, PathBuf>, Stop> {
        let fetcher = Fetcher {
            client: &self.client,
            cache: &self.cache,
            purpose: Purpose::Attempt(held),
            cancel,
        };
        let mut files = BTreeMap::new();
        for blob in &lease.blobs {
            let name = PathBuf::from(format!("blob-{}", blob.sha256));
            fetcher
                .fetch(*blob, &scratch.join(&name))
                .await
                .map_err(refused_input)?;
            files.insert(blob.sha256, name);
        }
        if let Some(checkpoint) = lease.resume {
            let blob = BlobSize {
                sha256: checkpoint.sha256,
                bytes: checkpoint.bytes,
            };
            fetcher
                .fetch(blob, &scratch.join(RESUME))
                .await
                .map_err(refused_input)?;
            tracing::info!(attempt = %held.attempt_id, step = checkpoint.step, "resuming from a checkpoint");
        }
        Ok(files)
    }

    /// Fetches the files of the job's dataset, if it names one, as they are sealed, and what opens them: that goes to the child alone, and
    /// nothing is kept for other attempts.
    async fn fetch_dataset(
        &self,
        lease: &Lease,
        held: Held,
        scratch: &Path,
        cancel: &CancellationToken,
    ) -> Result<Option<SealedDataset>, Stop> {
        let Some((version, files)) = lease.job.dataset() else {
            return Ok(None);
        };
        let open = || self.client.open_dataset(held);
        let opened = transfer::insist(cancel, "opening a dataset", open).await;
        let dataset = opened.map_err(refused_dataset)?;
        let given: std::collections::BTreeSet<_> =
            dataset.files.iter().map(|file| file.sha256).collect();
        let is_fit = dataset.version_id == version
            && given == files
            && dataset.files.len() == files.len()
            && dataset.files.iter().all(SealedFile::is_whole);
        if !is_fit {
            let detail = "the files of the dataset are not those of the job";
            return Err(Stop::worker("invalid_lease", detail));
        }
        let sizes = dataset.files.iter().map(|file| file.bytes);
        let bytes = sizes.fold(0_u64, u64::saturating_add);
        if bytes > INPUT_BYTES_MAX {
            let detail =
                format!("the dataset has {bytes} bytes; at most {INPUT_BYTES_MAX} are fetched");
            return Err(Stop::worker("input_too_large", detail));
        }
        for file in &dataset.files {
            transfer::fetch_sealed(&self.client, held, (file, scratch), cancel)
                .await
                .map_err(refused_sealed)?;
        }
        Ok(Some(dataset))
    }

    /// Passes on what a child tells, until it ends and everything is passed on.
    async fn follow(
        &self,
        job: Job,
        held: Held,
        cancel: &CancellationToken,
        bar: &Bar,
    ) -> Result<Vec<Output>, Stop> {
        let (events, events_read) = mpsc::channel(EVENTS_WAITING_MAX);
        let (segments, segments_read) = mpsc::channel(SEGMENTS_WAITING_MAX);
        let stream = Stream {
            client: &self.client,
            held,
            cancel,
        };
        let (last, (), ()) = tokio::join!(
            drive(job, (events, segments), cancel, bar),
            stream.events(events_read),
            stream.segments(segments_read),
        );
        match last {
            Event::Done { outputs } => Ok(outputs),
            Event::Failed(failure) => Err(failure.into()),
            Event::Cancelled => Err(Stop::Dropped),
            Event::Progress { .. }
            | Event::Metrics(_)
            | Event::Segment(_)
            | Event::Class(_)
            | Event::Facts(_) => Err(Stop::worker(
                Code::Protocol.as_str(),
                "the child ended a job with something else than a result",
            )),
        }
    }
}

/// The checkpoint to go on from, in the scratch folder.
const RESUME: &str = "resume";

/// Takes a child's events to its last one, which it returns. Cancelling ends the child.
async fn drive(
    mut job: Job,
    (events, segments): (mpsc::Sender<EventKind>, mpsc::Sender<Segment>),
    cancel: &CancellationToken,
    bar: &Bar,
) -> Event {
    let mut pace = Pace::new(Instant::now());
    loop {
        let event = tokio::select! {
            biased;
            () = cancel.cancelled() => {
                job.handle().cancel();
                return job.last().await;
            }
            event = job.next() => event,
        };
        let Some(event) = event else {
            return Event::Failed(engine::Failure::new(
                Code::Machine,
                "the child's end was not told",
            ));
        };
        let pass_on = async {
            match event {
                Event::Progress { done, total } => {
                    bar.progress(done, total);
                    if pace.is_due(Instant::now()) {
                        events
                            .send(EventKind::Progress { done, of: total })
                            .await
                            .ok();
                    }
                    None
                }
                Event::Metrics(epoch) => {
                    bar.epoch(&epoch);
                    events.send(streams::metrics(&epoch)).await.ok();
                    None
                }
                Event::Segment(segment) => {
                    segments.send(segment).await.ok();
                    None
                }
                last => Some(last),
            }
        };
        // Waiting for room must not keep a cancelled child alive.
        let last = tokio::select! {
            last = pass_on => last,
            () = cancel.cancelled() => None,
        };
        if let Some(last) = last {
            return last;
        }
    }
}

fn refused_input(error: FetchError) -> Stop {
    match &error {
        FetchError::Cancelled => Stop::Dropped,
        FetchError::Refused { error: call, .. } if streams::lease_is_gone(call) => Stop::Dropped,
        FetchError::Refused { .. } => Stop::worker("input_refused", error),
        FetchError::Corrupt(_) => Stop::worker("input_corrupt", error),
        FetchError::Disk(_) => Stop::worker(Code::Machine.as_str(), error),
    }
}

fn refused_dataset(gave_up: GaveUp) -> Stop {
    match gave_up {
        GaveUp::Cancelled => Stop::Dropped,
        GaveUp::Refused(error) if streams::lease_is_gone(&error) => Stop::Dropped,
        GaveUp::Refused(error) => Stop::worker("input_refused", error),
    }
}

fn refused_sealed(error: SealedError) -> Stop {
    match error {
        SealedError::Disk(error) => Stop::worker(Code::Machine.as_str(), error),
        SealedError::GaveUp(gave_up) => refused_dataset(gave_up),
    }
}

fn refused_upload(gave_up: GaveUp) -> Stop {
    match gave_up {
        GaveUp::Cancelled => Stop::Dropped,
        GaveUp::Refused(error) if streams::lease_is_gone(&error) => Stop::Dropped,
        GaveUp::Refused(error) if error.has_status(StatusCode::PAYLOAD_TOO_LARGE) => {
            too_large(error.to_string())
        }
        GaveUp::Refused(error) => Stop::worker("upload_refused", error),
    }
}

/// No worker could deliver it.
fn too_large(detail: String) -> Stop {
    Stop::Failed {
        cause: FailureCause::Client,
        code: "output_too_large".to_owned(),
        detail,
    }
}

/// What an attempt may use: the memory that its job was quoted to need, however much this worker has to give.
fn limits(lease: &Lease) -> Limits {
    Limits {
        memory_bytes: lease.limits.memory_bytes,
        wall: wall(lease.deadline_at),
        file_bytes: lease.limits.blob_bytes_max.min(FILE_BYTES_MAX),
    }
}

/// From now to a deadline.
fn wall(deadline: OffsetDateTime) -> Duration {
    let left = deadline - OffsetDateTime::from(std::time::SystemTime::now());
    Duration::try_from(left)
        .unwrap_or_default()
        .saturating_add(CLOCK_SPARE)
        .min(WALL_MAX)
}

#[cfg(test)]
mod tests {
    use comptoir_domain::{
        id::{AttemptId, LeaseToken},
        job::{InferenceSpec, JobSpec},
    };

    use super::*;

    #[test]
    fn a_job_gets_the_memory_that_it_was_quoted() {
        let digest = Sha256::of(b"");
        let lease = Lease {
            attempt_id: AttemptId::generate(),
            lease_token: LeaseToken::generate(),
            expires_at: OffsetDateTime::UNIX_EPOCH,
            deadline_at: OffsetDateTime::UNIX_EPOCH,
            job: JobSpec::Inference(InferenceSpec {
                program: digest,
                weights: None,
                inputs: BTreeMap::new(),
                batch_size: 1,
            }),
            blobs: Vec::new(),
            resume: None,
            until_step: None,
            limits: comptoir_wire::work::Limits {
                memory_bytes: 300 << 20,
                blob_bytes_max: u64::MAX,
            },
        };
        let limits = limits(&lease);
        assert_eq!(limits.memory_bytes, 300 << 20);
        assert_eq!(limits.file_bytes, FILE_BYTES_MAX);
    }

    #[test]
    fn no_deadline_makes_a_limit_that_is_none() {
        assert_eq!(wall(OffsetDateTime::UNIX_EPOCH), CLOCK_SPARE);
        assert_eq!(
            wall(time::macros::datetime!(9999-12-31 23:59:59 UTC)),
            WALL_MAX
        );
    }
}
