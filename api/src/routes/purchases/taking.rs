//! `POST /v1/purchases`: offers are taken, in groups.

use std::{collections::HashMap, sync::Arc};

use alloy_primitives::Address;
use axum::{extract::State, http::StatusCode, response::Response};
use comptoir_domain::{
    asset::Asset,
    id::{ApiKeyId, DatasetId, DatasetVersionId, OfferId},
    offer::OfferKind,
};
use comptoir_store::{
    PgTransaction,
    assets::{self, AssetError},
    limits::{self, LimitError},
    purchases::{self, NewPurchase, Stall, Stand, TakeError},
    tenant,
};
use futures::future::BoxFuture;
use serde::Deserialize;
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::body::PurchaseBody;
use crate::{
    AppState, Problem,
    auth::{Caller, needs},
    availability,
    facts::Facts,
    grouped::{Asked, Done, Grouped, Order, Refusal, Work},
    idempotency::{IdempotentJson, Reply},
    limiting::limited,
    money::MoneyBody,
    routes::{
        offers::{closed, seconds, too_dear},
        submit::above_spend_limit,
        takedowns::blocked,
        withdrawals::hold_refused,
    },
};

/// How often it is looked whether what is taken can be served, where another version of it comes meanwhile.
const LOOKS_MAX: u32 = 3;
/// Seconds after which a client may try again when one still did.
const RETRY_AFTER_SECONDS: u32 = 1;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(create_purchase))
}

/// Commits purchases in groups. Clones share the queue.
#[derive(Debug, Clone, Default)]
pub struct Purchases(Grouped<Taking>);

/// Somebody who takes an offer.
#[derive(Debug, Clone)]
struct Wish {
    asked: Asked,
    payer: Option<Address>,
    /// `Identity::spender` of the caller.
    spender: Option<ApiKeyId>,
    body: Arc<NewPurchaseBody>,
}

/// It was not looked whether this version can be served.
#[derive(Debug)]
struct Unseen(DatasetId, DatasetVersionId);

/// Takes offers.
struct Taking {
    facts: Arc<Facts>,
}

/// Why a group was not committed.
#[derive(Debug, thiserror::Error)]
enum CommitError {
    #[error("take the offers of a group")]
    Take(#[from] TakeError),
    #[error("read the token")]
    Asset(#[from] AssetError),
    #[error("commit a group")]
    Database(#[from] sqlx::Error),
}

impl Order for Wish {
    fn asked(&self) -> &Asked {
        &self.asked
    }
}

impl Work for Taking {
    type Order = Wish;
    type Again = Unseen;
    type Error = CommitError;

    fn work_on<'a>(
        &'a self,
        tx: &'a mut PgTransaction<'static>,
        orders: &'a [&'a Wish],
        now: OffsetDateTime,
    ) -> BoxFuture<'a, Result<Done<Unseen>, CommitError>> {
        Box::pin(self.work_on(tx, orders, now))
    }
}

impl Taking {
    async fn work_on(
        &self,
        tx: &mut PgTransaction<'_>,
        wishes: &[&Wish],
        now: OffsetDateTime,
    ) -> Result<Done<Unseen>, CommitError> {
        let buyers: Vec<_> = wishes.iter().map(|it| it.asked.account).collect();
        let frozen = limits::frozen(tx, &buyers).await?;
        let wanted = wishes.iter().map(|it| (it.asked.account, it.body.offer));
        let stall = Stall::lock(tx, &wanted.collect::<Vec<_>>(), now).await?;
        let mut tokens = Tokens::default();
        let (mut done, mut new): (Done<Unseen>, Vec<_>) = (Vec::new(), Vec::new());
        // Where each of those that are taken is to be answered, in the token of its offer.
        let mut places = Vec::new();
        for (place, wish) in wishes.iter().enumerate() {
            let account = wish.asked.account;
            // Replaced below, where it is taken.
            let mut refused = Refusal::Refused(Problem::not_found());
            match stall.find(account, wish.body.offer) {
                _ if frozen.contains(&account) => {
                    refused = Refusal::Refused(limited(LimitError::Frozen));
                }
                None => refused = Refusal::Refused(no_offer()),
                Some(stand) => {
                    let asset = tokens.of(tx, stand.offer.asset_id).await?;
                    match self.prepare(wish, stand, &asset, now) {
                        Ok(it) => {
                            new.push(it);
                            places.push((place, asset));
                        }
                        Err(refusal) => refused = refusal,
                    }
                }
            }
            done.push(Err(refused));
        }
        let taken = purchases::take_all(tx, &stall, &new, now).await?;
        for ((place, asset), taken) in places.into_iter().zip(taken) {
            done[place] = match taken {
                Ok(purchase) => {
                    let location = format!("/v1/purchases/{}", purchase.id);
                    let body = PurchaseBody::new(purchase, &asset);
                    Ok(Reply::created(location, &body))
                }
                Err(refused) => Err(Refusal::Refused(not_taken(refused, &asset))),
            };
        }
        Ok(done)
    }

