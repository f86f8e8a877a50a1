//! Reads what an uploaded file is, without running anything in it: a program, tensors, or neither.

use std::{error::Error as StdError, ops::Range, sync::Arc};

use bytes::Bytes;
use comptoir_domain::{
    digest::Sha256,
    fit::{NoFacts, ProgramFacts},
    model::Chat,
    program::{Archive, ArchiveError},
    tensors::{InvalidTensors, PREFIX_BYTES, TensorsHeader, head_bytes},
};
use comptoir_store::{
    blobs::Blob,
    data_keys::KeyError,
    objects::{GetError, Objects, ReadPartError},
    quotes::{self, QuoteError},
};
use comptoir_text::{
    Tokenizer,
    chat::{ChatTemplate, Message, PromptError, Role},
    limits::FILE_BYTES_MAX,
};
use tokio::{sync::Semaphore, task::JoinError};

use crate::{AppState, Problem, sealed::SealedFile};

/// Archives that are read at once: each takes a thread and up to some hundred megabytes.
const ARCHIVES_AT_ONCE: usize = 4;

/// Tokenizers that are read at once: each takes a thread, up to some hundred megabytes, and seconds where a stranger means harm.
const TOKENIZERS_AT_ONCE: usize = 2;

static ARCHIVES: Semaphore = Semaphore::const_new(ARCHIVES_AT_ONCE);
static TOKENIZERS: Semaphore = Semaphore::const_new(TOKENIZERS_AT_ONCE);

