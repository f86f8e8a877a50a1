//! What is refused of tokenizers and texts, with its place and by its name.

#![expect(clippy::unwrap_used, reason = "what a test cannot do without fails it")]

use comptoir_text::{EncodeError, InvalidTokenizer, Specials, Tokenizer, limits};
use serde_json::{Value, json};

/// A small tokenizer with something else in place of what stands at a field.
fn with(field: &str, value: Value) -> Value {
    let mut file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "unk_token": "u", "vocab": {"u": 0, "a": 1, "b": 2, "ab": 3}, "merges": [["a", "b"]]},
    });
    file[field] = value;
    file
}

fn read(file: &Value) -> Result<Tokenizer, InvalidTokenizer> {
    Tokenizer::read(file.to_string().as_bytes())
}

fn refusal(field: &str, value: Value) -> String {
    read(&with(field, value)).unwrap_err().to_string()
}

fn added(id: u32, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})
}

#[test]
fn a_file_is_short_flat_and_json() {
    let long = vec![b' '; limits::FILE_BYTES_MAX + 1];
    assert!(matches!(
        Tokenizer::read(&long),
        Err(InvalidTokenizer::TooLong { .. })
    ));
    let deep = "[".repeat(100_000);
    assert!(matches!(
        Tokenizer::read(deep.as_bytes()),
        Err(InvalidTokenizer::TooDeep)
    ));
    assert!(matches!(
        Tokenizer::read(b"{"),
        Err(InvalidTokenizer::Malformed(_))
    ));
    assert!(matches!(
        read(&with("more", json!(1))),
        Err(InvalidTokenizer::Malformed(_))
    ));
}

#[test]
fn components_that_are_not_taken_are_named() {
    let cases = [
        ("normalizer", json!({"type": "Magic"}), "Magic"),
        (
            "pre_tokenizer",
            json!({"type": "UnicodeScripts"}),
            "UnicodeScripts",
        ),
        (
            "decoder",
            json!({"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": true}),
            "CTC",
        ),
        (
            "model",
            json!({"type": "BPE", "dropout": 0.5, "vocab": {}, "merges": []}),
            "dropout",
        ),
        ("normalizer", json!({"type": "NFC", "form": 1}), "form"),
        (
            "pre_tokenizer",
            json!({"type": "Sequence", "pretokenizers": [
                {"type": "Digits", "individual_digits": true},
                {"type": "Metaspace", "replacement": "_", "prepend_scheme": "first"},
            ]}),
            "Metaspace",
        ),
        (
            "decoder",
            json!({"type": "Sequence", "decoders": [
                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 0, "stop": 1},
            ]}),
            "Strip",
        ),
    ];
    for (field, component, name) in cases {
        let message = refusal(field, component);
        assert!(message.contains(&format!("`{name}`")), "{message}");
        assert!(message.starts_with(&format!("/{field}")), "{message}");
    }
}

#[test]
fn what_would_blow_up_texts_is_refused() {
    let long = "x".repeat(limits::REPLACEMENT_BYTES_MAX + 1);
    let replace =
        |content: &str| json!({"type": "Replace", "pattern": {"String": "a"}, "content": content});
    assert!(refusal("normalizer", replace(&long)).contains("bytes of replacement"));
    assert!(
        refusal("normalizer", json!({"type": "Prepend", "prepend": long}))
            .contains("bytes of replacement")
    );
    assert!(refusal("decoder", replace(&long)).contains("bytes of replacement"));
    let steps = json!({"type": "Sequence", "normalizers": vec![json!({"type": "NFD"}); limits::STEPS_MAX + 1]});
    assert!(refusal("normalizer", steps).contains("steps"));
    // What is allowed is bounded with the text: 64 for each of a million bytes.
    let tokenizer = read(&with("normalizer", replace(&long[1..]))).unwrap();
    let error = tokenizer
        .encode(&"a".repeat(limits::TEXT_BYTES_MAX), Specials::Keep, 10)
        .unwrap_err();
    assert!(matches!(error, EncodeError::NormalisedTooLong), "{error:?}");
    let tokenizer = read(&with("normalizer", json!({"type": "NFKD"}))).unwrap();
    let error = tokenizer
        .encode(&"\u{fdfa}".repeat(300_000), Specials::Keep, 10)
        .unwrap_err();
    assert!(matches!(error, EncodeError::NormalisedTooLong), "{error:?}");
}

