//! Calls that are made of texts: from texts to the inputs of a program, and from its outputs to what its version declares.

use comptoir_domain::{
    fit::{ProgramFacts, RowShape},
    model::{Outcome, TextInput, Vocabulary},
    program::graph::ScalarType,
    tensors::dtype_of,
};
use comptoir_wire::calls::{CALL_BYTES_MAX, Tensor};

use crate::{Applied, EncodeError, InvalidRows, Rows, Specials, Tokenizer, apply};

/// Bytes of all texts of a call. Hostile tokenizers take some seconds for this much.
pub const TEXTS_BYTES_MAX: usize = 2 << 20;
/// Bytes of the inputs of a call: what it travels with has the rest of a frame.
const INPUT_BYTES_MAX: u64 = CALL_BYTES_MAX as u64 - (64 << 10);

/// What becomes of a text that has more tokens than the program takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overlong {
    /// It is an error.
    Refuse,
    /// Its first tokens are taken: for who asks for it.
    Cut,
}

/// What a row is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sequence<'a> {
    /// A text.
    Text(&'a str),
    /// The tokens of a text, by whoever counted them already: nothing is put around them.
    Tokens(&'a [u32]),
}

impl<'a> From<&'a str> for Sequence<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

/// Texts as inputs of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fed {
    /// In the program's order, with a row for each text.
    pub inputs: Vec<Tensor>,
    /// Tokens of each text, those around it included. What fills a row is none.
    pub tokens: Vec<u32>,
}

impl Fed {
    /// Tokens that are read, and paid for.
    #[must_use]
    pub fn tokens_total(&self) -> u64 {
        self.tokens.iter().copied().map(u64::from).sum()
    }
}

/// Why texts cannot be fed to a program.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// There are none, or more than the program takes at a time.
    #[error("there are {found} texts; a call has {min} to {max}")]
    Rows {
        /// How many there are.
        found: u64,
        /// The fewest.
        min: u64,
        /// The most, by the program and by the size of a call.
        max: u64,
    },
    /// There is too much text.
    #[error("the texts have {found} bytes, and may have {TEXTS_BYTES_MAX} together")]
    TextsTooLong {
        /// Bytes of all of them.
        found: usize,
    },
    /// A text has no tokens, or too many.
    #[error("text {place}: {source}")]
    Text {
        /// Its place, from 0.
        place: usize,
        /// What is wrong with it.
        source: EncodeError,
    },
    /// A token is given that there is not.
    #[error("text {place}: there is no token {id}")]
    NoSuchToken {
        /// Its place, from 0.
        place: usize,
        /// The token.
        id: u32,
    },
    /// A program computes nothing of no token.
    #[error("text {place} has no token")]
    NoToken {
        /// Its place, from 0.
        place: usize,
    },
    /// The declaration was not checked against this program.
    #[error("the version does not say how texts become `{0}`")]
    Undeclared(String),
}

/// Why nothing can be made of outputs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResultError {
    /// They are not what the program gives for what it was given.
    #[error("the outputs are not those of the program")]
    Foreign,
    /// A row has numbers that nothing can be made of.
    #[error("row {place}: {source}")]
    Row {
        /// Its place, from 0.
        place: usize,
        /// What is wrong with it.
        source: InvalidRows,
    },
}

/// What a declaration is checked against: see [`comptoir_domain::model::Manifest::misfits`].
#[must_use]
pub fn vocabulary(tokenizer: &Tokenizer, text: &TextInput) -> Vocabulary {
    let around = tokenizer.encode("", specials(text), usize::MAX);
    Vocabulary {
        end: tokenizer.end(),
        around: around.map_or(u64::MAX, |it| it.ids.len() as u64),
        has_pad: tokenizer.has(text.pad_id),
    }
}

/// What goes around a text, as its version declares it.
#[must_use]
pub const fn specials(text: &TextInput) -> Specials {
    if text.special_tokens {
        Specials::Keep
    } else {
        Specials::Skip
    }
}

