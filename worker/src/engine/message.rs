//! What parent and child say to each other over the child's standard input and output: JSON documents, each behind its length.

use std::{collections::BTreeMap, io, path::PathBuf};

use comptoir_domain::{
    digest::Sha256,
    job::{Device, JobSpec},
};
use comptoir_wire::dataset::SealedDataset;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{failure::Failure, host::HostTask};
use crate::{canary::Class, facts::Facts};

/// Longest message in either direction, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Bytes of the length before each message.
pub const LENGTH_BYTES: usize = 4;

/// Parent to child.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Order {
    /// The first message, and the only task of this child.
    Start(Description),
    /// Stop at the next step.
    Cancel,
}

/// What a child is for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// The work.
    pub task: Task,
    /// Where tensors live.
    pub device: Device,
    /// Threads of libtorch; part of the numeric class.
    pub threads: u16,
}

/// The work of a child.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Task {
    /// A job of a client.
    Job(Box<JobTask>),
    /// A version of a model that answers calls. What follows the order is told by [`super::host`].
    Host(HostTask),
    /// Measure the numeric class.
    Canary,
    /// Say what libtorch and which devices are here.
    Facts,
}

/// A job and where its bytes are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobTask {
    /// What to compute.
    pub spec: JobSpec,
    /// A file of the scratch folder for each blob that the specification names, hashes already checked. The folder is the root of the
    /// child's files: a name says nothing of what is above it.
    pub blobs: BTreeMap<Sha256, PathBuf>,
    /// What opens the files of a dataset that the specification names; their sealed bytes are in the scratch folder too.
    #[serde(default)]
    pub dataset: Option<SealedDataset>,
    /// A checkpoint of the same job to go on from, in the scratch folder too.
    pub resume: Option<PathBuf>,
    /// Stop after this optimizer step, tell of no epoch and no segment, and give out the checkpoint; or, where it is the last
    /// step, the trained weights.
    #[serde(default)]
    pub until_step: Option<u64>,
}

/// Child to parent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// So much is done.
    Progress {
        /// Optimizer steps, or batches of inference.
        done: u64,
        /// All of them.
        total: u64,
    },
    /// An epoch has ended.
    Metrics(EpochMetrics),
    /// A segment has ended; its checkpoint is complete on disk.
    Segment(Segment),
    /// The job is done. The last event.
    Done {
        /// What came out, by name: `weights` of training, `outputs` of inference.
        outputs: Vec<Output>,
    },
    /// The answer to `Task::Canary`. The last event.
    Class(Class),
    /// The answer to `Task::Facts`. The last event.
    Facts(Facts),
    /// The attempt failed. The last event.
    Failed(Failure),
    /// It stopped because it was told to. The last event.
    Cancelled,
}

impl Event {
    /// Does nothing follow it?
    #[must_use]
    pub const fn is_last(&self) -> bool {
        match self {
            Self::Progress { .. } | Self::Metrics(_) | Self::Segment(_) => false,
            Self::Done { .. }
            | Self::Class(_)
            | Self::Facts(_)
            | Self::Failed(_)
            | Self::Cancelled => true,
        }
    }
}

/// How an epoch went.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochMetrics {
    /// Counted from 0.
    pub epoch: u32,
    /// Optimizer steps since the job's start.
    pub step: u64,
    /// Mean over the rows, each measured before its own step.
    pub loss: f64,
    /// Share of rows whose class was the likeliest; with cross-entropy only.
    pub accuracy: Option<f64>,
    /// Of the last step.
    pub learning_rate: f64,
    /// Rows seen.
    pub rows: u64,
    /// Wall time of the epoch, or of its part since the last resume.
    pub seconds: f64,
}

/// A checkpoint on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// The segment that ended, from 0.
    pub segment: u32,
    /// Optimizer steps done at its end.
    pub step: u64,
    /// The checkpoint file, in the scratch folder.
    pub path: PathBuf,
    /// Its hash: equal on every machine of one numeric class.
    pub sha256: Sha256,
    /// Its size.
    pub bytes: u64,
}

/// A result on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Output {
    /// What it is.
    pub name: String,
    /// The safetensors file, in the scratch folder.
    pub path: PathBuf,
    /// Its hash.
    pub sha256: Sha256,
    /// Its size.
    pub bytes: u64,
}

/// A message that is not one.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    #[error("message of {0} bytes is over the limit of {MESSAGE_BYTES_MAX}")]
    TooLong(usize),
    #[error("message is not what it must be")]
    Format(#[from] serde_json::Error),
    #[error("pipe between worker and child")]
    Pipe(#[from] io::Error),
}

/// A message with its length before it.
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, MessageError> {
    let mut frame = vec![0; LENGTH_BYTES];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len() - LENGTH_BYTES;
    frame[..LENGTH_BYTES].copy_from_slice(&length_within_limit(length)?.to_be_bytes());
    Ok(frame)
}

/// The length that stands before a message.
pub fn decode_length(header: [u8; LENGTH_BYTES]) -> Result<usize, MessageError> {
    let length = usize::try_from(u32::from_be_bytes(header))
        .map_err(|_| MessageError::TooLong(usize::MAX))?;
    length_within_limit(length).map(|_| length)
}

fn length_within_limit(length: usize) -> Result<u32, MessageError> {
    match u32::try_from(length) {
        Ok(fits) if length <= MESSAGE_BYTES_MAX => Ok(fits),
        _ => Err(MessageError::TooLong(length)),
    }
}

/// Reads one message; nothing at the end of the stream.
pub fn read<M: DeserializeOwned>(from: &mut impl io::Read) -> Result<Option<M>, MessageError> {
    let mut header = [0; LENGTH_BYTES];
    match from.read_exact(&mut header) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let mut body = vec![0; decode_length(header)?];
    from.read_exact(&mut body)?;
    Ok(Some(serde_json::from_slice(&body)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_pass_the_pipe_whole_and_in_order() {
        let segment = Segment {
            segment: 2,
            step: 30,
            path: "checkpoint-2.safetensors".into(),
            sha256: Sha256::of(b""),
            bytes: 12,
        };
        let events = [
            Event::Progress { done: 1, total: 2 },
            Event::Segment(segment),
            Event::Cancelled,
        ];
        let pipe: Vec<u8> = events
            .iter()
            .flat_map(|event| encode(event).unwrap())
            .collect();
        let mut from = pipe.as_slice();
        for event in events {
            assert_eq!(read::<Event>(&mut from).unwrap(), Some(event));
        }
        assert_eq!(read::<Event>(&mut from).unwrap(), None);
    }

    #[test]
    fn a_message_over_the_limit_is_not_read() {
        let header = u32::try_from(MESSAGE_BYTES_MAX + 1).unwrap().to_be_bytes();
        assert!(matches!(
            read::<Event>(&mut header.as_slice()),
            Err(MessageError::TooLong(_))
        ));
    }
}
