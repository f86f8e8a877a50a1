//! Taking what others offer. Every price is quoted and shown before it is paid, and what was shown is what is paid.

use std::io::{IsTerminal as _, Write as _};

use anyhow::Context as _;
use reqwest::{Method, header};
use serde_json::{Value, json};

use super::{PURCHASE, all, list_in_state, list_purchases, text};
use crate::{
    args::market::{Take, TakeArgs},
    client::{
        Context,
        http::{self, Api},
        idempotency_key,
        jobs::list_path,
        money,
    },
    exit::{Exit, coded},
    output,
};

const QUOTE: &[&str] = &["offer", "price", "minimum", "price_number", "seconds"];
const PURCHASE_ROW: &[&str] = &[
    "id",
    "state",
    "kind",
    "dataset",
    "price",
    "charged",
    "final_at",
    "ends_at",
    "created_at",
];
const RIGHT: &[&str] = &[
    "id",
    "state",
    "dataset",
    "title",
    "version",
    "allows",
    "starts_at",
    "ends_at",
];
const SUBSCRIPTION: &[&str] = &[
    "id",
    "state",
    "offer",
    "cap",
    "period",
    "ended_because",
    "created_at",
    "ended_at",
];

/// Which offers a verb takes.
struct Fits {
    kinds: &'static [&'static str],
    is_asked_for: bool,
}

/// What is wished beside the offer.
#[derive(Default)]
struct Wish<'a> {
    seconds: Option<u32>,
    cap: Option<&'a str>,
    note: Option<&'a str>,
}

/// The verbs of buyers.
pub async fn run(context: &Context, api: &Api, verb: &Take) -> anyhow::Result<()> {
    let output = context.output;
    let act = async |path: String| api.post(&path, &json!({})).await;
    let (told, fields) = match verb {
        Take::Quote { offer, seconds } => (quote(api, offer, *seconds).await?, QUOTE),
        Take::Buy(args) => {
            let fits = at_once(&["buy", "free"]);
            (take(api, args, &fits, Wish::default()).await?, PURCHASE)
        }
        Take::Rent { take, seconds } => (rent(api, take, *seconds).await?, PURCHASE),
        Take::Subscribe { take, cap } => (subscribe(api, take, cap.as_deref()).await?, PURCHASE),
        Take::Request {
            take,
            note,
            seconds,
            cap,
        } => {
            let wish = Wish {
                seconds: *seconds,
                cap: cap.as_deref(),
                note: note.as_deref(),
            };
            (request(api, take, wish).await?, PURCHASE)
        }
        Take::Library(args) => {
            let list = list_in_state(api, "/v1/library", (&args.page, args.state.as_ref())).await?;
            output.list(&list, RIGHT);
            return Ok(());
        }
        Take::Purchases(args) => {
            let list = list_purchases(api, "/v1/purchases", args).await?;
            output.list(&list, PURCHASE_ROW);
            return Ok(());
        }
        Take::Subscriptions(page) => {
            let list = api.get(&list_path("/v1/subscriptions", page)).await?;
            output.list(&list, SUBSCRIPTION);
            return Ok(());
        }
        Take::Purchase { id } => (api.get(&format!("/v1/purchases/{id}")).await?, PURCHASE),
        Take::Refund { purchase } => {
            let path = format!("/v1/purchases/{purchase}/refund");
            (act(path).await?, PURCHASE)
        }
        Take::End { purchase } => (
            act(format!("/v1/purchases/{purchase}/end")).await?,
            PURCHASE,
        ),
        Take::Cap {
            subscription,
            tokens,
        } => (set_cap(api, subscription, tokens).await?, SUBSCRIPTION),
        Take::Cancel { subscription } => {
            let path = format!("/v1/subscriptions/{subscription}/cancel");
            (act(path).await?, SUBSCRIPTION)
        }
    };
    output.object(&told, fields);
    Ok(())
}

async fn rent(api: &Api, args: &TakeArgs, seconds: u32) -> anyhow::Result<Value> {
    let wish = Wish {
        seconds: Some(seconds),
        ..Wish::default()
    };
    take(api, args, &at_once(&["rent"]), wish).await
}

async fn subscribe(api: &Api, args: &TakeArgs, cap: Option<&str>) -> anyhow::Result<Value> {
    let wish = Wish {
        cap,
        ..Wish::default()
    };
    take(api, args, &at_once(&["subscribe"]), wish).await
}

async fn request(api: &Api, args: &TakeArgs, wish: Wish<'_>) -> anyhow::Result<Value> {
    let fits = Fits {
        kinds: &["buy", "rent", "subscribe", "compute_only", "free"],
        is_asked_for: true,
    };
    take(api, args, &fits, wish).await
}

