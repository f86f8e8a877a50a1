//! Models: the library's, made of what was checked. It trusts its files: merges of entries that are not there, entries with the same
//! number and prefixes that are none are refused here, because there they panic or depend on the order of a hash map.

use std::collections::{BTreeSet, HashSet};

use tokenizers::{
    Model as _, ModelWrapper,
    models::{
        bpe::{BPE, Vocab},
        unigram::Unigram,
        wordlevel::WordLevel,
        wordpiece::WordPiece,
    },
};

use super::{
    EncodeError, InvalidTokenizer, check,
    document::{self, Merge, ModelType, Vocabulary},
    limits::{
        REPLACEMENT_BYTES_MAX, SLOW_TEXT_BYTES_MAX, TEXT_BYTES_MAX, TOKEN_BYTES_MAX,
        UNIGRAM_BYTES_MAX, UNIGRAM_TOKEN_BYTES_MAX, WORD_CHARS_MAX,
    },
};

const PLACE: &str = "/model";
const VOCABULARY: &str = "/model/vocab";

/// What makes tokens of a piece.
#[derive(Debug, Clone)]
pub struct Model(ModelWrapper);

impl Model {
    /// Builds what a file describes.
    pub fn read(document: document::Model) -> Result<Self, InvalidTokenizer> {
        match told(&document) {
            ModelType::BPE => bpe(document),
            ModelType::WordPiece => word_piece(document),
            ModelType::WordLevel => word_level(document),
            ModelType::Unigram => unigram(document),
        }
        .map(Self)
    }

    /// How many entries its vocabulary has.
    pub fn len(&self) -> u32 {
        u32::try_from(self.0.get_vocab_size()).expect("the vocabulary is limited")
    }

    /// One more than the largest number of an entry.
    pub fn end(&self) -> u32 {
        let numbers = self.0.get_vocab().into_values();
        numbers.max().map_or(0, |id| id.saturating_add(1))
    }

    /// Bytes that a text may have.
    pub const fn text_bytes_max(&self) -> usize {
        match self.0 {
            ModelWrapper::BPE(_) | ModelWrapper::WordLevel(_) => TEXT_BYTES_MAX,
            ModelWrapper::WordPiece(_) | ModelWrapper::Unigram(_) => SLOW_TEXT_BYTES_MAX,
        }
    }

    /// The number of an entry.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.0.token_to_id(token)
    }

    /// The entry of a number.
    pub fn token(&self, id: u32) -> Option<String> {
        self.0.id_to_token(id)
    }

    /// The tokens of a piece.
    pub fn tokens(&self, piece: &str) -> Result<impl Iterator<Item = u32>, EncodeError> {
        let tokens = self.0.tokenize(piece).map_err(EncodeError::Unknown)?;
        Ok(tokens.into_iter().map(|it| it.id))
    }
}

/// Its type; files of old do not say it, and are told apart as the library does.
fn told(document: &document::Model) -> ModelType {
    document.r#type.unwrap_or_else(|| match &document.vocab {
        _ if document.merges.is_some() => ModelType::BPE,
        Vocabulary::Scored(_) => ModelType::Unigram,
        Vocabulary::Numbered(_) if document.max_input_chars_per_word.is_some() => {
            ModelType::WordPiece
        }
        Vocabulary::Numbered(_) => ModelType::WordLevel,
    })
}

fn library(source: tokenizers::Error) -> InvalidTokenizer {
    InvalidTokenizer::Library {
        place: PLACE,
        source,
    }
}

/// The entries by their text: every text and every number once.
fn numbered(vocabulary: Vocabulary) -> Result<Vocab, InvalidTokenizer> {
    let Vocabulary::Numbered(entries) = vocabulary else {
        return Err(check::contradiction(
            VOCABULARY,
            "has scores, and the model takes numbers",
        ));
    };
    let mut ids = BTreeSet::new();
    for (token, id) in &entries {
        check::count(
            VOCABULARY,
            "bytes of an entry",
            token.len(),
            TOKEN_BYTES_MAX,
        )?;
        if !ids.insert(*id) {
            return Err(check::contradiction(
                VOCABULARY,
                format!("two entries have the id {id}"),
            ));
        }
    }
    let vocabulary: Vocab = entries.into_iter().collect();
    if vocabulary.len() < ids.len() {
        return Err(check::contradiction(VOCABULARY, "an entry is given twice"));
    }
    Ok(vocabulary)
}

fn affix(place: &str, text: Option<&str>) -> Result<(), InvalidTokenizer> {
    check::count(
        place,
        "bytes",
        text.map_or(0, str::len),
        REPLACEMENT_BYTES_MAX,
    )
}