    /// What is taken, where it was looked whether that can be served.
    fn prepare(
        &self,
        wish: &Wish,
        stand: &Stand,
        asset: &Asset,
        now: OffsetDateTime,
    ) -> Result<NewPurchase, Refusal<Unseen>> {
        let new = wish.new_purchase(stand, asset);
        let new = new.map_err(Refusal::Refused)?;
        match stand.ready {
            Some(version) if !availability::is_believed(&self.facts, version, now) => {
                Err(Refusal::Again(Unseen(stand.offer.dataset, version)))
            }
            _ => Ok(new),
        }
    }
}

impl Wish {
    fn new_purchase(&self, stand: &Stand, asset: &Asset) -> Result<NewPurchase, Problem> {
        let (body, terms) = (&*self.body, &stand.offer.terms);
        let expected = body.expected_price.amount_of(asset, "/expected_price")?;
        let cap = body.cap.as_ref().map(|cap| cap.amount_of(asset, "/cap"));
        let cap = cap.transpose()?;
        if cap.is_some() && terms.kind != OfferKind::Subscribe {
            return Err(Problem::invalid("/cap", "only subscriptions have one"));
        }
        if body.note.is_some() && terms.answer_seconds.is_none() {
            return Err(Problem::invalid(
                "/note",
                "nobody has to ask for this offer",
            ));
        }
        Ok(NewPurchase {
            account: self.asked.account,
            payer: self.payer,
            spender: self.spender,
            offer: body.offer,
            expected,
            seconds: seconds(terms, body.seconds)?,
            cap,
            note: body.note.clone(),
        })
    }
}

/// The tokens that the offers of a group are priced in.
#[derive(Default)]
struct Tokens(HashMap<i32, Arc<Asset>>);

impl Tokens {
    async fn of(
        &mut self,
        tx: &mut PgTransaction<'_>,
        asset_id: i32,
    ) -> Result<Arc<Asset>, AssetError> {
        if let Some(asset) = self.0.get(&asset_id) {
            return Ok(Arc::clone(asset));
        }
        let asset = Arc::new(assets::find(tx, asset_id).await?);
        self.0.insert(asset_id, Arc::clone(&asset));
        Ok(asset)
    }
}

fn no_offer() -> Problem {
    Problem::invalid("/offer", "no such offer")
}

/// Longest note to a seller, in bytes.
const NOTE_BYTES_MAX: usize = 4_096;
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewPurchase)]
struct NewPurchaseBody {
    #[schema(value_type = String)]
    offer: OfferId,
    /// What is to be held for it, as the offer's quote says: if it costs something else by now, nothing is bought.
    expected_price: MoneyBody,
    /// How long a rental is to last.
    #[schema(minimum = 1)]
    seconds: Option<u32>,
    /// The most that a period of a subscription may ever cost; left out: what it costs now.
    cap: Option<MoneyBody>,
    /// Words to the seller of an offer that has to be asked for.
    #[schema(max_length = 4096)]
    note: Option<String>,
}

