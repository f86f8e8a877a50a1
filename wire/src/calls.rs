//! Calls of models on their way: between an API process, the scheduler that a worker is connected to, and the worker.
//!
//! A worker keeps a WebSocket open (`GET /v1/calls`, subprotocol [`SUBPROTOCOL`]). Every binary message on it is a [`pack`] of frames of one
//! direction: [`ToWorker`] down, [`FromWorker`] up. Between API and scheduler frames travel through Redis, a frame each: [`Routed`] to a scheduler's
//! mailbox, [`Returned`] to an API process's, [`Announcement`] to all. A scheduler looks at no tensor: [`Call`] and [`Answer`] pass it as bytes.
//!
//! Frames are postcard documents (<https://postcard.jamesmunns.com/wire-format>). Nothing of them is stored, so both ends change together;
//! [`SUBPROTOCOL`] names the version.

use comptoir_domain::{
    model::{ENDS_MAX, TEXT_TOKENS_MAX},
    program::graph::ScalarType,
    sampling::Sampling,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_bytes::ByteBuf;
use uuid::Uuid;

use crate::work::BlobSize;

/// What both ends of the WebSocket must speak.
pub const SUBPROTOCOL: &str = "comptoir-calls-2";
/// Bytes of one call at most, encoded, and of one answer.
pub const CALL_BYTES_MAX: usize = 16 << 20;
/// Bytes of one message at most: one call of the largest size, and some small ones beside it.
pub const MESSAGE_BYTES_MAX: usize = CALL_BYTES_MAX + (4 << 20);
/// Frames of one message at most.
pub const FRAMES_MAX: usize = 4_096;
/// Tensors of a call or an answer at most.
pub const TENSORS_MAX: usize = 64;
/// Dimensions of a tensor at most.
pub const DIMENSIONS_MAX: usize = 8;
/// Versions of models that a worker hosts at a time, at most.
pub const HOSTED_MAX: usize = 256;

/// The mailbox where schedulers say who is connected to them: an [`Announcement`] each second, and whenever that changes.
pub const ANNOUNCEMENTS: &str = "announcements";
/// How often that is said when nothing changes, in milliseconds. A scheduler that is silent for three of these is gone.
pub const ANNOUNCE_EVERY_MS: u32 = 1_000;

/// The mailbox of a process: a scheduler's takes [`Routed`], an API's [`Returned`].
#[must_use]
pub fn mailbox(process: Uuid) -> String {
    format!("process-{}", process.simple())
}

/// Scheduler to worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToWorker {
    /// How a version is hosted: comes before the first call of it on a connection. Nothing has to be loaded before that call.
    Host(Box<HostOrder>),
    /// A [`Call`], encoded.
    Call(ByteBuf),
    /// Nobody waits for the answer of this call any more.
    Cancel(Uuid),
}

/// Worker to scheduler.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromWorker {
    /// The first frame of a connection, and again whenever something of it changes.
    Hosting(Hosting),
    /// An [`Answer`], encoded, to this call. A call has one answer, or several of which the last says so.
    Answer {
        /// The call.
        call: Uuid,
        /// Whether nothing more comes for it.
        is_last: bool,
        /// The [`Answer`].
        answer: ByteBuf,
    },
}

/// What a worker can host, and what it does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hosting {
    /// Memory that hosted models may use in all, in bytes; 0: it hosts none.
    pub memory_bytes: u64,
    /// Versions that are loaded and answer at once: at most [`HOSTED_MAX`].
    pub loaded: Vec<Uuid>,
}

/// How a version is hosted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostOrder {
    /// The version.
    pub version: Uuid,
    /// For the header [`TICKET_HEADER`]: fetches the blobs of this version (`GET /v1/calls/blobs/{sha256}`) while it lives.
    pub ticket: String,
    /// The archive that answers.
    pub program: BlobSize,
    /// What it computes with, where that is not in the archive.
    pub weights: Option<BlobSize>,
    /// How it writes texts, if it does.
    pub writing: Option<WritingOrder>,
    /// Memory that it needs, its largest batch included, in bytes.
    pub memory_bytes: u64,
    /// Rows of one batch at most.
    pub batch_max: u32,
}

/// How a version writes texts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WritingOrder {
    /// The archive that takes one token at a time, with the weights of the other.
    pub program: BlobSize,
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

/// The header that carries a [`HostOrder::ticket`].
pub const TICKET_HEADER: &str = "comptoir-host-ticket";

/// A call of a version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// Its name.
    pub id: Uuid,
    /// The version that is called.
    pub version: Uuid,
    /// Milliseconds from its arrival after which nobody waits for it.
    pub within_ms: u32,
    /// What is asked.
    pub ask: Ask,
}

/// What a call begins with, for whoever looks at nothing else of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Heading {
    /// Its name.
    pub id: Uuid,
    /// The version that is called.
    pub version: Uuid,
    /// Milliseconds from its arrival after which nobody waits for it.
    pub within_ms: u32,
}

/// What a call asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Ask {
    /// These inputs through the program once, in the program's order; all have the same number of rows.
    Infer(Vec<Tensor>),
    /// The tokens that come next, in as many answers as it takes.
    Write(Write),
}

