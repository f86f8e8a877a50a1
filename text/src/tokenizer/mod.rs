//! Tokenizers of strangers: what a `tokenizer.json` says, within limits, and texts to tokens and back.
//!
//! The models, where most of the work is, are those of the `tokenizers` crate. What stands around them is done here, because there
//! it backtracks, panics, allocates without end or swallows errors for some files; tests compare both. See docs/adr/0023.

mod added;
mod bytes;
mod charsmap;
mod check;
mod decoder;
mod document;
mod error;
mod frame;
pub mod limits;
mod model;
mod normalizer;
mod pattern;
mod pre_tokenizer;
mod stage;

pub use error::{DecodeError, EncodeError, InvalidPattern, InvalidTokenizer};

use added::AddedTokens;
use decoder::Decoder;
use document::Document;
use frame::Frame;
use limits::{DECODED_BYTES_MAX, NORMALISED_BYTES_MAX};
use model::Model;
use normalizer::Normalizer;
use pre_tokenizer::PreTokenizer;
use stage::Stage;

/// Texts to tokens and back, as one `tokenizer.json` says it. The same bytes always give the same.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    added: AddedTokens,
    normalizer: Normalizer,
    cutter: PreTokenizer,
    model: Model,
    frame: Frame,
    decoder: Decoder,
}

/// What becomes of special tokens: those that the post-processor puts around a text, and those that no reader is to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Specials {
    /// Added around a text, shown in a decoded one.
    Keep,
    /// Neither added nor shown.
    Skip,
}

/// The tokens of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoding {
    /// Their numbers.
    pub ids: Vec<u32>,
    /// 1 for each token of the text, 0 for each that only fills a row.
    pub attention_mask: Vec<u8>,
}

impl Encoding {
    /// The same with a token put behind it until it has this many. One that has as many already stays as it is: nothing is cut.
    #[must_use]
    pub fn padded(mut self, tokens: usize, with: u32) -> Self {
        let tokens = tokens.max(self.ids.len());
        self.ids.resize(tokens, with);
        self.attention_mask.resize(tokens, 0);
        self
    }
}

impl Tokenizer {
    /// Reads a `tokenizer.json`. What it says of truncation and padding is not applied.
    ///
    /// # Errors
    /// For what is too much by [`limits`], contradicts itself, or has a component that is not supported; each with its place.
    pub fn read(bytes: &[u8]) -> Result<Self, InvalidTokenizer> {
        let document = Document::read(bytes)?;
        if document.version.as_deref().is_some_and(|it| it != "1.0") {
            return Err(check::contradiction("/version", "is not 1.0"));
        }
        let normalizer = Normalizer::read(document.normalizer)?;
        let cutter = PreTokenizer::read(document.pre_tokenizer, !normalizer.is_empty())?;
        let decoder = Decoder::read(document.decoder)?;
        let model = Model::read(document.model)?;
        let tokens = document.added_tokens.map(|it| it.0).unwrap_or_default();
        let added = AddedTokens::read(tokens, &model, &normalizer)?;
        let frame = Frame::read(document.post_processor, &model, &added)?;
        Ok(Self {
            added,
            normalizer,
            cutter,
            model,
            frame,
            decoder,
        })
    }

    /// The tokens of a text, `tokens_max` at most. A text is never cut. Texts of special tokens in it are those tokens.
    ///
    /// # Errors
    /// For a text that is longer than [`limits::TEXT_BYTES_MAX`] or [`limits::SLOW_TEXT_BYTES_MAX`], has more tokens than allowed (all of them are counted), or something that
    /// no token stands for, and where the tokenizer takes too long or makes too much of it.
    pub fn encode(
        &self,
        text: &str,
        specials: Specials,
        tokens_max: usize,
    ) -> Result<Encoding, EncodeError> {
        self.framed(&self.ids(text)?, specials, tokens_max)
    }

    /// The first tokens of a text, `tokens_max` at most with those around it, which stay: for who asks that a text be cut.
    ///
    /// # Errors
    /// As [`Self::encode`]; of too many tokens only where those around a text are.
    pub fn encode_cut(
        &self,
        text: &str,
        specials: Specials,
        tokens_max: usize,
    ) -> Result<Encoding, EncodeError> {
        let mut ids = self.ids(text)?;
        let (before, behind) = self.around(specials);
        ids.truncate(tokens_max.saturating_sub(before.len() + behind.len()));
        self.framed(&ids, specials, tokens_max)
    }

    /// The tokens of a text alone.
    fn ids(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        let max = self.model.text_bytes_max();
        if text.len() > max {
            let found = text.len();
            return Err(EncodeError::TextTooLong { found, max });
        }
        let mut ids = Vec::new();
        self.append(text, &mut ids)?;
        Ok(ids)
    }

