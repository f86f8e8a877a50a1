//! Hosting: a child that keeps a version of a model loaded and answers calls of it, many in one run of the program.
//!
//! It begins as every child does, with one JSON order. What follows it, in both directions, are packs of frames behind their length:
//! [`ToHost`] down, [`FromHost`] up, until the child's standard input closes.

mod faults;
mod model;
mod parent;
mod queue;
mod serve;
mod writer;

use std::{io, path::PathBuf};

use comptoir_wire::calls::{self, Malformed};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_bytes::ByteBuf;
use uuid::Uuid;

use super::{failure::Failure, message::LENGTH_BYTES};

pub use model::Model;
pub use parent::{Happened, Host, SPARE_BYTES};
pub use serve::serve;

/// What to load.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostTask {
    /// The archive, in the scratch folder; its hash was checked.
    pub program: PathBuf,
    /// What it computes with, where that is not in the archive; in the scratch folder too.
    pub weights: Option<PathBuf>,
    /// How it writes texts, if it does.
    pub writing: Option<WritingTask>,
    /// Rows of one batch at most.
    pub batch_max: u32,
}

/// How a version writes texts; as in [`calls::WritingOrder`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WritingTask {
    /// The archive, in the scratch folder; its hash was checked.
    pub program: PathBuf,
    /// Its input that takes the number of a token.
    pub ids: String,
    /// Its input that takes a token's place.
    pub positions: String,
    /// Its output with a number for each token that may be next.
    pub logits: String,
    /// Tokens that a text may have.
    pub context: u32,
    /// Texts that are written at a time, at most.
    pub texts_max: u32,
}

/// Parent to child.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToHost {
    /// A call, which is answered whatever happens.
    Call {
        /// Its name.
        id: Uuid,
        /// Milliseconds from now after which nobody waits for it.
        within_ms: u32,
        /// Whether it waited for the version to be loaded.
        was_cold: bool,
        /// A [`calls::Call`], encoded.
        call: ByteBuf,
    },
    /// Nobody waits for this call any more. It is answered all the same, at once if it is not computed yet.
    Cancel(Uuid),
}

/// Child to parent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromHost {
    /// It is loaded.
    Loaded,
    /// An answer to a call: a [`calls::Answer`], encoded.
    Answer {
        /// The call.
        id: Uuid,
        /// Whether nothing more comes for it.
        is_last: bool,
        /// The answer.
        answer: ByteBuf,
    },
    /// It cannot be loaded, or not go on. The last frame.
    Failed(Failure),
}

/// Bytes of a frame beside the call or the answer in it, at most.
pub const FRAME_BYTES: usize = 64;

/// Something that is sent among others.
pub trait Frame: Serialize {
    /// Bytes that it takes in a pack, about.
    fn bytes(&self) -> usize;
}

impl Frame for ToHost {
    fn bytes(&self) -> usize {
        match self {
            Self::Call { call, .. } => call.len() + FRAME_BYTES,
            Self::Cancel(_) => FRAME_BYTES,
        }
    }
}

impl Frame for FromHost {
    fn bytes(&self) -> usize {
        match self {
            Self::Answer { answer, .. } => answer.len() + FRAME_BYTES,
            Self::Loaded => FRAME_BYTES,
            Self::Failed(failure) => failure.detail.len() + FRAME_BYTES,
        }
    }
}

/// How many of these frames go into one message: at least one, as long as none is longer than a message.
pub fn fitting<T: Frame>(frames: &[T]) -> usize {
    let mut bytes = FRAME_BYTES;
    let fits = |frame: &&T| {
        bytes = bytes.saturating_add(frame.bytes());
        bytes <= calls::MESSAGE_BYTES_MAX
    };
    let fitting = frames.iter().take(calls::FRAMES_MAX).take_while(fits);
    fitting.count().max(1).min(frames.len())
}

/// A message of frames, with its length before it.
pub fn encode<T: Serialize>(frames: &[T]) -> Vec<u8> {
    let message = calls::pack(frames);
    let length = u32::try_from(message.len()).expect("a message is smaller than 4 GiB");
    [length.to_be_bytes().as_slice(), &message].concat()
}

/// Why frames do not come.
#[derive(Debug, thiserror::Error)]
pub enum FramesError {
    /// What came is none.
    #[error("{0}")]
    Malformed(#[from] Malformed),
    /// The pipe broke.
    #[error("pipe between worker and child: {0}")]
    Pipe(#[from] io::Error),
}

/// The length that stands before a message.
fn decode_length(header: [u8; LENGTH_BYTES]) -> Result<usize, Malformed> {
    let length = usize::try_from(u32::from_be_bytes(header)).unwrap_or(usize::MAX);
    if length > calls::MESSAGE_BYTES_MAX {
        Err(Malformed::TooLong(length))
    } else {
        Ok(length)
    }
}

/// Reads the frames of one message; nothing at the end of the stream.
fn read<T: DeserializeOwned>(from: &mut impl io::Read) -> Result<Option<Vec<T>>, FramesError> {
    let mut header = [0; LENGTH_BYTES];
    match from.read_exact(&mut header) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let mut body = vec![0; decode_length(header)?];
    from.read_exact(&mut body)?;
    Ok(Some(calls::unpack(&body)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(bytes: usize) -> FromHost {
        FromHost::Answer {
            id: Uuid::from_u128(u128::MAX),
            is_last: true,
            answer: ByteBuf::from(vec![7; bytes]),
        }
    }

    #[test]
    fn frames_pass_the_pipe_whole_and_in_order() {
        let sent = [FromHost::Loaded, answer(9)];
        let pipe = encode(&sent);
        let mut from = pipe.as_slice();
        assert_eq!(read::<FromHost>(&mut from).unwrap().unwrap(), sent);
        assert!(read::<FromHost>(&mut from).unwrap().is_none());
    }

    #[test]
    fn a_message_over_the_limit_is_not_read() {
        let long = u32::try_from(calls::MESSAGE_BYTES_MAX + 1).unwrap();
        let refused = read::<FromHost>(&mut long.to_be_bytes().as_slice());
        let Err(FramesError::Malformed(Malformed::TooLong(_))) = refused else {
            panic!("it was read: {refused:?}")
        };
    }

    #[test]
    fn as_many_frames_go_together_as_a_message_holds() {
        assert_eq!(fitting::<FromHost>(&[]), 0);
        assert_eq!(
            fitting(&vec![answer(1); calls::FRAMES_MAX + 1]),
            calls::FRAMES_MAX
        );
        let large = vec![answer(calls::MESSAGE_BYTES_MAX / 2 - 2 * FRAME_BYTES); 3];
        assert_eq!(fitting(&large), 2);
        assert!(calls::pack(&large[..2]).len() <= calls::MESSAGE_BYTES_MAX);
        let largest = [answer(calls::CALL_BYTES_MAX), answer(1)];
        assert!(calls::unpack::<FromHost>(&calls::pack(&largest)).is_ok());
    }
}
