//! `/v1/quotes`: binding prices.

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use comptoir_domain::{
    amount::Amount,
    asset::Asset,
    atto::Atto,
    digest::Sha256,
    id::{DatasetVersionId, OfferId, QuoteId},
    job::{Device, JobSpec, Tier},
    price::{self, Meter, PriceVersion},
};
use comptoir_store::{
    assets,
    dataset_inputs::QuotedData,
    prices,
    prices::PriceError,
    quotes::{self, Quote, QuoteError},
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    AppState, Problem,
    auth::{Caller, needs},
    etag::Conditions,
    extract::{Json, Path},
    money::MoneyBody,
    quoting::{self, Wanted, no_asset},
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create_quote))
        .routes(routes!(find_quote))
}

/// What is to be priced.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewQuoteBody {
    /// What the job computes. Every blob must have been uploaded.
    spec: JobSpec,
    /// How the result is verified.
    #[serde(default = "default_tier")]
    #[schema(default = "sampled")]
    tier: Tier,
    /// What it runs on.
    #[serde(default = "default_device")]
    #[schema(default = "cpu")]
    device: Device,
}

pub(super) const fn default_tier() -> Tier {
    Tier::Sampled
}

pub(super) const fn default_device() -> Device {
    Device::Cpu
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum QuoteObject {
    Quote,
}

/// What the same job costs under one tier.
#[derive(Serialize, ToSchema)]
struct TierPrice {
    tier: Tier,
    /// Executions that the price pays for.
    replicas: u16,
    /// What it adds for audits, in millionths of one execution.
    audit_ppm: u32,
    /// The price in whole base units, rounded up, with the dataset's.
    price: MoneyBody,
}

/// What the dataset that a job reads costs.
#[derive(Serialize, ToSchema)]
#[schema(as = QuoteData)]
struct QuoteDataBody {
    #[schema(value_type = String, example = "dsv_01h455vb4pex5vsknk084sn02q")]
    dataset_version: DatasetVersionId,
    /// The offer that the job computes under; `null` where the account may read the files anyhow, and pays nothing for them.
    #[schema(value_type = Option<String>, required = true, example = "off_01h455vb4pex5vsknk084sn02q")]
    offer_id: Option<OfferId>,
    /// Which of the offer's prices was in force.
    #[schema(required = true)]
    price_number: Option<u32>,
    /// Its part of `price`.
    price: MoneyBody,
}

impl QuoteDataBody {
    fn new(data: QuotedData, asset: &Asset) -> Self {
        let price = data.price.map_or(Amount::ZERO, |it| it.price);
        Self {
            dataset_version: data.version,
            offer_id: data.price.map(|it| it.offer),
            price_number: data.price.map(|it| it.number),
            price: MoneyBody::new(price, asset),
        }
    }
}

/// A binding price for one job: `amount_atto` = max(`madds` × (`replicas` + `audit_ppm` ÷ 10^6) × `rate_nano`,
/// `minimum_base` × 10^18), the audits' part rounded down; and what its dataset costs.
#[derive(Serialize, ToSchema)]
#[schema(as = Quote)]
pub(super) struct QuoteBody {
    #[schema(value_type = String, example = "quo_01h455vb4pex5vsknk084sn02q")]
    id: QuoteId,
    object: QuoteObject,
    spec: JobSpec,
    /// The digest of the specification in canonical form (RFC 8785); the receipt commits to it.
    #[schema(value_type = String)]
    spec_sha256: Sha256,
    tier: Tier,
    device: Device,
    /// What is counted of the job.
    meter: Meter,
    /// What it is multiplied by.
    price_version: PriceVersion,
    /// The exact price of all replicas, in 10^-18 base units.
    #[schema(value_type = String, pattern = "^(0|[1-9][0-9]*)$")]
    amount_atto: Atto,
    /// The dataset that it reads; `null` where it reads none.
    #[schema(required = true)]
    data: Option<QuoteDataBody>,
    /// The price in whole base units, rounded up, and the dataset's: never more is charged.
    price: MoneyBody,
    /// What is held until the job ends: the price.
    hold: MoneyBody,
    /// What the job would cost under each tier, this one included; those too dear for any amount are left out.
    tiers: Vec<TierPrice>,
    /// Memory that a worker must offer for it.
    min_memory_bytes: u64,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    /// Until when a job can be made from it.
    #[serde(with = "time::serde::rfc3339")]
    expires_at: OffsetDateTime,
}

impl QuoteBody {
    fn new(quote: Quote, price_version: PriceVersion, asset: &Asset) -> Self {
        let data = quote.data.and_then(|it| it.price).map(|it| it.price);
        let data = data.unwrap_or(Amount::ZERO);
        let tiers = Tier::ALL.into_iter().filter_map(|tier| {
            let meter = quote.meter.under(tier);
            let work = price::amount(&meter, &price_version)?.ceil();
            Some(TierPrice {
                tier,
                replicas: meter.replicas(),
                audit_ppm: meter.audit_ppm(),
                price: MoneyBody::new(work.checked_add(data)?, asset),
            })
        });
        Self {
            tiers: tiers.collect(),
            id: quote.id,
            object: QuoteObject::Quote,
            spec: quote.spec,
            spec_sha256: quote.spec_sha256,
            tier: quote.tier,
            device: quote.device,
            meter: quote.meter,
            price_version,
            amount_atto: quote.amount,
            data: quote.data.map(|it| QuoteDataBody::new(it, asset)),
            price: MoneyBody::new(quote.hold, asset),
            hold: MoneyBody::new(quote.hold, asset),
            min_memory_bytes: quote.min_memory_bytes,
            created_at: quote.created_at,
            expires_at: quote.expires_at,
        }
    }

    async fn of(connection: &mut PgConnection, quote: Quote) -> Result<Self, Problem> {
        let asset = assets::find(connection, quote.asset_id)
            .await
            .map_err(no_asset)?;
        let version = prices::find(connection, quote.price_version).await;
        let version = version.map_err(|error| match error {
            PriceError::Database(error) => error.into(),
            PriceError::NotPublished => Problem::internal(&error),
        })?;
        Ok(Self::new(quote, version, &asset))
    }
}

/// Prices a job. The quote binds for 15 minutes and holds nothing; it may be asked for as often as you like.
#[utoipa::path(
    post, path = "/v1/quotes", tag = "jobs", security(("session" = []), ("api_key" = ["jobs:write"])),
    request_body = NewQuoteBody,
    responses(
        (status = 201, body = QuoteBody, headers(("Location" = String))),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn create_quote(
    State(state): State<AppState>,
    caller: Caller<needs::JobsWrite>,
    Json(body): Json<NewQuoteBody>,
) -> Result<Response, Problem> {
    let wanted = Wanted {
        spec: body.spec,
        tier: body.tier,
        device: body.device,
    };
    let terms = quoting::terms_now(&state).await?;
    let new = quoting::price(&state, caller.account, wanted, &terms).await?;
    let mut tx = caller.begin(&state).await?;
    let quote = quotes::create(&mut tx, new, state.now())
        .await
        .map_err(not_quoted)?;
    let location = [(header::LOCATION, format!("/v1/quotes/{}", quote.id))];
    let body = QuoteBody::of(&mut tx, quote).await?;
    tx.commit().await?;
    Ok((StatusCode::CREATED, location, Json(body)).into_response())
}

/// One quote.
#[utoipa::path(
    get, path = "/v1/quotes/{id}", tag = "jobs", security(("session" = []), ("api_key" = ["jobs:read"])),
    params(("id" = String, Path)),
    responses(
        (status = 200, body = QuoteBody, headers(("ETag" = String))),
        (status = 304),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn find_quote(
    State(state): State<AppState>,
    caller: Caller<needs::JobsRead>,
    Path(id): Path<QuoteId>,
    conditions: Conditions,
) -> Result<Response, Problem> {
    let mut connection = caller.read(&state).await?;
    let quote = quotes::find(&mut connection, caller.account, id).await?;
    let quote = quote.ok_or_else(Problem::not_found)?;
    Ok(conditions.answer(QuoteBody::of(&mut connection, quote).await?))
}

pub(super) fn not_quoted(error: QuoteError) -> Problem {
    match error {
        QuoteError::Database(error) => error.into(),
        QuoteError::Document(_) => Problem::internal(&error),
    }
}
