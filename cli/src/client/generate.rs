//! A text that a model writes.

use std::{
    io::{Write as _, stdout},
    ops::ControlFlow,
};

use reqwest::Method;
use serde_json::{Value, json};

use super::{events, http, http::Api};
use crate::{
    args::models::GenerateArgs,
    output::{Output, printable, say, tell, text},
};

const GENERATED: &[&str] = &["id", "model", "version", "text", "finish_reason", "usage"];

/// Has it written: all of it as JSON, or shown as it comes.
pub(super) async fn run(api: &Api, output: Output, args: &GenerateArgs) -> anyhow::Result<()> {
    let version = args.version.as_ref();
    let query = version.map_or_else(String::new, |it| format!("?version={it}"));
    let path = format!("/v1/models/{}/generate{query}", args.model);
    let is_shown = output == Output::Table;
    let request = api.request(Method::POST, &path);
    let response = api.send(request.json(&body(args, is_shown))).await?;
    if !is_shown {
        output.object(&http::json(response).await?, GENERATED);
        return Ok(());
    }
    let mut end = None;
    let shown = events::each(response, |message| {
        if message.kind != "text" {
            end = Some(message);
            return ControlFlow::Break(());
        }
        // A stranger's model says nothing to the terminal itself.
        print!("{}", printable(&text(&message.data["text"])));
        // Where nobody reads any more, the next line says so.
        stdout().flush().ok();
        ControlFlow::Continue(())
    });
    shown.await?;
    say("");
    match end {
        Some(end) if end.kind == "end" => {
            let usage = &end.data["usage"];
            let [cost, read, written] =
                ["cost", "input_tokens", "output_tokens"].map(|it| text(&usage[it]));
            tell(format_args!(
                "{}: {read} tokens read, {written} written, {cost} base units",
                text(&end.data["id"])
            ));
            Ok(())
        }
        Some(problem) => {
            let title = text(&problem.data["title"]);
            anyhow::bail!("{} ({})", printable(&title), text(&problem.data["code"]))
        }
        None => anyhow::bail!("the text broke off; what was written until then is charged"),
    }
}

fn body(args: &GenerateArgs, is_streamed: bool) -> Value {
    let roles = ["user", "assistant"].into_iter().cycle();
    let messages = args.messages.iter().zip(roles);
    let messages = messages.map(|(content, role)| json!({ "role": role, "content": content }));
    let mut body = json!({
        "tokens_max": args.tokens_max,
        "temperature": args.temperature,
        "top_p": args.top_p,
        "seed": args.seed,
        "stop": args.stops,
        "stream": is_streamed,
    });
    match &args.prompt {
        Some(prompt) => body["prompt"] = json!(prompt),
        None => body["messages"] = messages.collect(),
    }
    body
}
