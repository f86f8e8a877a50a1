//! Texts become the inputs that Python's `tokenizers` would make of them, and outputs what `NumPy` makes of them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, num::NonZeroU32};

use comptoir_domain::{
    digest::Sha256,
    fit::{ProgramFacts, RowShape},
    model::{Labels, Outcome, Pooling, TextInput},
    program::graph::ScalarType,
};
use comptoir_text::{
    Applied, EncodeError, Fed, FeedError, InvalidRows, Overlong, ResultError, Sequence,
    TEXTS_BYTES_MAX, Tokenizer, feed, results, vocabulary,
};
use comptoir_wire::calls::{self, Ask, CALL_BYTES_MAX, Call, Tensor};
use serde::Deserialize;

/// Tokens of a row: more than any text of the fixture has.
const WIDTH: u64 = 128;

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    plain: Vec<u32>,
}

fn cases() -> Vec<Case> {
    serde_json::from_str(include_str!("../fixtures/bert.cases.json")).unwrap()
}

fn tokenizer() -> Tokenizer {
    Tokenizer::read(include_bytes!("../fixtures/bert.tokenizer.json")).unwrap()
}

fn row(name: &str, dtype: &str, row: &[u64]) -> RowShape {
    let bytes = if dtype == "I64" { 8 } else { 4 };
    RowShape {
        name: name.to_owned(),
        dtype: dtype.to_owned(),
        row: row.to_vec(),
        row_bytes: row.iter().product::<u64>() * bytes,
    }
}

fn program(width: u64) -> ProgramFacts {
    ProgramFacts {
        torch_version: String::new(),
        is_trainable: false,
        batch_min: 1,
        batch_max: 10_000,
        inputs: vec![
            row("kinds", "I64", &[width]),
            row("mask", "I32", &[width]),
            row("ids", "I64", &[width]),
        ],
        outputs: vec![
            row("hidden", "F32", &[width, 4]),
            row("pooled", "F32", &[5]),
        ],
        weights: BTreeMap::new(),
        madds_per_row: 0,
        stored_bytes: 0,
        learned_bytes: 0,
        value_bytes: Vec::new(),
    }
}

fn declared() -> TextInput {
    TextInput {
        tokenizer: Sha256([0; 32]),
        ids: "ids".to_owned(),
        mask: Some("mask".to_owned()),
        zeros: vec!["kinds".to_owned()],
        pad_id: 7,
        special_tokens: true,
    }
}

fn fed(text: &TextInput, width: u64, texts: &[&str]) -> Result<Fed, FeedError> {
    feed(
        (text, &tokenizer()),
        &program(width),
        texts,
        Overlong::Refuse,
    )
}

/// The whole numbers of a tensor.
fn numbers(it: &Tensor) -> Vec<u32> {
    let number = |bytes: &[u8]| u32::from_le_bytes(*bytes.first_chunk().unwrap());
    let size = usize::try_from(it.dtype.size()).unwrap();
    it.bytes.chunks_exact(size).map(number).collect()
}

#[test]
fn texts_become_rows_in_the_order_of_the_program_filled_up_to_its_length() {
    let cases: Vec<_> = cases()
        .into_iter()
        .filter(|it| it.ids.len() <= 128)
        .collect();
    assert!(cases.len() >= 10);
    let texts: Vec<_> = cases.iter().map(|it| it.text.as_str()).collect();
    let fed = fed(&declared(), WIDTH, &texts).unwrap();
    let [kinds, mask, ids] = &fed.inputs[..] else {
        panic!("{} inputs", fed.inputs.len())
    };
    let dtypes = [kinds.dtype, mask.dtype, ids.dtype];
    assert_eq!(dtypes, [ScalarType::I64, ScalarType::I32, ScalarType::I64]);
    assert!(kinds.bytes.iter().all(|it| *it == 0));
    let width = usize::try_from(WIDTH).unwrap();
    let (ids, mask) = (numbers(ids), numbers(mask));
    for (place, case) in cases.iter().enumerate() {
        let (ids, mask) = (
            &ids[place * width..][..width],
            &mask[place * width..][..width],
        );
        let (read, filled) = ids.split_at(case.ids.len());
        assert_eq!(read, case.ids, "{:?}", case.text);
        assert!(filled.iter().all(|it| *it == 7));
        let (read, filled) = mask.split_at(case.ids.len());
        assert!(read.iter().all(|it| *it == 1) && filled.iter().all(|it| *it == 0));
    }
    let counted: usize = cases.iter().map(|it| it.ids.len()).sum();
    assert_eq!(
        fed.tokens_total(),
        counted as u64,
        "what fills a row is not paid for"
    );
    let call = Call {
        id: uuid::Uuid::nil(),
        version: uuid::Uuid::nil(),
        within_ms: 1,
        ask: Ask::Infer(fed.inputs),
    };
    assert_eq!(calls::call(&calls::encode(&call)).unwrap(), call);
}

