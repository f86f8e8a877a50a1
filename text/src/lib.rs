//! Text before and after a model, without I/O: texts to tokens and back, prompts of conversations, what is made of a model's
//! numbers, and which token comes next. What calls cost is counted here, and an audit that re-executes a call does it here too,
//! so everything is a function of its arguments, the same on every machine, and bounded whoever wrote them.

pub mod chat;
mod feed;
mod generation;
mod outputs;
mod stops;
mod tokenizer;

pub use feed::{
    Fed, FeedError, Overlong, ResultError, Sequence, TEXTS_BYTES_MAX, feed, results, specials,
    vocabulary,
};
pub use generation::{FinishReason, Generated, Generation, GenerationError, Limits};
pub use outputs::{Applied, InvalidRows, Ranked, Rows, apply, normalise, softmax, top_k};
pub use stops::{InvalidStops, STOP_BYTES_MAX, STOPS_MAX, Scanned, StopFilter, Stops};
pub use tokenizer::{
    DecodeError, EncodeError, Encoding, InvalidPattern, InvalidTokenizer, Specials, Stream,
    Tokenizer, limits,
};
