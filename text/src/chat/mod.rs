//! Prompts of conversations: a template of a stranger over messages of a stranger. Templates are Jinja, as `tokenizer_config.json`
//! has them, without files, other templates or the time. Fuel ends what takes long or much: every instruction costs some, and every
//! 64 bytes that are made or read, so that one number bounds both time and memory.

mod names;
mod values;

use std::{collections::BTreeMap, fmt, io};

use comptoir_domain::model::CHAT_SPECIALS_MAX;
use minijinja::{Environment, Error, ErrorKind, Value, machinery, syntax::SyntaxConfig};
use serde::{Deserialize, Serialize};

/// Bytes of a template. The longest in use, which also write tools, have some 12,000.
pub const TEMPLATE_BYTES_MAX: usize = 64 << 10;
/// Messages of a conversation.
pub const MESSAGES_MAX: usize = 4_096;
/// Bytes of a prompt: as many as a text to encode may have.
pub const PROMPT_BYTES_MAX: usize = crate::limits::TEXT_BYTES_MAX;
/// What one prompt may take: a quarter of a million instructions, or 16 MiB made and read. A template that reads each message four
/// times takes a third of it for the longest prompt.
pub const FUEL: u64 = 1 << 18;
/// The stack that a template is read and runs on, of which only what is used takes memory: whoever calls may have a small one.
const STACK_BYTES: usize = 32 << 20;
/// How deep a template may call itself.
const RECURSION_MAX: usize = 32;
/// Characters that a template may say with `raise_exception`.
const RAISED_CHARS_MAX: usize = 1_000;
const NAME: &str = "chat";

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub content: String,
}

/// Who says something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Whoever wrote the application.
    System,
    /// Whoever asks.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// Its name, in messages and for templates.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// Why a text is no template.
#[derive(Debug, thiserror::Error)]
pub enum InvalidTemplate {
    /// It is too long.
    #[error("the template has {0} bytes, and may have {TEMPLATE_BYTES_MAX}")]
    TooLong(usize),
    /// It is no Jinja.
    #[error("the template cannot be read: {0}")]
    Syntax(#[source] Error),
    /// It does what could take for ever.
    #[error("the template has {0}, which is not supported")]
    Unbounded(String),
    /// There is no thread for it.
    #[error("start a thread for the template")]
    Thread(#[from] io::Error),
    /// It is given too much.
    #[error("the template is given {0} texts, and may be given {CHAT_SPECIALS_MAX}")]
    TooManySpecials(usize),
}

/// Why there is no prompt.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// There are too many messages.
    #[error("there are {0} messages, and may be {MESSAGES_MAX}")]
    TooManyMessages(usize),
    /// The messages are longer than a prompt may be.
    #[error("the messages have {0} bytes, and may have {PROMPT_BYTES_MAX}")]
    MessagesTooLong(usize),
    /// The prompt is too long.
    #[error("the prompt is longer than {PROMPT_BYTES_MAX} bytes")]
    TooLong,
    /// The template takes too long, or too much.
    #[error("the template takes too long or too much memory")]
    OutOfFuel,
    /// The template refuses these messages, in its own words: a stranger's.
    #[error("the template refuses the messages: {0}")]
    Raised(String),
    /// The template does not work.
    #[error("the template fails: {0}")]
    Failed(#[source] Error),
    /// There is no thread for it.
    #[error("start a thread for the template")]
    Thread(#[from] io::Error),
}

/// Makes prompts of messages.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    specials: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// Takes a template, and texts that it is given by name: `bos_token`, `eos_token` and the like.
    ///
    /// # Errors
    /// For a template that is too long or no Jinja.
    pub fn new(source: &str, specials: BTreeMap<String, String>) -> Result<Self, InvalidTemplate> {
        if source.len() > TEMPLATE_BYTES_MAX {
            return Err(InvalidTemplate::TooLong(source.len()));
        }
        if specials.len() > CHAT_SPECIALS_MAX {
            return Err(InvalidTemplate::TooManySpecials(specials.len()));
        }
        on_stack(|| Self::read(source, specials))?
    }

    fn read(source: &str, specials: BTreeMap<String, String>) -> Result<Self, InvalidTemplate> {
        let mut environment = Environment::new();
        // As everybody renders them.
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        let syntax = syntax.map_err(InvalidTemplate::Syntax)?;
        let tree =
            machinery::parse(source, NAME, syntax.clone()).map_err(InvalidTemplate::Syntax)?;
        values::check(&tree, &specials).map_err(InvalidTemplate::Unbounded)?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION_MAX);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise);
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(InvalidTemplate::Syntax)?;
        Ok(Self {
            environment,
            specials,
        })
    }