#[test]
fn without_special_tokens_a_text_is_its_tokens_alone_and_has_one() {
    let bare = TextInput {
        special_tokens: false,
        ..declared()
    };
    let case = &cases()[0];
    let it = fed(&bare, WIDTH, &[&case.text]).unwrap();
    assert_eq!(it.tokens, [u32::try_from(case.plain.len()).unwrap()]);
    assert_eq!(numbers(&it.inputs[2])[..case.plain.len()], case.plain);
    let refused = fed(&bare, WIDTH, &[&case.text, ""]);
    assert!(matches!(refused, Err(FeedError::NoToken { place: 1 })));
}

#[test]
fn a_text_that_is_too_long_is_refused_with_its_count_unless_it_may_be_cut() {
    let case = &cases()[0];
    let (found, width) = (case.ids.len(), 8);
    let refused = fed(&declared(), 8, &["", &case.text]).unwrap_err();
    assert_eq!(
        refused.to_string(),
        format!("text 1: the text has {found} tokens, and may have 8")
    );
    let cut = feed(
        (&declared(), &tokenizer()),
        &program(8),
        &[case.text.as_str()],
        Overlong::Cut,
    );
    let cut = cut.unwrap();
    let expected = [&case.ids[..width - 1], &case.ids[found - 1..]].concat();
    assert_eq!(
        numbers(&cut.inputs[2]),
        expected,
        "those around a text stay"
    );
    assert_eq!(cut.tokens, [8]);
}

#[test]
fn tokens_that_are_given_are_taken_as_they_are_within_the_same_bounds() {
    let (text, tokenizer, case) = (declared(), tokenizer(), &cases()[0]);
    let feed = |ids: &[u32], overlong| {
        let rows = [Sequence::Text(""), Sequence::Tokens(ids)];
        feed((&text, &tokenizer), &program(8), &rows, overlong)
    };
    let ids = &case.plain[..3];
    let fed_ids = feed(ids, Overlong::Refuse).unwrap();
    assert_eq!(fed_ids.tokens, [2, 3], "nothing is put around them");
    assert_eq!(numbers(&fed_ids.inputs[2])[8..11], *ids);
    let long = ids.repeat(3);
    let refused = feed(&long, Overlong::Refuse).unwrap_err().to_string();
    assert_eq!(refused, "text 1: the text has 9 tokens, and may have 8");
    assert_eq!(feed(&long, Overlong::Cut).unwrap().tokens, [2, 8]);
    let refused = feed(&[u32::MAX], Overlong::Refuse);
    let id = u32::MAX;
    assert!(matches!(refused, Err(FeedError::NoSuchToken { place: 1, id: it }) if it == id));
    let refused = feed(&[], Overlong::Refuse);
    assert!(matches!(refused, Err(FeedError::NoToken { place: 1 })));
}

#[test]
fn calls_are_bounded_before_anything_is_made_of_texts() {
    let (text, tokenizer) = (declared(), tokenizer());
    let many = |texts: &[&str], program: &ProgramFacts| {
        feed((&text, &tokenizer), program, texts, Overlong::Cut).unwrap_err()
    };
    assert!(matches!(
        many(&[], &program(8)),
        FeedError::Rows { found: 0, .. }
    ));
    let carried = CALL_BYTES_MAX / (20 << 10);
    let FeedError::Rows { max, .. } = many(&vec!["a"; carried], &program(1 << 10)) else {
        panic!("more than a frame holds")
    };
    assert!(max < carried as u64);
    let narrow = ProgramFacts {
        batch_max: 2,
        ..program(8)
    };
    assert!(matches!(
        many(&["a"; 3], &narrow),
        FeedError::Rows {
            found: 3,
            min: 1,
            max: 2
        }
    ));
    let half = "a ".repeat(TEXTS_BYTES_MAX / 4 + 1);
    let refused = many(&[&half, &half], &program(8));
    assert!(matches!(refused, FeedError::TextsTooLong { .. }));
    let FeedError::Text { place: 1, source } = many(&["a", &half], &program(8)) else {
        panic!("a text has a length of its own")
    };
    assert!(matches!(source, EncodeError::TextTooLong { .. }));
}

#[test]
fn what_is_not_declared_is_not_guessed() {
    let mut text = declared();
    text.zeros.clear();
    let refused = fed(&text, 8, &["a"]).unwrap_err();
    assert!(matches!(refused, FeedError::Undeclared(name) if name == "kinds"));
    text.ids = "no".to_owned();
    let refused = fed(&text, 8, &["a"]).unwrap_err();
    assert!(matches!(refused, FeedError::Undeclared(name) if name == "no"));
}

#[test]
fn a_tokenizer_says_what_its_program_must_have() {
    let it = vocabulary(&tokenizer(), &declared());
    let file: serde_json::Value =
        serde_json::from_str(include_str!("../fixtures/bert.tokenizer.json")).unwrap();
    let entries = file["model"]["vocab"].as_object().unwrap();
    let last = entries.values().map(|it| it.as_u64().unwrap()).max();
    assert_eq!(Some(u64::from(it.end) - 1), last);
    assert_eq!((it.around, it.has_pad), (2, true));
    let foreign = TextInput {
        pad_id: it.end,
        special_tokens: false,
        ..declared()
    };
    let it = vocabulary(&tokenizer(), &foreign);
    assert_eq!((it.around, it.has_pad), (0, false));
}

