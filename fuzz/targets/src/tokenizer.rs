//! Tokenizers of strangers, over texts of strangers.

use std::fs;

use comptoir_text::{Specials, Tokenizer};

use crate::seeds::{ROOT, Seed};

/// Ends the file; what follows is a text. JSON has no such byte.
const SEPARATOR: u8 = 0;
/// Longer texts say nothing new.
const TOKENS_MAX: usize = 1 << 16;

/// A `tokenizer.json`, and a text behind it.
pub fn file_and_text(input: &[u8]) -> bool {
    let end = input.iter().position(|it| *it == SEPARATOR);
    let (file, text) = match end {
        Some(end) => (&input[..end], &input[end + 1..]),
        None => (input, [].as_slice()),
    };
    let Ok(tokenizer) = Tokenizer::read(file) else {
        return false;
    };
    let text = String::from_utf8_lossy(text);
    if let Ok(encoding) = tokenizer.encode(&text, Specials::Keep, TOKENS_MAX) {
        assert_eq!(encoding.ids.len(), encoding.attention_mask.len());
        let again = tokenizer.encode(&text, Specials::Keep, encoding.ids.len());
        assert_eq!(
            again.ok().as_ref(),
            Some(&encoding),
            "the same tokens, and as many are enough"
        );
        for specials in [Specials::Keep, Specials::Skip] {
            tokenizer
                .decode(&encoding.ids, specials)
                .expect("tokens of a text can be decoded");
        }
        streamed(&tokenizer, &encoding.ids);
    }
    true
}

/// The pieces of a stream are the text of all its tokens.
fn streamed(tokenizer: &Tokenizer, ids: &[u32]) {
    let mut stream = tokenizer.stream(Specials::Skip);
    let pieces = ids
        .iter()
        .map(|id| stream.push(*id).expect("it was decoded before"));
    let text: String = pieces.collect();
    let text = text + &stream.finish().expect("it was decoded before");
    let whole = tokenizer.decode(ids, Specials::Skip);
    assert_eq!(whole.as_ref(), Ok(&text));
}

/// Tokenizers that are read, each with a text.
pub fn files_and_texts() -> Vec<Seed> {
    let names = [
        "bert",
        "cl100k",
        "clip",
        "gpt2",
        "llama",
        "metaspace",
        "unigram",
        "words",
    ];
    let text = "\0  It's 12345 <s>tokens</s> \u{fb01} e\u{301} \u{65e5}\u{672c}\n\n [CLS] <|end|>";
    let seed = |name: &&str| {
        let path = format!("{ROOT}/text/fixtures/{name}.tokenizer.json");
        let file = fs::read(path).expect("the checkout has it");
        Seed::new(*name, [file.as_slice(), text.as_bytes()].concat())
    };
    names.iter().map(seed).collect()
}
