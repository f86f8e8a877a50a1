//! Searching what is listed.

use url::form_urlencoded::Serializer;

use crate::args::datasets::SearchArgs;

/// What is shown of a row.
pub const ITEM: &[&str] = &["id", "name", "title", "licence", "seller", "prices"];

/// The path that asks for it.
pub fn path(args: &SearchArgs) -> String {
    let mut query = Serializer::for_suffix("/v1/catalog?".to_owned(), "/v1/catalog?".len());
    let words = Some(args.words.join(" ")).filter(|it| !it.is_empty());
    let tags = Some(args.tag.join(",")).filter(|it| !it.is_empty());
    for (name, value) in [
        ("q", &words),
        ("tags", &tags),
        ("format", &args.format),
        ("offer", &args.offer),
        ("max_price", &args.max_price),
        ("sort", &args.sort),
        ("cursor", &args.page.cursor),
    ] {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    query.append_pair("limit", &args.page.limit.to_string());
    query.finish()
}