/// Made by `fixtures/make.py` with `NumPy`.
#[derive(Deserialize)]
struct Reference {
    width: usize,
    hidden: Vec<f32>,
    mask: Vec<u8>,
    mean: Vec<f32>,
    logits: Vec<f32>,
    top_3: Vec<u32>,
}

fn reference() -> Reference {
    serde_json::from_str(include_str!("../fixtures/arithmetic.json")).unwrap()
}

fn tensor(shape: &[usize], numbers: &[f32]) -> Tensor {
    Tensor {
        dtype: ScalarType::F32,
        shape: shape.iter().map(|it| *it as u64).collect(),
        bytes: numbers.iter().flat_map(|it| it.to_le_bytes()).collect(),
    }
}

fn outcome(output: &str, pooling: Option<Pooling>) -> Outcome {
    Outcome {
        output: output.to_owned(),
        pooling,
        normalise: false,
        softmax: false,
        top_k: None,
    }
}

#[test]
fn rows_of_tokens_are_pooled_by_how_many_their_text_has() {
    let it = reference();
    let tokens = it.mask.iter().take_while(|it| **it == 1).count();
    let infer = ProgramFacts {
        outputs: vec![row(
            "hidden",
            "F32",
            &[it.mask.len() as u64, it.width as u64],
        )],
        ..program(8)
    };
    let hidden = [&it.hidden[..], &it.hidden].concat();
    let output = [tensor(&[2, it.mask.len(), it.width], &hidden)];
    let tokens = [1, u32::try_from(tokens).unwrap()];
    let mean = outcome("hidden", Some(Pooling::Mean));
    let made = results(&mean, &infer, &output, Some(&tokens)).unwrap();
    let first = Applied::Vector(it.hidden[..it.width].to_vec());
    assert_eq!(made[0], first, "the mean of one token");
    let Applied::Vector(second) = &made[1] else {
        panic!("no vector")
    };
    for (our, their) in second.iter().zip(&it.mean) {
        assert!((our - their).abs() <= their.abs() * 2.0 * f32::EPSILON);
    }
}

#[test]
fn classes_are_ranked_and_have_their_labels() {
    let it = reference();
    let infer = ProgramFacts {
        outputs: vec![
            row("other", "F32", &[1]),
            row("logits", "F32", &[it.logits.len() as u64]),
        ],
        ..program(8)
    };
    let output = [
        tensor(&[1, 1], &[0.0]),
        tensor(&[1, it.logits.len()], &it.logits),
    ];
    let ranked = Outcome {
        softmax: true,
        top_k: NonZeroU32::new(3),
        ..outcome("logits", None)
    };
    let made = results(&ranked, &infer, &output, None).unwrap();
    let [Applied::Ranked(ranked)] = &made[..] else {
        panic!("not ranked: {made:?}")
    };
    let places: Vec<_> = ranked.iter().map(|it| it.index).collect();
    assert_eq!(places, it.top_3);
    let labels = Labels {
        output: "logits".to_owned(),
        names: (0..it.logits.len())
            .map(|it| format!("class {it}"))
            .collect(),
    };
    let label = format!("class {}", it.top_3[0]);
    assert_eq!(ranked[0].label(&labels), Some(label.as_str()));
}

#[test]
fn outputs_that_are_not_the_programs_are_refused_and_so_are_numbers_that_are_none() {
    let infer = program(8);
    let plain = outcome("pooled", None);
    let hidden = tensor(&[1, 8, 4], &[0.0; 32]);
    let pooled = tensor(&[1, 5], &[0.0; 5]);
    let made = |outputs: &[Tensor], tokens: Option<&[u32]>| {
        results(&plain, &infer, outputs, tokens).map(|it| it.len())
    };
    assert_eq!(made(&[hidden.clone(), pooled.clone()], Some(&[3])), Ok(1));
    let foreign = [
        made(std::slice::from_ref(&hidden), None),
        made(&[pooled.clone(), hidden.clone()], None),
        made(&[hidden.clone(), pooled.clone()], Some(&[3, 3])),
        made(&[hidden.clone(), tensor(&[1, 5], &[0.0; 4])], None),
        results(&outcome("no", None), &infer, &[], None).map(|it| it.len()),
        results(
            &outcome("hidden", None),
            &infer,
            std::slice::from_ref(&hidden),
            None,
        )
        .map(|it| it.len()),
    ];
    for it in foreign {
        assert_eq!(it, Err(ResultError::Foreign));
    }
    let nan = tensor(
        &[2, 5],
        &[[0.0; 5], [0.0, f32::NAN, 0.0, 0.0, 0.0]].concat(),
    );
    let source = InvalidRows::NotFinite(1);
    let expected = ResultError::Row { place: 1, source };
    assert_eq!(made(&[hidden, nan], None), Err(expected));
}