/// Why a file could not be read as what it should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// It is not that, and this is why.
    #[error("{0}")]
    Refused(String),
    /// The object store failed.
    #[error("read a blob")]
    Objects(#[from] GetError),
    /// A file of a dataset is damaged, or the object store failed.
    #[error("read a file of a dataset")]
    Sealed(#[from] ReadPartError),
    /// A file of a dataset cannot be opened.
    #[error("open a file of a dataset")]
    Key(#[from] KeyError),
    /// Parsing ended in a panic.
    #[error("parse a file")]
    Parse(#[from] JoinError),
    /// The facts could not be kept.
    #[error("keep the facts of a program")]
    Facts(#[from] QuoteError),
    /// The database failed.
    #[error("find the facts of a program")]
    Database(#[from] sqlx::Error),
}

impl ReadError {
    /// The reason for the client, or the problem of a service that failed.
    pub(crate) fn into_reason(self) -> Result<String, Problem> {
        match self {
            Self::Refused(reason) => Ok(reason),
            Self::Database(error) => Err(error.into()),
            error => Err(Problem::internal(&error)),
        }
    }
}

/// What a blob was found to be as a program. Read once, then remembered.
pub(crate) async fn program(state: &AppState, blob: &Blob) -> Result<Arc<ProgramFacts>, ReadError> {
    if let Some(facts) = known_program(state, blob.sha256).await? {
        return Ok(facts);
    }
    let facts = parse(state, blob).await?;
    let mut connection = state.db.acquire().await?;
    quotes::keep_facts(&mut connection, blob.sha256, &facts, state.now()).await?;
    let facts = Arc::new(facts);
    state
        .submissions
        .facts
        .programs
        .put(blob.sha256, Arc::clone(&facts));
    Ok(facts)
}

/// What a program was found to be that was read before; `None`: nobody ever asked for it.
pub(crate) async fn known_program(
    state: &AppState,
    sha256: Sha256,
) -> Result<Option<Arc<ProgramFacts>>, ReadError> {
    let kept = &state.submissions.facts.programs;
    if let Some(facts) = kept.get(&sha256) {
        return Ok(Some(facts));
    }
    let known = quotes::find_facts(&mut *state.db.acquire().await?, sha256).await?;
    let known = known.map(Arc::new);
    if let Some(facts) = &known {
        kept.put(sha256, Arc::clone(facts));
    }
    Ok(known)
}

async fn parse(state: &AppState, blob: &Blob) -> Result<ProgramFacts, ReadError> {
    let _permit = ARCHIVES.acquire().await.expect("it is never closed");
    let reader = state.objects.reader(blob.sha256, blob.bytes);
    let parsed = tokio::task::spawn_blocking(move || {
        let archive = Archive::open(reader)?;
        Ok(ProgramFacts::of(archive.program()))
    });
    match parsed.await? {
        Ok(Ok(facts)) => Ok(facts),
        Ok(Err(error @ (NoFacts::Meter(_) | NoFacts::TooLarge(_)))) => {
            Err(ReadError::Refused(chain(&error)))
        }
        Err(ArchiveError::Io(error)) => Err(io(blob.sha256, error)),
        Err(error) => Err(ReadError::Refused(chain(&error))),
    }
}

/// A failure of the object store comes through the reader as one of the file.
fn io(sha256: Sha256, error: std::io::Error) -> ReadError {
    let text = error.to_string();
    let inner = error.into_inner().and_then(|inner| inner.downcast().ok());
    inner.map_or_else(
        || {
            tracing::debug!(%sha256, text, "not an archive");
            ReadError::Refused("not a `.pt2` archive: it ends early".to_owned())
        },
        |error: Box<GetError>| ReadError::Objects(*error),
    )
}

/// A tokenizer. Read once, then remembered. Whoever asks knows who may read the blob.
pub(crate) async fn tokenizer(
    state: &AppState,
    sha256: Sha256,
) -> Result<Arc<Tokenizer>, ReadError> {
    let kept = &state.submissions.facts.tokenizers;
    if let Some(tokenizer) = kept.get(&sha256) {
        return Ok(tokenizer);
    }
    let _permit = TOKENIZERS.acquire().await.expect("it is never closed");
    if let Some(tokenizer) = kept.get(&sha256) {
        return Ok(tokenizer);
    }
    let bytes = state.objects.get_all(sha256, FILE_BYTES_MAX as u64).await;
    let bytes = bytes.map_err(|error| match error {
        GetError::TooLarge { limit, .. } => {
            ReadError::Refused(format!("a tokenizer has {limit} bytes at most"))
        }
        error => error.into(),
    })?;
    let read = tokio::task::spawn_blocking(move || Tokenizer::read(&bytes)).await?;
    let tokenizer = read.map_err(|error| ReadError::Refused(chain(&error)))?;
    let tokenizer = Arc::new(tokenizer);
    kept.put(sha256, Arc::clone(&tokenizer));
    Ok(tokenizer)
}

/// A chat template. It is tried on a single message: what fails at that fails at all.
pub(crate) async fn template(chat: Chat) -> Result<ChatTemplate, ReadError> {
    let read = move || {
        let template = ChatTemplate::new(&chat.template, chat.specials);
        let template = template.map_err(|error| ReadError::Refused(chain(&error)))?;
        let message = Message {
            role: Role::User,
            content: "?".to_owned(),
        };
        match template.prompt(&[message], true) {
            // It may want a conversation of another kind.
            Ok(_) | Err(PromptError::Raised(_)) => Ok(template),
            Err(error) => Err(ReadError::Refused(chain(&error))),
        }
    };
    tokio::task::spawn_blocking(read).await?
}

/// The head of a blob of tensors. Read once, then remembered.
pub(crate) async fn tensors(
    state: &AppState,
    blob: &Blob,
) -> Result<Arc<TensorsHeader>, ReadError> {
    let kept = &state.submissions.facts.heads;
    if let Some(head) = kept.get(&blob.sha256) {
        return Ok(head);
    }
    let head = Arc::new(read_head(state, blob).await?);
    kept.put(blob.sha256, Arc::clone(&head));
    Ok(head)
}

async fn read_head(state: &AppState, blob: &Blob) -> Result<TensorsHeader, ReadError> {
    head_of(Bytewise::Blob(&state.objects, blob.sha256), blob.bytes).await
}

/// Where the bytes of a tensor file are.
#[derive(Clone, Copy)]
pub(crate) enum Bytewise<'a> {
    /// In a blob.
    Blob(&'a Objects, Sha256),
    /// In a file of a dataset.
    Sealed(&'a SealedFile),
}

impl Bytewise<'_> {
    async fn read(self, range: Range<u64>) -> Result<Bytes, ReadError> {
        Ok(match self {
            Self::Blob(objects, sha256) => objects.get_range(sha256, range).await?,
            Self::Sealed(file) => file.read(range).await?,
        })
    }
}

/// The head of a tensor file of so many bytes.
pub(crate) async fn head_of(file: Bytewise<'_>, bytes: u64) -> Result<TensorsHeader, ReadError> {
    let refused = |error: InvalidTensors| ReadError::Refused(chain(&error));
    let prefix = match bytes {
        0 => None,
        bytes => {
            let prefix = file.read(0..bytes.min(PREFIX_BYTES as u64)).await?;
            prefix.first_chunk::<PREFIX_BYTES>().copied()
        }
    };
    let prefix = prefix.ok_or_else(|| refused(InvalidTensors::Truncated))?;
    let end = head_bytes(prefix).map_err(refused)?.min(bytes);
    let head = file.read(0..end).await?;
    TensorsHeader::read_sized(&head, bytes).map_err(refused)
}

/// What a file is, by its content.
pub(crate) enum Content {
    /// A program that can be priced.
    Program(Arc<ProgramFacts>),
    /// Tensors.
    Tensors,
    /// Neither, and this is why no program: only told of what looks like an archive or a pickle.
    Other(Option<String>),
}

/// Looks at a file.
pub(crate) async fn content(state: &AppState, blob: &Blob) -> Result<Content, ReadError> {
    let head = match blob.bytes {
        0 => Bytes::new(),
        bytes => {
            state
                .objects
                .get_range(blob.sha256, 0..bytes.min(2))
                .await?
        }
    };
    // A zip file, or a pickle, whose owner will ask why it is none.
    if head.starts_with(b"PK") || head.starts_with(&[0x80]) {
        return match program(state, blob).await {
            Ok(facts) => Ok(Content::Program(facts)),
            Err(ReadError::Refused(reason)) => Ok(Content::Other(Some(reason))),
            Err(error) => Err(error),
        };
    }
    match tensors(state, blob).await {
        Ok(_) => Ok(Content::Tensors),
        Err(ReadError::Refused(_)) => Ok(Content::Other(None)),
        Err(error) => Err(error),
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