const fn at_once(kinds: &'static [&'static str]) -> Fits {
    Fits {
        kinds,
        is_asked_for: false,
    }
}

async fn take(api: &Api, args: &TakeArgs, fits: &Fits, wish: Wish<'_>) -> anyhow::Result<Value> {
    let offer = find_offer(api, &args.what, fits).await?;
    let id = text(&offer, "id")?;
    let price = quote(api, id, wish.seconds).await?["price"].take();
    consent(&price, args)?;
    let cap = wish.cap.map(|tokens| amount(tokens, &price)).transpose()?;
    let body = json!({
        "offer": id,
        "expected_price": price,
        "seconds": wish.seconds,
        "cap": cap,
        "note": wish.note,
    });
    let key = args.idempotency_key.clone();
    let key = key.unwrap_or_else(idempotency_key);
    Ok(api.create("/v1/purchases", &key, &body).await?)
}

async fn quote(api: &Api, offer: &str, seconds: Option<u32>) -> anyhow::Result<Value> {
    let body = json!({ "seconds": seconds });
    Ok(api
        .post(&format!("/v1/offers/{offer}/quote"), &body)
        .await?)
}

/// The offer that is named, or the only one of a dataset that the verb takes.
async fn find_offer(api: &Api, what: &str, fits: &Fits) -> anyhow::Result<Value> {
    let is_gated = |offer: &Value| !offer["answer_seconds"].is_null();
    if !what.starts_with("ds_") {
        let offer = api.get(&format!("/v1/offers/{what}")).await?;
        let kind = text(&offer, "kind")?;
        let verb = match (is_gated(&offer), kind) {
            (true, _) => "request",
            (false, "free") => "buy",
            (false, kind) => kind,
        };
        return if fits.kinds.contains(&kind) && fits.is_asked_for == is_gated(&offer) {
            Ok(offer)
        } else if verb == "compute_only" {
            refuse("jobs that compute on the dataset name it; there is nothing to take".to_owned())
        } else {
            refuse(format!("take {what} with `comptoir dataset {verb}`"))
        };
    }
    let mut offers = all(api, &format!("/v1/datasets/{what}/offers")).await?;
    offers.retain(|offer| {
        let kind = offer["kind"].as_str().unwrap_or_default();
        offer["closed_at"].is_null()
            && fits.kinds.contains(&kind)
            && fits.is_asked_for == is_gated(offer)
    });
    match offers.len() {
        0 => refuse(format!(
            "no offer of {what} fits: see `comptoir dataset offers {what}`"
        )),
        1 => offers.pop().context("the one offer"),
        _ => {
            let ids: Vec<_> = offers.iter().filter_map(|it| it["id"].as_str()).collect();
            refuse(format!("name one of {}", ids.join(", ")))
        }
    }
}

/// Shows the price, and asks for consent where it was not given with the command.
fn consent(price: &Value, args: &TakeArgs) -> anyhow::Result<()> {
    let shown = output::text(price);
    let base: u128 = text(price, "amount")?.parse()?;
    if let Some(most) = &args.max_price
        && base > money::parse(most, price)?.parse()?
    {
        return refuse(format!("it costs {shown} tokens, more than {most}"));
    }
    output::tell(format_args!("it costs {shown} tokens"));
    if base == 0 || args.yes || args.max_price.is_some() {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return refuse("say --yes or --max-price to pay without being asked".to_owned());
    }
    eprint!("Pay {shown} tokens? [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => refuse("nothing was paid".to_owned()),
    }
}

fn refuse<T>(message: String) -> anyhow::Result<T> {
    Err(coded(Exit::Refused, message))
}

/// Changes the cap that was read, and no other that somebody set in the meantime.
async fn set_cap(api: &Api, subscription: &str, tokens: &str) -> anyhow::Result<Value> {
    let path = format!("/v1/subscriptions/{subscription}");
    let read = api.send(api.request(Method::GET, &path)).await?;
    let tag = read.headers().get(header::ETAG).cloned();
    let tag = tag.context("the service told no ETag")?;
    let cap = &http::json(read).await?["cap"];
    let changes = serde_json::to_vec(&json!({ "cap": amount(tokens, cap)? }))?;
    let request = api
        .request(Method::PATCH, &path)
        .header(header::IF_MATCH, tag)
        .header(header::CONTENT_TYPE, "application/merge-patch+json")
        .body(changes);
    Ok(http::json(api.send(request).await?).await?)
}

/// Tokens of the asset that a price is in.
fn amount(tokens: &str, price: &Value) -> anyhow::Result<Value> {
    let mut amount = price.clone();
    amount["amount"] = money::parse(tokens, price)?.into();
    Ok(amount)
}