    /// The prompt of a conversation. With `is_answered_next`, it ends where the model's answer begins (`add_generation_prompt`).
    ///
    /// # Errors
    /// For too much of anything, and for what the template refuses or fails at.
    pub fn prompt(
        &self,
        messages: &[Message],
        is_answered_next: bool,
    ) -> Result<String, PromptError> {
        if messages.len() > MESSAGES_MAX {
            return Err(PromptError::TooManyMessages(messages.len()));
        }
        let bytes = messages.iter().map(|it| it.content.len()).sum();
        if bytes > PROMPT_BYTES_MAX {
            return Err(PromptError::MessagesTooLong(bytes));
        }
        on_stack(|| self.render(messages, is_answered_next))?
    }

    fn render(&self, messages: &[Message], is_answered_next: bool) -> Result<String, PromptError> {
        let template = self
            .environment
            .get_template(NAME)
            .map_err(PromptError::Failed)?;
        let given = self.given(messages, is_answered_next);
        let mut prompt = Prompt::default();
        match template.render_captured_to(given, &mut prompt) {
            Ok(_) => String::from_utf8(prompt.bytes)
                .map_err(|_| PromptError::Failed(Error::new(ErrorKind::WriteFailure, "not UTF-8"))),
            Err(_) if prompt.is_full => Err(PromptError::TooLong),
            Err(error) => Err(why(error)),
        }
    }

    fn given(&self, messages: &[Message], is_answered_next: bool) -> Value {
        let message = |it: &Message| {
            Value::from_pairs([("role", it.role.as_str()), ("content", it.content.as_str())])
        };
        let messages: Vec<Value> = messages.iter().map(message).collect();
        let specials = self
            .specials
            .iter()
            .map(|(name, text)| (name.as_str(), Value::from(text.as_str())));
        let always = [
            ("messages", Value::from(messages)),
            ("add_generation_prompt", Value::from(is_answered_next)),
        ];
        Value::from_pairs(specials.chain(always))
    }
}

/// Runs something on a stack of its own.
fn on_stack<T: Send>(run: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, run)?;
        Ok(thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn why(error: Error) -> PromptError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(at) = cause {
        if let Some(Raised(message)) = at.downcast_ref() {
            return PromptError::Raised(message.clone());
        }
        if at
            .downcast_ref::<Error>()
            .is_some_and(|it| it.kind() == ErrorKind::OutOfFuel)
        {
            return PromptError::OutOfFuel;
        }
        cause = at.source();
    }
    PromptError::Failed(error)
}

/// A prompt that may get only so long.
#[derive(Default)]
struct Prompt {
    bytes: Vec<u8>,
    is_full: bool,
}

impl io::Write for Prompt {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > PROMPT_BYTES_MAX {
            self.is_full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a template said with `raise_exception`.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

#[expect(
    clippy::needless_pass_by_value,
    reason = "functions of templates take what they are given"
)]
fn raise(message: String) -> Result<String, Error> {
    let message = message.chars().take(RAISED_CHARS_MAX).collect();
    Err(Error::new(ErrorKind::InvalidOperation, "raised").with_source(Raised(message)))
}