    /// What is put before and behind a text.
    fn around(&self, specials: Specials) -> (&[u32], &[u32]) {
        match specials {
            Specials::Keep => (&self.frame.before, &self.frame.behind),
            Specials::Skip => (&[], &[]),
        }
    }

    fn framed(
        &self,
        ids: &[u32],
        specials: Specials,
        tokens_max: usize,
    ) -> Result<Encoding, EncodeError> {
        let (before, behind) = self.around(specials);
        let ids = [before, ids, behind].concat();
        if ids.len() > tokens_max {
            let (found, max) = (ids.len(), tokens_max);
            return Err(EncodeError::TooManyTokens { found, max });
        }
        let attention_mask = vec![1; ids.len()];
        Ok(Encoding {
            ids,
            attention_mask,
        })
    }

    fn append(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), EncodeError> {
        let mut left = NORMALISED_BYTES_MAX;
        for (range, token) in self.added.in_raw(text) {
            if let Some(id) = token {
                ids.push(id);
                continue;
            }
            let starts_text = range.start == 0;
            let normal = self.normalizer.apply(&text[range], &mut left)?;
            for (range, token) in self.added.in_normalised(&normal) {
                if let Some(id) = token {
                    ids.push(id);
                    continue;
                }
                let is_first = starts_text && range.start == 0;
                self.cutter.cut(&normal[range], is_first, &mut |piece| {
                    ids.extend(self.model.tokens(piece)?);
                    Ok(())
                })?;
            }
        }
        Ok(())
    }

    /// The text of tokens: the pieces of a stream, put together.
    ///
    /// # Errors
    /// As [`Stream::push`].
    pub fn decode(&self, ids: &[u32], specials: Specials) -> Result<String, DecodeError> {
        let mut stream = self.stream(specials);
        let mut text = String::new();
        for id in ids {
            text.push_str(&stream.push(*id)?);
        }
        text.push_str(&stream.finish()?);
        Ok(text)
    }

    /// Decodes tokens as they come.
    #[must_use]
    pub fn stream(&self, specials: Specials) -> Stream<'_> {
        Stream {
            tokenizer: self,
            specials,
            stages: self.decoder.stages(),
            bytes: 0,
        }
    }

    /// The number of a token, by its text as the file has it.
    #[must_use]
    pub fn id(&self, token: &str) -> Option<u32> {
        self.added.id(token).or_else(|| self.model.id(token))
    }

    /// One more than the largest number of a token.
    #[must_use]
    pub fn end(&self) -> u32 {
        let added = self.added.last().map_or(0, |id| id.saturating_add(1));
        self.model.end().max(added)
    }

    /// Is there such a token?
    #[must_use]
    pub fn has(&self, id: u32) -> bool {
        self.added.get(id).is_some() || self.model.token(id).is_some()
    }
}

/// Tokens into text, as they come. Pieces are whole characters, and together they are the text of all tokens.
#[derive(Debug, Clone)]
pub struct Stream<'a> {
    tokenizer: &'a Tokenizer,
    specials: Specials,
    stages: Vec<Stage>,
    bytes: usize,
}

impl Stream<'_> {
    /// Takes a token, and gives the text that is certain now, which may be empty.
    ///
    /// # Errors
    /// For a token that there is not, and where all pieces are longer than [`DECODED_BYTES_MAX`]. The stream is of no use then.
    pub fn push(&mut self, id: u32) -> Result<String, DecodeError> {
        let token = match self.tokenizer.added.get(id) {
            Some(added) if added.is_special && self.specials == Specials::Skip => {
                return Ok(String::new());
            }
            Some(added) => Some(added.text.clone()),
            None => self.tokenizer.model.token(id),
        };
        let token = token.ok_or(DecodeError::UnknownToken(id))?;
        self.pass(vec![token], 0)
    }

    /// Gives the text that was held back.
    ///
    /// # Errors
    /// Where all pieces are longer than [`DECODED_BYTES_MAX`].
    pub fn finish(mut self) -> Result<String, DecodeError> {
        let mut text = String::new();
        for at in 0..self.stages.len() {
            let mut held = Vec::new();
            self.stages[at].finish(&mut held);
            text.push_str(&self.pass(held, at + 1)?);
        }
        Ok(text)
    }

    /// What becomes of tokens in the stages from one on.
    fn pass(&mut self, mut tokens: Vec<String>, from: usize) -> Result<String, DecodeError> {
        for stage in &mut self.stages[from..] {
            let mut passed = Vec::with_capacity(tokens.len());
            for token in tokens {
                stage.push(token, &mut passed)?;
            }
            tokens = passed;
        }
        let text = tokens.concat();
        self.bytes += text.len();
        if self.bytes > DECODED_BYTES_MAX {
            return Err(DecodeError::TooLong);
        }
        Ok(text)
    }
}
