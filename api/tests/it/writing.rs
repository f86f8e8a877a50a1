//! Texts that models write: passed on as they come, counted token by token, and charged once they end.

use std::sync::{Arc, Mutex};

use axum::http::{HeaderName, Method, StatusCode, header};
use comptoir_text::{Specials, Tokenizer};
use comptoir_wire::calls::{Answer, Ask, Call, FaultCause, Write, Written};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::{
    calls::{Behaviour, World},
    harness::{Reply, Session, TestApp},
    market::upload,
    models,
};

/// What the caller has.
const PURSE: u128 = 10_000;
const PROMPT: &str = "My lord,";
const ANSWER: &str = " speak, and be heard.";

fn tokens(text: &str) -> Vec<u32> {
    let tokenizer = Tokenizer::read(&gpt("tokenizer.json")).unwrap();
    tokenizer.encode(text, Specials::Skip, 128).unwrap().ids
}

fn asked(call: &Call) -> &Write {
    match &call.ask {
        Ask::Write(write) => write,
        Ask::Infer(_) => panic!("tensors are asked for"),
    }
}

fn one(token: u32) -> Answer {
    Answer::Written(Written {
        tokens: vec![token],
        was_cold: false,
    })
}

/// Writes this, then the end; goes on where another ended.
fn writes(text: &str) -> impl Fn(&Write) -> Vec<Answer> + use<> {
    let all = [tokens(text), vec![0]].concat();
    move |ask| {
        let from = usize::try_from(ask.written).unwrap();
        let most = usize::try_from(ask.tokens_max).unwrap();
        all[from..].iter().take(most).map(|it| one(*it)).collect()
    }
}

fn writer(text: &str) -> Arc<Behaviour> {
    let writes = writes(text);
    Arc::new(move |call| writes(asked(call)))
}

/// What a text costs: ten for each token that is written, its end included.
fn cost(prompt: &str, written: usize) -> u128 {
    u128::try_from(tokens(prompt).len() + 10 * written).unwrap()
}

/// Somebody before a model that writes.
async fn world(db: PgPool, workers: Vec<Arc<Behaviour>>) -> World {
    let mut world = World::new(db, PURSE, workers).await;
    world.path = shown_writer(&world.app, &world.creator).await;
    world
}

async fn generate(world: &World, body: &Value) -> Reply {
    let path = format!("{}/generate", world.path);
    let call = || world.app.request(Method::POST, &path).json(body);
    world
        .once_hosted(async || call().by(&world.caller).send().await)
        .await
}

async fn chat(world: &World, mut body: Value) -> Reply {
    body["model"] = json!(world.path.rsplit('/').next().unwrap());
    let call = || world.app.request(Method::POST, "/v1/chat/completions");
    world
        .once_hosted(async || call().json(&body).by(&world.caller).send().await)
        .await
}

/// The names and the data of server-sent events.
fn events(reply: &Reply) -> Vec<(String, String)> {
    assert_eq!(reply.header(header::CONTENT_TYPE), "text/event-stream");
    let text = String::from_utf8(reply.bytes.clone()).unwrap();
    let blocks = text.split("\n\n").filter(|it| !it.is_empty());
    let field = |block: &str, name: &str| {
        let line = block.lines().find_map(|it| it.strip_prefix(name));
        line.unwrap_or_default().to_owned()
    };
    blocks
        .map(|it| (field(it, "event: "), field(it, "data: ")))
        .collect()
}

fn data(event: &(String, String)) -> Value {
    serde_json::from_str(&event.1).unwrap()
}

/// What `examples/gpt` holds.
fn gpt(name: &str) -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/gpt");
    std::fs::read(format!("{folder}/{name}")).unwrap()
}

/// The manifest of a model that writes texts, whose files are uploaded.
async fn manifest(app: &TestApp, creator: &Session) -> Value {
    for file in [
        "gpt.pt2",
        "generate.pt2",
        "weights.safetensors",
        "tokenizer.json",
    ] {
        upload(app, creator, &gpt(file)).await;
    }
    serde_json::from_slice(&gpt("manifest.json")).unwrap()
}

