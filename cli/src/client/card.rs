//! Cards of datasets and models.

use anyhow::Context as _;
use reqwest::{Method, header};
use serde_json::{Map, Value, json};

use super::http::{self, Api};
use crate::args::card::CardArgs;

/// What was given of a card.
///
/// # Errors
/// When the description cannot be read.
pub async fn fields(card: &CardArgs) -> anyhow::Result<Map<String, Value>> {
    let mut fields = Map::new();
    let mut give = |name: &str, value: Option<Value>| {
        fields.extend(value.map(|value| (name.to_owned(), value)));
    };
    give("title", card.title.as_ref().map(|it| json!(it)));
    give("licence", card.licence.as_ref().map(|it| json!(it)));
    give("provenance", card.provenance.as_ref().map(|it| json!(it)));
    give("tags", (!card.tags.is_empty()).then(|| json!(card.tags)));
    if let Some(file) = &card.description {
        let text = tokio::fs::read_to_string(file).await;
        let text = text.with_context(|| format!("read {}", file.display()))?;
        give("description", Some(json!(text)));
    }
    Ok(fields)
}

/// Changes what is given of the card at a path, and nothing that somebody else changed in the meantime.
///
/// # Errors
/// When the service refuses.
pub async fn edit(api: &Api, path: &str, card: &CardArgs) -> anyhow::Result<Value> {
    let read = api.send(api.request(Method::GET, path)).await?;
    let tag = read.headers().get(header::ETAG).cloned();
    let tag = tag.context("the service told no ETag")?;
    let changes = serde_json::to_vec(&fields(card).await?)?;
    let request = api
        .request(Method::PATCH, path)
        .header(header::IF_MATCH, tag)
        .header(header::CONTENT_TYPE, "application/merge-patch+json")
        .body(changes);
    Ok(http::json(api.send(request).await?).await?)
}