/// A text that goes on. What is drawn follows from the tokens, the settings and the places alone, so another worker can go on where one ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Write {
    /// The tokens that are there: the prompt, and what was written before. At most [`TEXT_TOKENS_MAX`], and at least one.
    pub tokens: Vec<u32>,
    /// How many of them were written before: the place that the next one is drawn at.
    pub written: u32,
    /// How many more are written at most: at least one.
    pub tokens_max: u32,
    /// Tokens below this number may be drawn, and no others.
    pub vocabulary_end: u32,
    /// Tokens that end it, which are the last ones then. At most [`ENDS_MAX`].
    pub ends: Vec<u32>,
    /// How tokens are drawn.
    pub sampling: Sampling,
}

/// A tensor: its elements in row-major order, little-endian.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tensor {
    /// Its element type.
    #[serde(with = "dtype")]
    pub dtype: ScalarType,
    /// Its sizes; the first are the rows. At most [`DIMENSIONS_MAX`].
    pub shape: Vec<u64>,
    /// Its elements.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

/// What became of a call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// The program's outputs, in its order, with as many rows as went in.
    Outputs(Outputs),
    /// The next tokens of a text.
    Written(Written),
    /// It has none.
    Fault(Fault),
}

/// Tokens that were written: at least one, and the last answer ends with one that ends the text, or with as many as were asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// They follow what was written before.
    pub tokens: Vec<u32>,
    /// Whether the version had to be loaded first.
    pub was_cold: bool,
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outputs {
    /// In the program's order.
    pub tensors: Vec<Tensor>,
    /// Rows of the batch that it was computed in.
    pub batch_rows: u32,
    /// How long that batch took, in microseconds. Shown, never charged.
    pub compute_us: u32,
    /// Whether the version had to be loaded first.
    pub was_cold: bool,
}

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Who answers for it.
    pub cause: FaultCause,
    /// What happened, for people: at most [`crate::DETAIL_CHARS_MAX`] characters.
    pub detail: String,
}

/// Who answers for a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FaultCause {
    /// The inputs, or the program with them: no worker could answer.
    Caller,
    /// The version cannot be loaded anywhere: its files are not what they were when it was published.
    Version,
    /// This worker: another one may answer.
    Worker,
    /// The worker has more calls than it takes: another one may answer.
    Busy,
    /// The worker went away, or the scheduler that it was connected to.
    Lost,
    /// It came too late.
    Late,
}

/// API to scheduler.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Routed {
    /// A call for a worker that is connected there.
    Call {
        /// The worker.
        worker: Uuid,
        /// The version, whose [`HostOrder`] the worker must have.
        version: Uuid,
        /// The call.
        call: Uuid,
        /// The API process that waits for the answer.
        reply_to: Uuid,
        /// The [`Call`], encoded.
        body: ByteBuf,
    },
    /// Nobody waits for it any more.
    Cancel {
        /// The call.
        call: Uuid,
    },
}

/// Scheduler to API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Returned {
    /// The call.
    pub call: Uuid,
    /// Whether nothing more comes for it.
    pub is_last: bool,
    /// The [`Answer`], encoded.
    pub answer: ByteBuf,
}

/// Scheduler to every API: who is connected there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// The scheduler.
    pub scheduler: Uuid,
    /// All of them.
    pub workers: Vec<Connected>,
}

/// A worker that is connected to a scheduler.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connected {
    /// The worker.
    pub worker: Uuid,
    /// The account of its owner.
    pub owner: Uuid,
    /// What it can host, and what it does.
    pub hosting: Hosting,
    /// Calls that it has not answered yet.
    pub waiting: u32,
}

/// A message that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It is longer than any.
    #[error("{0} bytes are more than a message has")]
    TooLong(usize),
    /// It has more frames than any.
    #[error("more than {FRAMES_MAX} frames")]
    TooMany,
    /// Its bytes are not frames.
    #[error("not frames: {0}")]
    NotFrames(#[from] postcard::Error),
    /// Something of a call or an answer passes a limit, or a tensor has not the bytes that its sizes ask for.
    #[error("{0}")]
    Misfit(&'static str),
}

/// Frames as one message.
#[must_use]
pub fn pack<T: Serialize>(frames: &[T]) -> Vec<u8> {
    encode(&frames)
}

/// The frames of a message.
///
/// # Errors
/// When it has none, or passes a limit.
pub fn unpack<T: DeserializeOwned>(message: &[u8]) -> Result<Vec<T>, Malformed> {
    if message.len() > MESSAGE_BYTES_MAX {
        return Err(Malformed::TooLong(message.len()));
    }
    // A pack begins with the number of its frames, looked at before any is read.
    let (frames, _) = postcard::take_from_bytes::<u32>(message)?;
    if usize::try_from(frames).unwrap_or(usize::MAX) > FRAMES_MAX {
        return Err(Malformed::TooMany);
    }
    exactly(message)
}

/// A frame that came alone.
///
/// # Errors
/// When it is none, or passes a limit.
pub fn frame<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Malformed> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(Malformed::TooLong(bytes.len()));
    }
    exactly(bytes)
}

