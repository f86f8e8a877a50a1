//! Generations end as the API says that they do, whatever the tokens are.

#![expect(clippy::unwrap_used, reason = "what a test cannot do without fails it")]

use comptoir_text::{
    FinishReason, Generation, GenerationError, Limits, Specials, Stops, Tokenizer,
};

fn tokenizer() -> Tokenizer {
    Tokenizer::read(include_bytes!("../fixtures/llama.tokenizer.json")).unwrap()
}

fn limits(tokens_max: u32, stops: &[&str], ends: &[u32]) -> Limits {
    let stops = stops.iter().map(|it| (*it).to_owned()).collect();
    Limits {
        tokens_max,
        stops: Stops::new(stops).unwrap(),
        ends: ends.iter().copied().collect(),
    }
}

/// The text, why it ended, and with how many tokens, when it is given the tokens of a text.
fn generated(text: &str, limits: Limits) -> (String, Option<FinishReason>, u32) {
    let tokenizer = tokenizer();
    let mut generation = Generation::new(&tokenizer, limits);
    let mut shown = String::new();
    for id in tokenizer.encode(text, Specials::Skip, 1_000).unwrap().ids {
        let next = generation.push(id).unwrap();
        shown.push_str(&next.text);
        if next.finish.is_some() {
            return (shown, next.finish, generation.tokens());
        }
    }
    (shown, None, generation.tokens())
}

#[test]
fn a_stop_across_tokens_ends_it_and_is_not_shown() {
    let (text, finish, _) = generated("tokens are in the end", limits(100, &["re in"], &[]));
    assert_eq!(
        (text.as_str(), finish),
        ("tokens a", Some(FinishReason::Stop))
    );
}

#[test]
fn as_many_tokens_as_it_may_have_end_it_with_what_was_held_back() {
    let (text, finish, tokens) = generated("zzzzz", limits(3, &["zz?"], &[]));
    assert_eq!(
        (text.as_str(), finish, tokens),
        ("zz", Some(FinishReason::Length), 3)
    );
    // The third token is the beginning of a character that does not come any more.
    let (text, finish, _) = generated("z日", limits(3, &[], &[]));
    assert_eq!(
        (text.as_str(), finish),
        ("z\u{fffd}", Some(FinishReason::Length))
    );
}

#[test]
fn a_token_that_ends_it_is_counted_and_not_shown() {
    let (text, finish, tokens) = generated("z</s>z", limits(100, &[], &[2]));
    assert_eq!(
        (text.as_str(), finish, tokens),
        ("z", Some(FinishReason::Stop), 3)
    );
}

#[test]
fn a_stop_at_the_last_token_is_a_stop() {
    let (text, finish, _) = generated("zq", limits(3, &["q"], &[]));
    assert_eq!((text.as_str(), finish), ("z", Some(FinishReason::Stop)));
}

#[test]
fn nothing_comes_behind_the_end() {
    let tokenizer = tokenizer();
    let mut generation = Generation::new(&tokenizer, limits(1, &[], &[]));
    generation.push(9_999).unwrap_err();
    assert_eq!(generation.push(2), Err(GenerationError::Over));
    assert_eq!(
        serde_json::to_string(&FinishReason::Length).unwrap(),
        "\"length\""
    );
    assert_eq!(
        serde_json::to_string(&FinishReason::Stop).unwrap(),
        "\"stop\""
    );
}