#[test]
fn patterns_that_backtrack_or_never_end_are_refused_or_ended() {
    let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    for pattern in [
        r"(a)\1",
        "(?=a)",
        "a*",
        "^a",
        r"[ab]*a[ab]{20}",
        &"a".repeat(5_000),
    ] {
        let error = read(&with("pre_tokenizer", split(pattern))).unwrap_err();
        assert!(
            matches!(error, InvalidTokenizer::Pattern { .. }),
            "{error:?}"
        );
    }
    assert!(read(&with("pre_tokenizer", split(r"(a+)+b"))).is_ok());
    let tokenizer = read(&with("pre_tokenizer", split("[^b]*b"))).unwrap();
    let error = tokenizer
        .encode(&"a".repeat(100_000), Specials::Keep, 10)
        .unwrap_err();
    assert!(matches!(error, EncodeError::PatternTooSlow), "{error:?}");
}

#[test]
fn models_that_contradict_themselves_are_refused() {
    let model =
        |vocab: Value, merges: Value| json!({"type": "BPE", "vocab": vocab, "merges": merges});
    let cases = [
        (
            model(json!({"a": 0, "b": 0}), json!([])),
            "two entries have the id 0",
        ),
        (model(json!({"a": 0}), json!([["a", "b"]])), "no `b`"),
        (
            model(json!({"a": 0, "b": 1}), json!([["a", "b"]])),
            "no `ab`",
        ),
        (
            json!({"type": "BPE", "continuing_subword_prefix": "##", "vocab": {"a": 0, "é": 1}, "merges": [["a", "é"]]}),
            "begin with `##`",
        ),
        (
            json!({"type": "Unigram", "unk_id": 9, "vocab": [["a", 0.0]]}),
            "cannot be built",
        ),
        (
            json!({"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0], ["a", 1.0]]}),
            "given twice",
        ),
        (
            json!({"type": "WordPiece", "unk_token": "a", "max_input_chars_per_word": 1000, "vocab": {"a": 0}}),
            "characters",
        ),
        (
            json!({"type": "WordLevel", "unk_token": "a", "vocab": {"x".repeat(1_025): 0}}),
            "bytes of an entry",
        ),
    ];
    for (model, expected) in cases {
        let message = refusal("model", model);
        assert!(message.contains(expected), "{message}");
    }
    let twice = with("normalizer", json!(null))
        .to_string()
        .replace("\"ab\":3", "\"ab\":3,\"a\":4");
    assert!(
        Tokenizer::read(twice.as_bytes())
            .unwrap_err()
            .to_string()
            .contains("given twice")
    );
}

#[test]
fn added_tokens_have_the_numbers_that_they_say() {
    assert!(
        read(&with(
            "added_tokens",
            json!([added(4, "<s>"), added(1, "a"), added(5, "</s>")])
        ))
        .is_ok()
    );
    assert!(refusal("added_tokens", json!([added(9, "<s>")])).contains("would be given 4"));
    assert!(
        refusal("added_tokens", json!([added(4, "<s>"), added(4, "<s>")]))
            .contains("/added_tokens/1")
    );
    assert!(refusal("added_tokens", json!([added(4, "")])).contains("is empty"));
    let mut strips = added(4, "<s>");
    strips["rstrip"] = json!(true);
    assert!(refusal("added_tokens", json!([strips, added(5, " ")])).contains("rstrip"));
}

#[test]
fn a_text_is_counted_in_full_where_it_is_too_long() {
    let tokenizer = read(&with("version", json!("1.0"))).unwrap();
    let error = tokenizer
        .encode(&"ab".repeat(50), Specials::Keep, 49)
        .unwrap_err();
    assert_eq!(error.to_string(), "the text has 50 tokens, and may have 49");
    let error = tokenizer
        .encode(&"a".repeat(limits::TEXT_BYTES_MAX + 1), Specials::Keep, 1)
        .unwrap_err();
    assert!(matches!(error, EncodeError::TextTooLong { .. }));
    let padded = tokenizer
        .encode("abab", Specials::Keep, 2)
        .unwrap()
        .padded(4, 0);
    assert_eq!(
        (padded.ids, padded.attention_mask),
        (vec![3, 3, 0, 0], vec![1, 1, 0, 0])
    );
}

#[test]
fn a_text_without_a_token_for_what_is_unknown_is_an_error() {
    let model = json!({"type": "WordLevel", "unk_token": "?", "vocab": {"a": 0}});
    let error = read(&with("model", model))
        .unwrap()
        .encode("b", Specials::Keep, 1)
        .unwrap_err();
    assert!(matches!(error, EncodeError::Unknown(_)), "{error:?}");
}
