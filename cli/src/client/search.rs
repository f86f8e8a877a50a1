//! Searching the catalogue.

use url::form_urlencoded::Serializer;

use crate::args::{card::FindArgs, datasets::SearchArgs};

/// What is shown of a dataset.
pub const DATASET: &[&str] = &["id", "name", "title", "licence", "seller", "prices"];
/// What is shown of a model.
pub const MODEL: &[&str] = &["id", "name", "title", "licence", "seller", "call_price"];

/// The path that asks for datasets.
#[must_use]
pub fn datasets(args: &SearchArgs) -> String {
    let own = [
        ("format", &args.format),
        ("offer", &args.offer),
        ("max_price", &args.max_price),
    ];
    path("dataset", &args.find, &own)
}

/// The path that asks for models.
#[must_use]
pub fn models(args: &FindArgs) -> String {
    path("model", args, &[])
}

fn path(kind: &str, args: &FindArgs, own: &[(&str, &Option<String>)]) -> String {
    let mut query = Serializer::for_suffix("/v1/catalog?".to_owned(), "/v1/catalog?".len());
    query.append_pair("kind", kind);
    let words = Some(args.words.join(" ")).filter(|it| !it.is_empty());
    let tags = Some(args.tag.join(",")).filter(|it| !it.is_empty());
    let shared = [
        ("q", &words),
        ("tags", &tags),
        ("licence", &args.licence),
        ("sort", &args.sort),
        ("cursor", &args.page.cursor),
    ];
    for (name, value) in shared.iter().chain(own) {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    query.append_pair("limit", &args.page.limit.to_string());
    query.finish()
}