fn bpe(document: document::Model) -> Result<ModelWrapper, InvalidTokenizer> {
    if document.dropout.is_some_and(|it| it != 0.0) {
        let reason = "the same text would have other tokens each time";
        return Err(check::unsupported("/model/dropout", "dropout", reason));
    }
    let prefix = document.continuing_subword_prefix.unwrap_or_default();
    affix("/model/continuing_subword_prefix", Some(&prefix))?;
    affix(
        "/model/end_of_word_suffix",
        document.end_of_word_suffix.as_deref(),
    )?;
    let vocabulary = numbered(document.vocab)?;
    let merges = document.merges.map(|it| it.0).unwrap_or_default();
    for (at, merge) in merges.iter().enumerate() {
        can_merge(merge, &prefix, &vocabulary)
            .map_err(|detail| check::contradiction(format!("/model/merges/{at}"), detail))?;
    }
    let merges = merges.into_iter().map(|it| (it.0, it.1)).collect();
    // Its cache would outlive the model, in every thread.
    let mut builder = BPE::builder()
        .cache_capacity(0)
        .vocab_and_merges(vocabulary, merges)
        .fuse_unk(document.fuse_unk)
        .byte_fallback(document.byte_fallback)
        .ignore_merges(document.ignore_merges);
    if let Some(unknown) = document.unk_token {
        builder = builder.unk_token(unknown);
    }
    if !prefix.is_empty() {
        builder = builder.continuing_subword_prefix(prefix);
    }
    if let Some(suffix) = document.end_of_word_suffix.filter(|it| !it.is_empty()) {
        builder = builder.end_of_word_suffix(suffix);
    }
    builder.build().map(ModelWrapper::BPE).map_err(library)
}

fn can_merge(Merge(left, right): &Merge, prefix: &str, vocabulary: &Vocab) -> Result<(), String> {
    let Some(rest) = right.strip_prefix(prefix) else {
        return Err(format!("the second entry does not begin with `{prefix}`"));
    };
    let whole = format!("{left}{rest}");
    for entry in [left, right, &whole] {
        if !vocabulary.contains_key(entry) {
            return Err(format!("the vocabulary has no `{}`", entry.escape_debug()));
        }
    }
    Ok(())
}

fn word_piece(document: document::Model) -> Result<ModelWrapper, InvalidTokenizer> {
    let prefix = document
        .continuing_subword_prefix
        .unwrap_or_else(|| "##".to_owned());
    affix("/model/continuing_subword_prefix", Some(&prefix))?;
    let chars = document.max_input_chars_per_word.unwrap_or(100);
    check::count(
        "/model/max_input_chars_per_word",
        "characters",
        chars,
        WORD_CHARS_MAX,
    )?;
    WordPiece::builder()
        .vocab(numbered(document.vocab)?)
        .unk_token(document.unk_token.unwrap_or_else(|| "[UNK]".to_owned()))
        .continuing_subword_prefix(prefix)
        .max_input_chars_per_word(chars)
        .build()
        .map(ModelWrapper::WordPiece)
        .map_err(library)
}

fn word_level(document: document::Model) -> Result<ModelWrapper, InvalidTokenizer> {
    WordLevel::builder()
        .vocab(numbered(document.vocab)?)
        .unk_token(document.unk_token.unwrap_or_else(|| "<unk>".to_owned()))
        .build()
        .map(ModelWrapper::WordLevel)
        .map_err(library)
}

fn unigram(document: document::Model) -> Result<ModelWrapper, InvalidTokenizer> {
    let Vocabulary::Scored(entries) = document.vocab else {
        return Err(check::contradiction(
            VOCABULARY,
            "has numbers, and the model takes scores",
        ));
    };
    let (mut bytes, mut seen) = (0_usize, HashSet::with_capacity(entries.len()));
    for (at, (token, _)) in entries.iter().enumerate() {
        check::count(
            VOCABULARY,
            "bytes of an entry",
            token.len(),
            UNIGRAM_TOKEN_BYTES_MAX,
        )?;
        bytes += token.len();
        if !seen.insert(token) {
            return Err(check::contradiction(
                format!("{VOCABULARY}/{at}"),
                "is given twice",
            ));
        }
    }
    check::count(VOCABULARY, "bytes", bytes, UNIGRAM_BYTES_MAX)?;
    Unigram::from(entries, document.unk_id, document.byte_fallback)
        .map(ModelWrapper::Unigram)
        .map_err(library)
}