/// One frame, call or answer, encoded.
#[must_use]
pub fn encode<T: Serialize>(it: &T) -> Vec<u8> {
    postcard::to_stdvec(it).expect("numbers, texts and bytes have a form, and memory grows")
}

/// A call that was encoded.
///
/// # Errors
/// When it is none, or passes a limit.
pub fn call(bytes: &[u8]) -> Result<Call, Malformed> {
    let call: Call = bounded(bytes)?;
    match &call.ask {
        Ask::Infer(tensors) => check(tensors)?,
        Ask::Write(write) => write.check()?,
    }
    Ok(call)
}

/// What a call begins with that was encoded; what follows may be anything.
///
/// # Errors
/// When it begins otherwise, or is longer than any.
pub fn heading(bytes: &[u8]) -> Result<Heading, Malformed> {
    if bytes.len() > CALL_BYTES_MAX {
        return Err(Malformed::TooLong(bytes.len()));
    }
    Ok(postcard::take_from_bytes(bytes)?.0)
}

/// An answer that was encoded.
///
/// # Errors
/// When it is none, or passes a limit.
pub fn answer(bytes: &[u8]) -> Result<Answer, Malformed> {
    let answer: Answer = bounded(bytes)?;
    match &answer {
        Answer::Outputs(outputs) => check(&outputs.tensors)?,
        Answer::Written(written)
            if !(1..=TEXT_TOKENS_MAX).contains(&(written.tokens.len() as u64)) =>
        {
            return Err(Malformed::Misfit("no tokens, or too many"));
        }
        Answer::Fault(fault) if fault.detail.chars().count() > crate::DETAIL_CHARS_MAX => {
            return Err(Malformed::Misfit("a detail is too long"));
        }
        Answer::Written(_) | Answer::Fault(_) => {}
    }
    Ok(answer)
}

fn bounded<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Malformed> {
    if bytes.len() > CALL_BYTES_MAX {
        return Err(Malformed::TooLong(bytes.len()));
    }
    exactly(bytes)
}

fn exactly<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Malformed> {
    let (it, rest) = postcard::take_from_bytes(bytes)?;
    if rest.is_empty() {
        Ok(it)
    } else {
        Err(Malformed::Misfit("there are bytes behind the last frame"))
    }
}

fn check(tensors: &[Tensor]) -> Result<(), Malformed> {
    if tensors.len() > TENSORS_MAX {
        return Err(Malformed::Misfit("there are too many tensors"));
    }
    for tensor in tensors {
        if tensor.shape.len() > DIMENSIONS_MAX {
            return Err(Malformed::Misfit("a tensor has too many dimensions"));
        }
        if tensor.expected_bytes() != u64::try_from(tensor.bytes.len()).ok() {
            let why = "a tensor has not the bytes that its sizes ask for";
            return Err(Malformed::Misfit(why));
        }
    }
    Ok(())
}

impl Write {
    fn check(&self) -> Result<(), Malformed> {
        let (there, written) = (self.tokens.len() as u64, u64::from(self.written));
        if !(1..=TEXT_TOKENS_MAX).contains(&there) || written >= there {
            return Err(Malformed::Misfit("no tokens to go on from, or too many"));
        }
        if self.tokens_max == 0 || u64::from(self.tokens_max) > TEXT_TOKENS_MAX - there {
            return Err(Malformed::Misfit("no tokens are asked for, or too many"));
        }
        if self.vocabulary_end == 0 || self.ends.len() > ENDS_MAX {
            return Err(Malformed::Misfit(
                "no tokens to draw, or too many that end it",
            ));
        }
        Ok(())
    }
}

impl Tensor {
    /// Bytes that its sizes ask for; `None` above any.
    #[must_use]
    pub fn expected_bytes(&self) -> Option<u64> {
        let mut sizes = self.shape.iter();
        let elements = sizes.try_fold(1_u64, |product, size| product.checked_mul(*size))?;
        elements.checked_mul(self.dtype.size())
    }

    /// The first of its sizes.
    #[must_use]
    pub fn rows(&self) -> Option<u64> {
        self.shape.first().copied()
    }
}

impl Answer {
    /// That a call has no answer.
    #[must_use]
    pub fn fault(cause: FaultCause, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        let detail = match detail.char_indices().nth(crate::DETAIL_CHARS_MAX) {
            Some((end, _)) => detail[..end].to_owned(),
            None => detail,
        };
        Self::Fault(Fault { cause, detail })
    }
}

mod dtype {
    //! Element types by their safetensors names.
    use comptoir_domain::{
        program::graph::ScalarType,
        tensors::{dtype_name, dtype_of},
    };
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes it so")]
    pub(super) fn serialize<S: Serializer>(it: &ScalarType, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(dtype_name(*it))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<ScalarType, D::Error> {
        let name = <&str>::deserialize(from)?;
        dtype_of(name).ok_or_else(|| D::Error::custom("no element type has this name"))
    }
}

#[cfg(test)]
mod tests;
