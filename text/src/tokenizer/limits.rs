//! What a tokenizer and its texts may take, and why. Whoever publishes a model writes the one, whoever calls it the other.

/// Bytes of a `tokenizer.json`. The longest in use, of 262,000 entries with half a million merges, has just less.
pub const FILE_BYTES_MAX: usize = 32 << 20;
/// How deep its JSON may be nested. Those in use have eight levels; recursion takes stack.
pub const DEPTH_MAX: usize = 16;
/// Bytes of the JSON of its normaliser, pre-tokenizer, post-processor or decoder each. Only the table of a `Precompiled`
/// normaliser is long: some 320,000 bytes.
pub const COMPONENT_BYTES_MAX: usize = 1 << 20;
/// Steps of a normaliser, pre-tokenizer or decoder, `Sequence`s opened. Each passes over the whole text.
pub const STEPS_MAX: usize = 8;
/// Entries of a vocabulary: twice the largest in use. Each takes some 200 bytes of memory.
pub const VOCABULARY_MAX: usize = 1 << 19;
/// Bytes of an entry. Models look up prefixes of words of up to this length, and a decoder writes as much for each token.
pub const TOKEN_BYTES_MAX: usize = 1 << 10;
/// Bytes of all entries of a `Unigram` vocabulary, whose tree takes up to 300 bytes of memory for each.
pub const UNIGRAM_BYTES_MAX: usize = 2 << 20;
/// Bytes of an entry of a `Unigram` vocabulary, as many as 16 characters may have: at each place of a text, the tree is followed that
/// deep, in time by the square of it.
pub const UNIGRAM_TOKEN_BYTES_MAX: usize = 64;
/// Merges of a `BPE` model: twice as many as those in use have.
pub const MERGES_MAX: usize = 1 << 20;
/// Added tokens. Those in use have up to some thousand.
pub const ADDED_TOKENS_MAX: usize = 1 << 14;
/// Bytes of an added token: after a match, a search may look back as far.
pub const ADDED_TOKEN_BYTES_MAX: usize = 256;
/// Characters of a word that `WordPiece` takes apart, as everywhere in use: it takes time by the cube of it.
pub const WORD_CHARS_MAX: usize = 100;
/// Bytes of what a normaliser or decoder puts in place of something, or before or behind it: it can stand for a single byte.
pub const REPLACEMENT_BYTES_MAX: usize = 64;
/// Tokens that a post-processor puts around a text.
pub const FRAME_TOKENS_MAX: usize = 64;
/// Bytes of a regular expression.
pub const PATTERN_BYTES_MAX: usize = 4 << 10;
/// Memory of a regular expression's non-deterministic automaton. The largest in use takes 150,000 bytes.
pub const PATTERN_NFA_BYTES_MAX: usize = 512 << 10;
/// Memory of its deterministic automaton, and of what building it takes. The largest in use takes 3 MiB; what grows exponentially
/// ends here, after less than half a second.
pub const PATTERN_DFA_BYTES_MAX: usize = 8 << 20;
/// Bytes that a regular expression may look at, for each byte of a text. Those in use look at each some two times; one that looks
/// to the end of the text from each place would take time by its square.
pub const PATTERN_STEPS_PER_BYTE: usize = 64;
/// Bytes of a text to encode: a context of 262,144 tokens of four bytes each.
pub const TEXT_BYTES_MAX: usize = 1 << 20;
/// Bytes of a text for `WordPiece` and `Unigram`, which hostile vocabularies make slow: one to two seconds for this much. Models in use
/// with them have contexts of up to 8,192 tokens.
pub const SLOW_TEXT_BYTES_MAX: usize = 256 << 10;
/// Bytes of that text once it is normalised, all its parts together: what triples, as decomposed Hangul does, still fits.
pub const NORMALISED_BYTES_MAX: usize = 4 << 20;
/// Bytes that one stream of tokens may be decoded to: 64 for each of 262,144 tokens.
pub const DECODED_BYTES_MAX: usize = 16 << 20;