/// Makes inputs of texts: a row for each, filled up to the program's length.
///
/// # Errors
/// For too many texts, for too much text, and for a text that has no tokens or, unless it may be cut, too many.
pub fn feed<'a, S: Copy + Into<Sequence<'a>>>(
    (text, tokenizer): (&TextInput, &Tokenizer),
    infer: &ProgramFacts,
    texts: &[S],
    overlong: Overlong,
) -> Result<Fed, FeedError> {
    let undeclared = |name: &str| FeedError::Undeclared(name.to_owned());
    let width = text
        .tokens_max(infer)
        .and_then(|it| usize::try_from(it).ok());
    let width = width.ok_or_else(|| undeclared(&text.ids))?;
    check_rows(infer, texts.len() as u64)?;
    let found = texts.iter().map(|it| (*it).into().bytes()).sum();
    if found > TEXTS_BYTES_MAX {
        return Err(FeedError::TextsTooLong { found });
    }
    let mut rows = Vec::with_capacity(texts.len());
    for (place, it) in texts.iter().enumerate() {
        let ids = match (*it).into() {
            Sequence::Text(it) => {
                let encoding = match overlong {
                    Overlong::Refuse => tokenizer.encode(it, specials(text), width),
                    Overlong::Cut => tokenizer.encode_cut(it, specials(text), width),
                };
                let encoding = encoding.map_err(|source| FeedError::Text { place, source })?;
                encoding.ids
            }
            Sequence::Tokens(ids) => taken(tokenizer, ids, (place, width), overlong)?.to_vec(),
        };
        if ids.is_empty() {
            return Err(FeedError::NoToken { place });
        }
        rows.push(ids);
    }
    let inputs = infer.inputs.iter().map(|input| {
        let fill = Fill::of(text, &input.name).ok_or_else(|| undeclared(&input.name))?;
        tensor(input, fill, &rows).ok_or_else(|| undeclared(&input.name))
    });
    let inputs = inputs.collect::<Result<_, _>>()?;
    let tokens = rows.iter().map(|ids| u32::try_from(ids.len()));
    let tokens = tokens.collect::<Result<_, _>>().expect("a text is limited");
    Ok(Fed { inputs, tokens })
}

impl Sequence<'_> {
    /// Bytes that are limited: tokens are, by what a row takes.
    const fn bytes(self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Tokens(_) => 0,
        }
    }
}

/// Tokens as they were given: those that there are, and as many as a row takes.
fn taken<'a>(
    tokenizer: &Tokenizer,
    ids: &'a [u32],
    (place, width): (usize, usize),
    overlong: Overlong,
) -> Result<&'a [u32], FeedError> {
    let ids = match overlong {
        Overlong::Cut => ids.get(..width).unwrap_or(ids),
        Overlong::Refuse if ids.len() > width => {
            let (found, max) = (ids.len(), width);
            let source = EncodeError::TooManyTokens { found, max };
            return Err(FeedError::Text { place, source });
        }
        Overlong::Refuse => ids,
    };
    match ids.iter().find(|id| !tokenizer.has(**id)) {
        Some(id) => Err(FeedError::NoSuchToken { place, id: *id }),
        None => Ok(ids),
    }
}

/// Refuses more rows than the program takes, or a call carries, before anything is made of them.
fn check_rows(infer: &ProgramFacts, found: u64) -> Result<(), FeedError> {
    let row: u64 = infer.inputs.iter().map(|it| it.row_bytes).sum();
    let carried = INPUT_BYTES_MAX / row.max(1);
    let (min, max) = (infer.batch_min.max(1), infer.batch_max.min(carried));
    if (min..=max).contains(&found) {
        Ok(())
    } else {
        Err(FeedError::Rows { found, min, max })
    }
}

/// What an input takes.
#[derive(Clone, Copy)]
enum Fill {
    Ids { pad: u32 },
    Mask,
    Zeros,
}

impl Fill {
    fn of(text: &TextInput, input: &str) -> Option<Self> {
        if text.ids == input {
            Some(Self::Ids { pad: text.pad_id })
        } else if text.mask.as_deref() == Some(input) {
            Some(Self::Mask)
        } else {
            let is_zeros = text.zeros.iter().any(|it| it == input);
            is_zeros.then_some(Self::Zeros)
        }
    }

