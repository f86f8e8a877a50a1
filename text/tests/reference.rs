//! What this crate makes of texts is what the reference implementation makes of them: Python's, with Oniguruma, in fixtures, and the
//! `tokenizers` crate with its own pipeline around its models, for texts that nobody chose.

use std::sync::LazyLock;

use comptoir_text::{EncodeError, Specials, Tokenizer};
use proptest::prelude::*;
use serde::Deserialize;

/// A tokenizer, ours and the reference's, with what Python's made of texts.
struct Fixture {
    name: &'static str,
    ours: Tokenizer,
    theirs: tokenizers::Tokenizer,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    plain: Vec<u32>,
    decoded: String,
    with_specials: String,
}

macro_rules! fixtures {
    ($($name:literal)+) => {
        vec![$({
            let file = include_bytes!(concat!("../fixtures/", $name, ".tokenizer.json"));
            let cases = include_bytes!(concat!("../fixtures/", $name, ".cases.json"));
            let mut theirs = tokenizers::Tokenizer::from_bytes(file).unwrap();
            theirs.with_truncation(None).unwrap();
            Fixture {
                name: $name,
                ours: Tokenizer::read(file).unwrap(),
                theirs,
                cases: serde_json::from_slice(cases).unwrap(),
            }
        }),+]
    };
}

static FIXTURES: LazyLock<Vec<Fixture>> = LazyLock::new(
    || fixtures!["bert" "cl100k" "clip" "gpt2" "llama" "metaspace" "o200k" "unigram" "words"],
);

#[test]
fn tokens_are_those_of_the_reference() {
    for fixture in FIXTURES.iter() {
        for case in &fixture.cases {
            let ids = |specials| {
                fixture
                    .ours
                    .encode(&case.text, specials, 10_000)
                    .unwrap()
                    .ids
            };
            assert_eq!(
                ids(Specials::Keep),
                case.ids,
                "{}: {:?}",
                fixture.name,
                case.text
            );
            assert_eq!(
                ids(Specials::Skip),
                case.plain,
                "{}: {:?}",
                fixture.name,
                case.text
            );
        }
    }
}

#[test]
fn texts_of_tokens_are_those_of_the_reference() {
    for fixture in FIXTURES.iter() {
        for case in &fixture.cases {
            let text = |specials| fixture.ours.decode(&case.ids, specials).unwrap();
            assert_eq!(
                text(Specials::Skip),
                case.decoded,
                "{}: {:?}",
                fixture.name,
                case.text
            );
            assert_eq!(
                text(Specials::Keep),
                case.with_specials,
                "{}: {:?}",
                fixture.name,
                case.text
            );
        }
    }
}

/// Texts of what tokenizers treat apart: words, spaces of all kinds, marks, numbers, special tokens, and anything else.
fn texts() -> impl Strategy<Value = String> {
    let pieces = prop_oneof![
        "[a-zA-Z']{1,8}",
        "[ \t\n\r\u{a0}\u{3000}\u{85}]{1,4}",
        "[0-9٠-٩Ⅷ½]{1,5}",
        "[!-/:-@ßǅİéÉﬁ½Ａ한국日本語]{1,4}",
        "[e\u{301}\u{308}\u{200d}\u{202e}\u{fe0f}🏳🙂👍🏽]{1,4}",
        prop_oneof![
            Just("<s>"),
            Just("</s>"),
            Just("<unk>"),
            Just("<|end|>"),
            Just("[CLS]"),
            Just("[MASK]"),
            Just("▁"),
            Just("<0x41>")
        ]
        .prop_map(str::to_owned),
        any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(pieces, 0..12).prop_map(|it| it.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_text_has_the_tokens_that_the_library_gives_it(text in texts()) {
        for fixture in FIXTURES.iter() {
            let theirs = fixture.theirs.encode_fast(text.as_str(), true).unwrap();
            let ours = fixture.ours.encode(&text, Specials::Keep, 10_000).unwrap();
            prop_assert_eq!(&ours.ids, theirs.get_ids(), "{}", fixture.name);
            prop_assert!(ours.attention_mask.iter().all(|it| *it == 1));
        }
    }

    #[test]
    fn any_tokens_have_the_text_that_the_library_gives_them(ids in prop::collection::vec(0_u32..250, 1..24)) {
        for fixture in FIXTURES.iter() {
            let ids: Vec<u32> = ids.iter().copied().filter(|id| fixture.ours.has(*id)).collect();
            for (specials, skips) in [(Specials::Keep, false), (Specials::Skip, true)] {
                // Its decoder for end-of-word suffixes panics where there is no token.
                let shown = ids.iter().any(|id| !skips || !fixture.ours.decode(&[*id], specials).unwrap().is_empty());
                let theirs = if shown { fixture.theirs.decode(&ids, skips).unwrap() } else { String::new() };
                let ours = fixture.ours.decode(&ids, specials).unwrap();
                prop_assert_eq!(&ours, &theirs, "{}", fixture.name);
            }
        }
    }

    #[test]
    fn pieces_of_a_stream_are_the_text_of_all_tokens(ids in prop::collection::vec(0_u32..250, 0..24)) {
        for fixture in FIXTURES.iter() {
            let ids: Vec<u32> = ids.iter().copied().filter(|id| fixture.ours.has(*id)).collect();
            let mut stream = fixture.ours.stream(Specials::Skip);
            let mut text = String::new();
            for id in &ids {
                text.push_str(&stream.push(*id).unwrap());
            }
            text.push_str(&stream.finish().unwrap());
            prop_assert_eq!(text, fixture.ours.decode(&ids, Specials::Skip).unwrap(), "{}", fixture.name);
        }
    }

    #[test]
    fn a_text_is_never_cut(text in texts(), max in 0_usize..40) {
        for fixture in FIXTURES.iter() {
            let whole = fixture.ours.encode(&text, Specials::Keep, usize::MAX).unwrap();
            match fixture.ours.encode(&text, Specials::Keep, max) {
                Ok(encoding) => prop_assert_eq!(encoding, whole),
                Err(EncodeError::TooManyTokens { found, max: allowed }) => {
                    prop_assert_eq!((found, allowed), (whole.ids.len(), max));
                    prop_assert!(found > max);
                }
                Err(error) => return Err(TestCaseError::fail(error.to_string())),
            }
        }
    }
}

#[test]
fn half_a_character_is_never_shown() {
    let fixture = FIXTURES.iter().find(|it| it.name == "gpt2").unwrap();
    let ids = fixture
        .ours
        .encode("🙂 日", Specials::Skip, 100)
        .unwrap()
        .ids;
    let mut stream = fixture.ours.stream(Specials::Skip);
    let mut pieces: Vec<String> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
    pieces.push(stream.finish().unwrap());
    assert_eq!(pieces.concat(), " 🙂 日");
    assert!(
        pieces.len() > 6 && pieces.iter().all(|it| !it.contains('\u{fffd}')),
        "{pieces:?}"
    );
}
