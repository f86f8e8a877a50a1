//! `/problems`: a page for each kind of problem, which the `type` of a problem document leads to.

use axum::{
    Router,
    http::StatusCode,
    response::{Html, IntoResponse, Response},
    routing::get,
};
use comptoir_http::codes::{self, Code};

use crate::{AppState, Problem, extract::Path};

pub(super) fn router() -> Router<AppState> {
    Router::new()
        .route("/problems", get(async || page("Problems", codes::ALL)))
        .route("/problems/{code}", get(show))
}

async fn show(Path(code): Path<String>) -> Response {
    match codes::find(&code) {
        Some(known) => page(known.code, std::slice::from_ref(known)).into_response(),
        None => Problem::new(
            StatusCode::NOT_FOUND,
            "no_such_route",
            "There is no such route",
        )
        .into_response(),
    }
}

/// The table's texts are ours and hold no markup of a stranger; they are escaped all the same.
fn page(title: &str, kinds: &[Code]) -> Html<String> {
    let rows: Vec<String> = kinds.iter().map(row).collect();
    Html(format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{title} · Comptoir</title>\n\
         <style>body{{font:1rem/1.5 system-ui;margin:2rem auto;max-width:60rem;padding:0 1rem}}\
         td,th{{text-align:left;vertical-align:top;padding:.4rem 1rem .4rem 0}}</style>\n\
         <h1>{title}</h1>\n<table>\n<tr><th>Code</th><th>Status</th><th>What it means</th></tr>\n\
         {}</table>\n<p><a href=\"/problems\">All problems</a></p>\n</html>\n",
        rows.concat(),
    ))
}

fn row(kind: &Code) -> String {
    let Code { code, status, .. } = kind;
    let meaning = escape(kind.meaning);
    format!(
        "<tr><td><a href=\"/problems/{code}\"><code>{code}</code></a></td><td>{status}</td><td>{meaning}</td></tr>\n"
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