    /// Its number for a token, or for what fills a row.
    const fn number(self, token: Option<u32>) -> u32 {
        match (self, token) {
            (Self::Ids { .. }, Some(id)) => id,
            (Self::Ids { pad }, None) => pad,
            (Self::Mask, Some(_)) => 1,
            (Self::Mask, None) | (Self::Zeros, _) => 0,
        }
    }
}

/// An input of rows of tokens; `None` where it takes none.
fn tensor(input: &RowShape, fill: Fill, rows: &[Vec<u32>]) -> Option<Tensor> {
    let dtype = dtype_of(&input.dtype)?;
    let [length] = input.row[..] else { return None };
    let width = usize::try_from(length).ok()?;
    let mut bytes = Vec::with_capacity(rows.len() * usize::try_from(input.row_bytes).ok()?);
    for ids in rows {
        let tokens = ids.iter().copied().map(Some).chain(std::iter::repeat(None));
        for number in tokens.take(width).map(|it| fill.number(it)) {
            match dtype {
                ScalarType::I64 => bytes.extend(u64::from(number).to_le_bytes()),
                ScalarType::I32 => bytes.extend(number.to_le_bytes()),
                _ => return None,
            }
        }
    }
    Some(Tensor {
        dtype,
        shape: vec![rows.len() as u64, length],
        bytes,
    })
}

/// Makes of each row of outputs what is declared. `tokens` are those of [`Fed`], where the rows are texts.
///
/// # Errors
/// For outputs that are not the program's, and for rows of which nothing can be made.
pub fn results(
    outcome: &Outcome,
    infer: &ProgramFacts,
    outputs: &[Tensor],
    tokens: Option<&[u32]>,
) -> Result<Vec<Applied>, ResultError> {
    let named = infer
        .outputs
        .iter()
        .position(|it| it.name == outcome.output);
    let (shape, output) = named
        .and_then(|at| Some((&infer.outputs[at], outputs.get(at)?)))
        .ok_or(ResultError::Foreign)?;
    let row_bytes = usize::try_from(shape.row_bytes).map_err(|_| ResultError::Foreign)?;
    let (length, width) = match (outcome.pooling, &shape.row[..]) {
        (None, [width]) => (1, *width),
        (Some(_), [length, width]) => (*length, *width),
        (None | Some(_), _) => return Err(ResultError::Foreign),
    };
    let rows = output.rows().unwrap_or_default();
    let fits = output.dtype == ScalarType::F32
        && shape.fits(output.dtype, &output.shape)
        && output.expected_bytes() == Some(output.bytes.len() as u64)
        && tokens.is_none_or(|it| it.len() as u64 == rows)
        && row_bytes > 0;
    if !fits {
        return Err(ResultError::Foreign);
    }
    let length = usize::try_from(length).map_err(|_| ResultError::Foreign)?;
    let width = usize::try_from(width).map_err(|_| ResultError::Foreign)?;
    let made = output.bytes.chunks_exact(row_bytes).enumerate();
    made.map(|(place, bytes)| {
        let counted = match tokens {
            Some(tokens) if outcome.pooling.is_some() => tokens[place] as usize,
            Some(_) | None => length,
        };
        row(outcome, bytes, (length, width), counted)
            .map_err(|source| ResultError::Row { place, source })
    })
    .collect()
}

/// What is made of one row, of whose vectors the first so many are of tokens.
fn row(
    outcome: &Outcome,
    bytes: &[u8],
    (length, width): (usize, usize),
    counted: usize,
) -> Result<Applied, InvalidRows> {
    let numbers = bytes.as_chunks::<4>().0.iter();
    let numbers: Vec<f32> = numbers.map(|it| f32::from_le_bytes(*it)).collect();
    let mut mask = vec![0; length];
    mask.iter_mut().take(counted).for_each(|it| *it = 1);
    apply(outcome, Rows::new(&numbers, &mask, width)?)
}
