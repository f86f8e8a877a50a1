//! Prompts are those that others make, and templates end, whoever wrote them.

#![expect(clippy::unwrap_used, reason = "what a test cannot do without fails it")]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use comptoir_text::chat::{
    ChatTemplate, InvalidTemplate, MESSAGES_MAX, Message, PROMPT_BYTES_MAX, PromptError, Role,
    TEMPLATE_BYTES_MAX,
};
use serde::Deserialize;

const ALTERNATING: &str = "{{ bos_token }}{% for message in messages %}\
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
    {{ raise_exception('roles must alternate') }}{% endif %}\
    {% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}\
    {% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}";

fn template(source: &str) -> ChatTemplate {
    let specials = [("bos_token", "<s>"), ("eos_token", "</s>")];
    let specials = specials.map(|(name, text)| (name.to_owned(), text.to_owned()));
    ChatTemplate::new(source, specials.into()).unwrap()
}

fn says(role: Role, content: &str) -> Message {
    Message {
        role,
        content: content.to_owned(),
    }
}

/// What a hostile template ends with, on a stack as small as threads have.
fn ends(source: &str) -> PromptError {
    let source = source.to_owned();
    let run = move || {
        let start = Instant::now();
        let prompt = template(&source).prompt(&[says(Role::User, "hi")], true);
        assert!(start.elapsed() < Duration::from_secs(20), "{source:.80}");
        prompt.expect_err(&source)
    };
    std::thread::Builder::new()
        .stack_size(2 << 20)
        .spawn(run)
        .unwrap()
        .join()
        .unwrap()
}

/// Made by `fixtures/make.py` with Jinja2, set as `transformers` sets it.
#[derive(Deserialize)]
struct Case {
    template: String,
    messages: Vec<Message>,
    prompt: String,
}

#[test]
fn prompts_are_those_that_jinja2_makes() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../fixtures/chat.json")).unwrap();
    for it in cases {
        assert_eq!(
            template(&it.template).prompt(&it.messages, true).unwrap(),
            it.prompt,
            "{}",
            it.template
        );
    }
}

#[test]
fn a_template_may_refuse_messages_in_its_own_words() {
    let error = template(ALTERNATING)
        .prompt(&[says(Role::Assistant, "")], false)
        .unwrap_err();
    assert!(
        matches!(&error, PromptError::Raised(it) if it == "roles must alternate"),
        "{error:?}"
    );
}

#[test]
fn hostile_templates_end() {
    let doubling = "{% set ns = namespace(x='x' * 1000) %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}";
    let straight = format!(
        "{{% set a = 'aaaaaaaa' %}}{}",
        "{% set a = a ~ a %}".repeat(3_000)
    );
    let nested = "{% for i in range(100000) %}".repeat(20) + &"{% endfor %}".repeat(20);
    let out_of_fuel = [
        doubling,
        &straight,
        &nested,
        "{% set x = 'a' * 99999999 %}",
        "{{ 'aaaaaaaa'.replace('', 'b' * 65000 ).replace('b', 'c' * 65000) }}",
        "{% for i in range(100000) %}{{ messages[0].content.upper() }}{{ range(1000) | join | length }}{% endfor %}",
    ];
    for source in out_of_fuel {
        let error = ends(source);
        assert!(
            matches!(error, PromptError::OutOfFuel),
            "{source:.80}: {error:?}"
        );
    }
    let recursive = "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}";
    assert!(matches!(ends(recursive), PromptError::Failed(_)));
    let long = "{% for i in range(2000) %}{{ 'a' * 1000 }}{% endfor %}";
    assert!(matches!(ends(long), PromptError::TooLong));
}

#[test]
fn templates_that_make_values_of_values_are_refused() {
    let in_loop = |set: &str| {
        format!(
            "{{% set ns = namespace(x='', y=1) %}}{{% for i in range(99999) %}}{set}{{% endfor %}}"
        )
    };
    let twice = |set: &str| format!("{{% set a = [1] %}}{}{{{{ a }}}}", set.repeat(40));
    let refused = [
        in_loop("{% set ns.x = [ns.x] %}"),
        in_loop("{% set ns.x = ns %}"),
        in_loop("{% set ns.x = messages[1:] %}"),
        in_loop("{% set ns.x = ns if i else ns.x %}"),
        in_loop("{% set ns.x = loop.previtem %}"),
        in_loop("{% set y = ns %}{% set ns.x = y or '' %}"),
        twice("{% set a = [a, a] %}"),
        twice("{% set a = (a, a) %}"),
        twice("{% set a = {'a': a, 'b': a} %}"),
        twice("{% set a = a + a %}"),
        twice("{% set a = a * 2 %}"),
        twice("{% set a = a | zip(a) | list %}"),
        twice("{% set a = a | map('list') %}"),
        twice("{% set a = a[1:] %}"),
        twice("{% set a = dict(a=a, b=a) %}"),
        "{% set ns = namespace(x=messages) %}".to_owned(),
        "{% for x in messages recursive %}{% endfor %}".to_owned(),
        format!("{{{{ 1{} }}}}", " + 1".repeat(10_000)),
        format!("{{% set a = a{} %}}{{{{ a + a }}}}", " or a".repeat(150)),
    ];
    for source in refused {
        let run = move || {
            let start = Instant::now();
            let made = ChatTemplate::new(&source, BTreeMap::new());
            assert!(
                matches!(made, Err(InvalidTemplate::Unbounded(_))),
                "{source:.80}: {made:?}"
            );
            assert!(start.elapsed() < Duration::from_secs(20), "{source:.80}");
        };
        std::thread::Builder::new()
            .stack_size(2 << 20)
            .spawn(run)
            .unwrap()
            .join()
            .unwrap();
    }
}

#[test]
fn there_are_no_other_templates_no_files_and_no_time() {
    for source in [
        "{% include 'x' %}",
        "{% extends 'x' %}",
        "{% import 'x' as x %}",
    ] {
        assert!(
            matches!(
                ChatTemplate::new(source, BTreeMap::new()),
                Err(InvalidTemplate::Syntax(_))
            ),
            "{source}"
        );
    }
}

#[test]
fn templates_and_messages_have_limits() {
    let long = "a".repeat(TEMPLATE_BYTES_MAX + 1);
    assert!(matches!(
        ChatTemplate::new(&long, BTreeMap::new()),
        Err(InvalidTemplate::TooLong(_))
    ));
    let deep = format!("{{{{ {}1{} }}}}", "(".repeat(30_000), ")".repeat(30_000));
    assert!(matches!(
        ChatTemplate::new(&deep, BTreeMap::new()),
        Err(InvalidTemplate::Syntax(_))
    ));
    let many = vec![says(Role::User, ""); MESSAGES_MAX + 1];
    assert!(matches!(
        template("").prompt(&many, false),
        Err(PromptError::TooManyMessages(_))
    ));
    let half = says(Role::User, &"a".repeat(PROMPT_BYTES_MAX / 2));
    assert!(matches!(
        template("").prompt(&vec![half.clone(); 3], false),
        Err(PromptError::MessagesTooLong(_))
    ));
    let prompt = template("{{ messages[0].content.strip() ~ '.' }}")
        .prompt(&[half], true)
        .unwrap();
    assert!(prompt.len() > PROMPT_BYTES_MAX / 2);
}
