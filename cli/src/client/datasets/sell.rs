//! Selling: offers, their prices, and answers to who asks.

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{PURCHASE, list_purchases, ready, text};
use crate::{
    args::market::{OfferArgs, Sell},
    client::{Context, http::Api, idempotency_key, jobs::list_path, money},
};

const OFFER: &[&str] = &[
    "id",
    "dataset",
    "kind",
    "version",
    "price.price",
    "price.platform_ppm",
    "next_price.price",
    "next_price.effective_at",
    "answer_seconds",
    "refund_seconds",
    "period_seconds",
    "minimum_seconds",
    "programs",
    "output_bytes_max",
    "is_released_by_seller",
    "closed_at",
];
const OFFER_ROW: &[&str] = &[
    "id",
    "kind",
    "version",
    "price.price",
    "next_price.price",
    "answer_seconds",
    "refund_seconds",
    "period_seconds",
    "minimum_seconds",
    "closed_at",
];
const SALE_ROW: &[&str] = &[
    "id",
    "state",
    "kind",
    "dataset",
    "price",
    "charged",
    "note",
    "answer_due_at",
    "created_at",
];

/// The verbs of sellers.
pub async fn run(context: &Context, api: &Api, verb: &Sell) -> anyhow::Result<()> {
    let output = context.output;
    match verb {
        Sell::Offer(args) => output.object(&offer(api, args).await?, OFFER),
        Sell::Offers { dataset, page } => {
            let path = list_path(&format!("/v1/datasets/{dataset}/offers"), page);
            output.list(&api.get(&path).await?, OFFER_ROW);
        }
        Sell::Price { offer, tokens } => {
            output.object(&set_price(api, offer, tokens).await?, OFFER);
        }
        Sell::CloseOffer { offer } => {
            let path = format!("/v1/offers/{offer}/close");
            output.object(&api.post(&path, &json!({})).await?, OFFER);
        }
        Sell::Sales(args) => {
            output.list(&list_purchases(api, "/v1/sales", args).await?, SALE_ROW);
        }
        Sell::Approve { purchase } => {
            let path = format!("/v1/sales/{purchase}/approve");
            output.object(&api.post(&path, &json!({})).await?, PURCHASE);
        }
        Sell::Deny { purchase, reason } => {
            let path = format!("/v1/sales/{purchase}/deny");
            let body = json!({ "reason": reason });
            output.object(&api.post(&path, &body).await?, PURCHASE);
        }
    }
    Ok(())
}

async fn offer(api: &Api, args: &OfferArgs) -> anyhow::Result<Value> {
    let mut price = api.get("/v1/balance").await?["available"].take();
    let tokens = args.price.as_deref().unwrap_or("0");
    price["amount"] = money::parse(tokens, &price)?.into();
    let version = match args.number {
        Some(_) => Some(ready(api, &args.dataset, args.number).await?["id"].take()),
        None => None,
    };
    let programs = (!args.programs.is_empty()).then_some(&args.programs);
    let body = json!({
        "kind": args.kind.as_str(),
        "price": price,
        "version": version,
        "answer_seconds": args.answer_within,
        "refund_seconds": args.refund_within.unwrap_or(0),
        "period_seconds": args.period,
        "minimum_seconds": args.minimum,
        "programs": programs,
        "output_bytes_max": args.output_bytes_max,
        "is_released_by_seller": args.released_by_seller,
    });
    let key = args.idempotency_key.clone();
    let path = format!("/v1/datasets/{}/offers", args.dataset);
    let key = key.unwrap_or_else(idempotency_key);
    Ok(api.create(&path, &key, &body).await?)
}

async fn set_price(api: &Api, offer: &str, tokens: &str) -> anyhow::Result<Value> {
    let path = format!("/v1/offers/{offer}");
    let mut price = api.get(&path).await?["price"]["price"].take();
    text(&price, "asset").context("the offer has no price")?;
    price["amount"] = money::parse(tokens, &price)?.into();
    let body = json!({ "price": price });
    let path = format!("{path}/prices");
    Ok(api.create(&path, &idempotency_key(), &body).await?)
}
