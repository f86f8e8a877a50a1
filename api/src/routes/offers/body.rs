//! Offers as they are written and shown.

use comptoir_domain::{
    amount::Amount,
    asset::Asset,
    digest::Sha256,
    id::{AccountId, DatasetId, DatasetVersionId, OfferId},
    offer::{OfferKind, Terms},
};
use comptoir_store::offers::{Offer, Price};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use crate::{Problem, money::MoneyBody};

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewOffer)]
pub(super) struct NewOfferBody {
    pub kind: OfferKind,
    /// Of the purchase (`buy`), of a second (`rent`), of a period (`subscribe`), of a job (`compute_only`); 0 where it is `free`.
    pub price: MoneyBody,
    /// The version that is offered; left out: every version, future ones too.
    #[schema(value_type = Option<String>)]
    pub version: Option<DatasetVersionId>,
    /// How long you have to answer whoever asks for it; left out: nobody has to ask.
    #[schema(minimum = 3_600, maximum = 2_592_000)]
    pub answer_seconds: Option<u32>,
    /// For how long a purchase of which nothing was read can be given back.
    #[serde(default)]
    #[schema(maximum = 2_592_000)]
    pub refund_seconds: u32,
    /// The period of a subscription, or the longest rental.
    #[schema(minimum = 60, maximum = 31_622_400)]
    pub period_seconds: Option<u32>,
    /// The seconds that are charged at least, of those agreed, once something was read, however early its buyer ends it; left out: 3,600 of a rental
    /// and 86,400 of a period, or all of a shorter `period_seconds`.
    #[schema(maximum = 31_622_400)]
    pub minimum_seconds: Option<u32>,
    /// SHA-256 of the programs that may compute on it; left out: any.
    #[schema(value_type = Option<Vec<String>>, min_items = 1, max_items = 1000)]
    pub programs: Option<Vec<Sha256>>,
    /// The most bytes that the results of a job on it may have.
    #[schema(minimum = 1)]
    pub output_bytes_max: Option<u64>,
    /// Do results of jobs on it wait for your consent?
    #[serde(default)]
    pub is_released_by_seller: bool,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewPrice)]
pub(super) struct NewPriceBody {
    pub price: MoneyBody,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum OfferObject {
    Offer,
}

/// One of an offer's prices.
#[derive(Serialize, ToSchema)]
struct OfferPrice {
    /// Its number, from 1.
    number: i32,
    price: MoneyBody,
    /// What the platform takes of it, in millionths.
    platform_ppm: u32,
    /// From when on it counts.
    #[serde(with = "time::serde::rfc3339")]
    effective_at: OffsetDateTime,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Offer)]
pub(super) struct OfferBody {
    #[schema(value_type = String, example = "off_01h455vb4pex5vsknk084sn02q")]
    id: OfferId,
    object: OfferObject,
    #[schema(value_type = String)]
    dataset: DatasetId,
    #[schema(value_type = String)]
    seller: AccountId,
    kind: OfferKind,
    /// The version that is offered; `null`: every version, future ones too.
    #[schema(required = true, value_type = Option<String>)]
    version: Option<DatasetVersionId>,
    /// The price that counts now.
    price: OfferPrice,
    /// The price that will, once its notice is over.
    #[schema(required = true)]
    next_price: Option<OfferPrice>,
    /// How long the seller has to answer whoever asks for it; `null`: nobody has to ask.
    #[schema(required = true)]
    answer_seconds: Option<u32>,
    refund_seconds: u32,
    #[schema(required = true)]
    period_seconds: Option<u32>,
    /// The seconds that are charged at least, of those agreed, once something was read.
    minimum_seconds: u32,
    #[schema(required = true, value_type = Option<Vec<String>>)]
    programs: Option<Vec<Sha256>>,
    #[schema(required = true)]
    output_bytes_max: Option<u64>,
    is_released_by_seller: bool,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    /// When it was closed; `null`: it stands.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    closed_at: Option<OffsetDateTime>,
}

impl OfferBody {
    pub(super) fn new(offer: Offer, asset: &Asset) -> Self {
        let price = |it: Price| OfferPrice {
            number: it.number,
            price: MoneyBody::new(it.amount, asset),
            platform_ppm: it.platform_ppm,
            effective_at: it.effective_at,
        };
        let terms = offer.terms;
        Self {
            id: offer.id,
            object: OfferObject::Offer,
            dataset: offer.dataset,
            seller: offer.account,
            kind: terms.kind,
            version: terms.version,
            price: price(offer.price),
            next_price: offer.next_price.map(price),
            answer_seconds: terms.answer_seconds,
            refund_seconds: terms.refund_seconds,
            period_seconds: terms.period_seconds,
            minimum_seconds: terms.minimum_seconds,
            programs: terms.programs,
            output_bytes_max: terms.output_bytes_max,
            is_released_by_seller: terms.is_released_by_seller,
            created_at: offer.created_at,
            closed_at: offer.closed_at,
        }
    }
}

pub(super) fn terms(body: &NewOfferBody) -> Result<Terms, Problem> {
    let terms = Terms {
        kind: body.kind,
        version: body.version,
        answer_seconds: body.answer_seconds,
        refund_seconds: body.refund_seconds,
        period_seconds: body.period_seconds,
        minimum_seconds: body
            .minimum_seconds
            .unwrap_or_else(|| body.kind.minimum_seconds(body.period_seconds)),
        programs: body.programs.clone(),
        output_bytes_max: body.output_bytes_max,
        is_released_by_seller: body.is_released_by_seller,
    };
    Problem::refuse(terms.refusals())?;
    Ok(terms)
}

pub(super) fn check_price(terms: &Terms, price: Amount) -> Result<(), Problem> {
    match terms.refuses_price(price) {
        Some(why) => Err(Problem::invalid("/price/amount", why)),
        None => Ok(()),
    }
}