/// A public model that writes texts: a base unit for each token that is read, ten for each that is written. Its path.
async fn shown_writer(app: &TestApp, creator: &Session) -> String {
    let model = models::model(app, creator).await;
    let manifest = manifest(app, creator).await;
    models::publish(app, creator, &model, &manifest)
        .await
        .expect(StatusCode::CREATED);
    let tariff = json!({ "input_token_nano": "1000000000", "output_token_nano": "10000000000" });
    let call = app.post(&format!("{model}/prices"), &json!({ "tariff": tariff }));
    call.by(creator).send().await.expect(StatusCode::CREATED);
    models::show(app, creator, &model, "public")
        .await
        .expect(StatusCode::OK);
    model
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_text_costs_the_tokens_that_were_read_and_written_and_no_more(db: PgPool) {
    let mut world = world(db, vec![writer(ANSWER)]).await;
    let reply = generate(&world, &json!({ "prompt": PROMPT })).await;
    let reply = reply.expect(StatusCode::OK);
    assert_eq!(reply.text("/text"), ANSWER);
    assert_eq!(reply.text("/finish_reason"), "stop");
    let written = tokens(ANSWER).len() + 1;
    let usage = &reply.json["usage"];
    assert_eq!(usage["input_tokens"], tokens(PROMPT).len());
    assert_eq!(usage["output_tokens"], written);
    let cost = cost(PROMPT, written);
    assert_eq!(reply.text("/usage/cost"), cost.to_string());
    let cost_header = HeaderName::from_static("comptoir-cost");
    assert_eq!(reply.header(cost_header), cost.to_string());
    assert_eq!(world.settled().await, (PURSE - cost, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_text_comes_piece_by_piece_and_its_end_says_what_it_cost(db: PgPool) {
    let mut world = world(db, vec![writer(ANSWER)]).await;
    let body = json!({ "prompt": PROMPT, "stream": true });
    let reply = generate(&world, &body).await.expect(StatusCode::OK);
    let events = events(&reply);
    let (end, texts) = events.split_last().unwrap();
    assert!(texts.len() > 3, "as it comes: {events:?}");
    assert!(texts.iter().all(|(name, _)| name == "text"));
    let whole: String = texts
        .iter()
        .map(|it| data(it)["text"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(whole, ANSWER);
    assert_eq!(end.0, "end");
    let cost = cost(PROMPT, tokens(ANSWER).len() + 1);
    assert_eq!(data(end)["usage"]["cost"], cost.to_string());
    assert_eq!(data(end).get("text"), None);
    let call = reply.header(HeaderName::from_static("comptoir-call"));
    assert_eq!(data(end)["id"], call);
    assert_eq!(world.settled().await, (PURSE - cost, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_text_ends_at_a_stop_or_for_its_length_and_costs_what_was_written_until_then(db: PgPool) {
    let mut world = world(db, vec![writer(ANSWER)]).await;
    let body = json!({ "prompt": PROMPT, "stop": [", and"] });
    let reply = generate(&world, &body).await.expect(StatusCode::OK);
    assert_eq!(reply.text("/text"), " speak");
    assert_eq!(reply.text("/finish_reason"), "stop");
    let stopped = reply.json["usage"]["output_tokens"].as_u64().unwrap();
    assert!(usize::try_from(stopped).unwrap() < tokens(ANSWER).len());
    let body = json!({ "prompt": PROMPT, "tokens_max": 2 });
    let reply = generate(&world, &body).await.expect(StatusCode::OK);
    assert_eq!(reply.text("/finish_reason"), "length");
    assert!(ANSWER.starts_with(reply.text("/text")));
    let paid = cost(PROMPT, usize::try_from(stopped).unwrap()) + cost(PROMPT, 2);
    assert_eq!(world.settled().await, (PURSE - paid, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn another_worker_goes_on_with_a_text_and_it_is_charged_once(db: PgPool) {
    let first = Arc::new(Mutex::new(true));
    let writes = writes(ANSWER);
    let flaky: Arc<Behaviour> = Arc::new(move |call| {
        let ask = asked(call);
        let mut answers = writes(ask);
        if std::mem::take(&mut *first.lock().unwrap()) {
            answers.truncate(3);
            answers.push(Answer::fault(FaultCause::Lost, "it went away"));
        } else {
            let (prompt, before) = (tokens(PROMPT), &tokens(ANSWER)[..3]);
            assert_eq!(ask.tokens, [&prompt, before].concat());
            assert_eq!(ask.written, 3, "draws go on at their places");
        }
        answers
    });
    let mut world = world(db, vec![Arc::clone(&flaky), flaky]).await;
    let reply = generate(&world, &json!({ "prompt": PROMPT })).await;
    let reply = reply.expect(StatusCode::OK);
    assert_eq!(reply.text("/text"), ANSWER);
    let cost = cost(PROMPT, tokens(ANSWER).len() + 1);
    assert_eq!(world.settled().await, (PURSE - cost, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_text_that_fails_costs_nothing_even_where_some_of_it_was_sent(db: PgPool) {
    let writes = writes(ANSWER);
    let lost: Arc<Behaviour> = Arc::new(move |call| {
        let mut answers = writes(asked(call));
        answers.truncate(2);
        answers.push(Answer::fault(FaultCause::Caller, "not a number"));
        answers
    });
    let mut world = world(db, vec![lost]).await;
    let reply = generate(&world, &json!({ "prompt": PROMPT })).await;
    assert_eq!(reply.code(), "not_computed");
    let body = json!({ "prompt": PROMPT, "stream": true });
    let reply = generate(&world, &body).await.expect(StatusCode::OK);
    let events = events(&reply);
    let (last, texts) = events.split_last().unwrap();
    assert!(!texts.is_empty());
    assert_eq!(
        (last.0.as_str(), &data(last)["code"]),
        ("error", &json!("not_computed"))
    );
    let body = json!({ "messages": [{ "role": "user", "content": "Speak." }], "stream": true });
    let reply = chat(&world, body).await.expect(StatusCode::OK);
    let text = String::from_utf8(reply.bytes).unwrap();
    assert!(
        text.contains("\"code\":\"not_computed\"") && !text.contains("[DONE]"),
        "{text}"
    );
    assert_eq!(world.settled().await, (PURSE, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn who_hangs_up_pays_for_what_was_written_until_then(db: PgPool) {
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let writes = writes(ANSWER);
    let slow: Arc<Behaviour> = Arc::new(move |call| {
        told.send(()).unwrap();
        let mut answers = writes(asked(call));
        answers.truncate(3);
        answers
    });
    let mut world = world(db, vec![slow]).await;
    {
        let body = json!({ "prompt": PROMPT });
        let calling = generate(&world, &body);
        let told_and_read = async {
            heard.recv().await.unwrap();
            // Long enough for three small frames.
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        };
        tokio::select! {
            () = told_and_read => {}
            _ = calling => panic!("the text has no end"),
        }
    }
    while world.events().await == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(world.settled().await, (PURSE - cost(PROMPT, 3), 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_cannot_be_written_is_refused_at_its_place_and_asks_nobody(db: PgPool) {
    let world = world(db, vec![writer(ANSWER)]).await;
    let user = json!([{ "role": "user", "content": "?" }]);
    let long = "My lord, ".repeat(100);
    for (body, pointer) in [
        (json!({}), "/prompt"),
        (json!({ "prompt": "a", "messages": user }), "/prompt"),
        (json!({ "prompt": "" }), "/prompt"),
        (json!({ "prompt": long }), "/prompt"),
        (json!({ "messages": [] }), "/messages"),
        (
            json!({ "messages": [{ "role": "user", "content": long }] }),
            "/messages",
        ),
        (json!({ "prompt": "a", "tokens_max": 0 }), "/tokens_max"),
        (json!({ "prompt": "a", "tokens_max": 128 }), "/tokens_max"),
        (json!({ "prompt": "a", "temperature": 2.5 }), "/temperature"),
        (json!({ "prompt": "a", "top_p": 0 }), "/top_p"),
        (json!({ "prompt": "a", "stop": "" }), "/stop"),
        (json!({ "prompt": "a", "stop": vec!["x"; 17] }), "/stop"),
    ] {
        let reply = generate(&world, &body).await;
        assert_eq!(reply.status, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
        assert_eq!(reply.text("/errors/0/pointer"), pointer, "{body}");
    }
    let body = json!({ "prompt": "a" });
    let digits = models::shown(&world.app, &world.creator).await;
    let call = world
        .app
        .request(Method::POST, &format!("{digits}/generate"));
    let reply = call.json(&body).by(&world.caller).send().await;
    assert_eq!(
        reply.text("/errors/0/detail"),
        "the version writes no texts"
    );
    assert_eq!(world.asked(), 0);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_conversation_is_answered_in_the_form_of_openai(db: PgPool) {
    let prompt = "<|user|>Who goes there?<|end|><|assistant|>";
    let mut world = world(db, vec![writer(ANSWER)]).await;
    let parts =
        json!([{ "type": "text", "text": "Who goes " }, { "type": "text", "text": "there?" }]);
    let messages = json!([{ "role": "user", "content": parts }]);
    let body = json!({ "messages": messages, "unknown": true, "temperature": null });
    let reply = chat(&world, body).await.expect(StatusCode::OK);
    assert_eq!(reply.text("/object"), "chat.completion");
    assert_eq!(reply.text("/choices/0/message/role"), "assistant");
    assert_eq!(reply.text("/choices/0/message/content"), ANSWER);
    assert_eq!(reply.text("/choices/0/finish_reason"), "stop");
    let (read, written) = (tokens(prompt).len(), tokens(ANSWER).len() + 1);
    let usage = &reply.json["usage"];
    assert_eq!(usage["prompt_tokens"], read);
    assert_eq!(usage["completion_tokens"], written);
    assert_eq!(usage["total_tokens"], read + written);
    let cost = cost(prompt, written);
    assert_eq!(usage["cost"], cost.to_string());
    assert_eq!(world.settled().await, (PURSE - cost, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_conversation_comes_in_chunks_of_which_the_last_counts(db: PgPool) {
    let world = world(db, vec![writer(ANSWER)]).await;
    let messages = json!([{ "role": "user", "content": "Who goes there?" }]);
    for is_apart in [false, true] {
        let options = json!({ "include_usage": is_apart });
        let body = json!({ "messages": messages, "stream": true, "stream_options": options });
        let reply = chat(&world, body).await.expect(StatusCode::OK);
        let mut events = events(&reply);
        assert_eq!(events.pop().unwrap().1, "[DONE]");
        let chunks: Vec<Value> = events.iter().map(data).collect();
        assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
        let deltas = chunks
            .iter()
            .filter_map(|it| it["choices"][0]["delta"]["content"].as_str());
        assert_eq!(deltas.collect::<String>(), ANSWER);
        let last = chunks.last().unwrap();
        assert_eq!(last["usage"]["completion_tokens"], tokens(ANSWER).len() + 1);
        assert_eq!(last["choices"].as_array().unwrap().is_empty(), is_apart);
        let counted = chunks.iter().filter(|it| it.get("usage").is_some());
        assert_eq!(counted.count(), 1);
        let ended = chunks
            .iter()
            .filter(|it| it["choices"][0]["finish_reason"] == "stop");
        assert_eq!(ended.count(), 1);
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_cannot_be_answered_is_refused_in_the_form_of_openai(db: PgPool) {
    let world = world(db, vec![writer(ANSWER)]).await;
    let user = json!([{ "role": "user", "content": "?" }]);
    for (body, param) in [
        (json!({ "messages": [] }), "messages"),
        (json!({ "messages": user, "n": 2 }), "n"),
        (json!({ "messages": user, "max_tokens": 0 }), "max_tokens"),
        (
            json!({ "messages": user, "max_completion_tokens": 128 }),
            "max_completion_tokens",
        ),
        (
            json!({ "messages": user, "temperature": -1 }),
            "temperature",
        ),
    ] {
        let reply = chat(&world, body.clone()).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{body}");
        assert_eq!(reply.text("/error/param"), param, "{body}");
        assert_eq!(reply.text("/error/type"), "invalid_request_error");
    }
    assert_eq!(world.asked(), 0);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_is_said_of_writing_fits_the_program_and_its_template(db: PgPool) {
    let app = TestApp::new(db).await;
    let creator = app.session().await;
    let model = models::model(&app, &creator).await;
    let good = manifest(&app, &creator).await;
    let wrong_program = good["programs"]["infer"].clone();
    for (place, value, pointer) in [
        ("/generation/ids", json!("x"), "/generation/ids"),
        ("/generation/logits", json!("x"), "/generation/logits"),
        ("/generation/context", json!(1), "/generation/context"),
        ("/generation/ends", json!([512]), "/generation/ends/0"),
        (
            "/generation/chat/template",
            json!("{% for %}"),
            "/generation/chat/template",
        ),
        (
            "/generation/chat/template",
            json!("{{ 1 // 0 }}"),
            "/generation/chat/template",
        ),
        ("/programs/generate", wrong_program, "/generation/ids"),
        ("/weights", Value::Null, "/weights"),
    ] {
        let mut manifest = good.clone();
        *manifest.pointer_mut(place).unwrap() = value;
        if manifest["weights"].is_null() {
            manifest.as_object_mut().unwrap().remove("weights");
        }
        let refused = models::publish(&app, &creator, &model, &manifest).await;
        assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{place}");
        let first = refused.text("/errors/0/pointer");
        assert_eq!(first, format!("/manifest{pointer}"), "{place}");
    }
    let made = models::publish(&app, &creator, &model, &good).await;
    let made = made.expect(StatusCode::CREATED);
    let writing = json!({ "context": 128, "chats": true });
    assert_eq!(made.json["schema"]["writing"], writing);
}