/// Takes an offer: buys, rents, subscribes, or asks for it where it is gated. The price is held, and the right given, in one transaction; it is
/// charged once the sale is final: with the first byte that is served, or when its time or the window in which it can be given back is over.
#[utoipa::path(
    post, path = "/v1/purchases", tag = "market", security(("session" = []), ("api_key" = ["purchases:write"])),
    params(("Idempotency-Key" = String, Header)),
    request_body = NewPurchaseBody,
    responses(
        (status = 201, body = PurchaseBody, headers(("Location" = String))),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn create_purchase(
    State(state): State<AppState>,
    caller: Caller<needs::PurchasesWrite>,
    request: IdempotentJson<NewPurchaseBody>,
) -> Result<Response, Problem> {
    let (at, body) = (state.now(), request.body);
    let is_long = |it: &String| it.len() > NOTE_BYTES_MAX;
    if body.note.as_ref().is_some_and(is_long) {
        return Err(Problem::invalid("/note", "expected at most 4096 bytes"));
    }
    let wish = Wish {
        asked: Asked {
            account: caller.account,
            key: request.key,
            at,
        },
        payer: caller.address,
        spender: caller.spender(),
        body: Arc::new(body),
    };
    for _ in 0..LOOKS_MAX {
        let work = || Taking {
            facts: Arc::clone(&state.submissions.facts),
        };
        let outcome = state.purchases.0.submit(&state, wish.clone(), work).await?;
        match outcome.answer(&state, &wish.asked) {
            Ok(answer) => return answer,
            // The objects are read outside of the transaction.
            Err(Unseen(dataset, version)) => {
                let tx = tenant::begin_for_everybody(&state.db).await?;
                availability::require(&state, tx, (dataset, Some(version))).await?;
            }
        }
    }
    Err(Problem::unavailable("The dataset is changing").retry_after(RETRY_AFTER_SECONDS))
}

fn not_taken(error: TakeError, asset: &Asset) -> Problem {
    let conflict = |code, title| Problem::new(StatusCode::CONFLICT, code, title);
    match error {
        TakeError::Own => conflict("own_dataset", "The dataset is your own"),
        TakeError::Owned(id) => {
            conflict("already_owned", "You have it already").detail(format!("by {id}"))
        }
        TakeError::Requested(id) => {
            conflict("already_requested", "You asked for it already").detail(format!("with {id}"))
        }
        TakeError::Subscribed(id) => {
            conflict("already_subscribed", "You subscribe already").detail(format!("by {id}"))
        }
        TakeError::PriceChanged(price) => {
            conflict("price_changed", "It does not cost what was expected")
                .detail(format!("it costs {price} base units of {}", asset.caip19()))
        }
        TakeError::NoOffer => no_offer(),
        TakeError::TooDear => too_dear(),
        TakeError::NotOnSale => closed(),
        TakeError::NothingReady => availability::nothing_ready(),
        TakeError::Blocked(takedown) => blocked(takedown),
        TakeError::NothingToTake => conflict(
            "nothing_to_take",
            "There is nothing to take: jobs that compute on the dataset name it, and pay for it",
        ),
        TakeError::TooLong(longest) => Problem::invalid(
            "/seconds",
            format!("what is rented would last longer than {longest} seconds from now"),
        ),
        TakeError::AboveCap(price) => {
            Problem::invalid("/cap/amount", format!("a period costs {price} base units"))
        }
        TakeError::NoAddress("buyer") => {
            conflict("address_not_bound", "The account has no bound address")
        }
        TakeError::NoAddress(_) => closed().detail("its seller has no address that could be paid"),
        TakeError::AboveSpendLimit(limit) => above_spend_limit(limit),
        TakeError::Hold(error) => hold_refused(error),
        TakeError::Database(error) => error.into(),
        error @ (TakeError::Split(_) | TakeError::End(_) | TakeError::Asset(_)) => {
            Problem::internal(&error)
        }
    }
}
