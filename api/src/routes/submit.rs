//! `POST /v1/jobs`: a job is submitted, and its price held.

use std::{fmt, time::Duration as StdDuration};

use axum::{
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use comptoir_domain::{
    amount::Amount,
    id::{JobId, QuoteId},
    job::{Device, JobSpec, Tier},
    name::is_name,
};
use comptoir_store::{events, jobs::CreateError, spending::AboveSpendLimit, wake::Channel};
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
};
use time::{Duration, OffsetDateTime};
use tokio::time::Instant;
use utoipa::{
    ToSchema,
    openapi::{
        ObjectBuilder, Ref,
        schema::{OneOfBuilder, Schema, Type},
    },
};

use super::{
    job_body::JobBody,
    jobs::read,
    quotes::{default_device, default_tier, not_quoted},
    submissions::{Source, Submission},
    withdrawals::hold_refused,
};
use crate::{
    AppState, FieldError, Problem,
    auth::{Caller, Identity, needs},
    dataset_inputs,
    extract::Json,
    grouped::Asked,
    idempotency::{self, IdempotentJson},
    money::MoneyBody,
    quoting::{self, Wanted},
};

/// Longest name of a job, in characters.
const NAME_CHARS_MAX: usize = 200;
/// How long a job may take when the client does not say.
const DEADLINE_DEFAULT: Duration = Duration::hours(24);
/// How long a job may take at most.
const DEADLINE_MAX: Duration = Duration::days(30);
/// How long a job may take at least: a lease and its heartbeats must fit in.
const DEADLINE_MIN: Duration = Duration::minutes(1);
/// Longest wait of `Prefer: wait`, in seconds.
const WAIT_SECONDS_MAX: u64 = 60;
/// How often a submission is priced when the prices change under it.
const PRICINGS_MAX: u32 = 3;
/// Seconds after which a client may try again when they still did.
const RETRY_AFTER_SECONDS: u32 = 1;
/// How often a waiting request looks, whether it is woken or not.
const POLL_EVERY: StdDuration = StdDuration::from_secs(1);

const PREFER: HeaderName = HeaderName::from_static("prefer");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// A job: a quote, or what `POST /v1/quotes` takes, and what it may cost.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewJobBody {
    /// The quote to make it from. Leave `spec`, `tier` and `device` out with it.
    #[serde(default)]
    #[schema(value_type = Option<String>, nullable = false, example = "quo_01h455vb4pex5vsknk084sn02q")]
    quote_id: Option<QuoteId>,
    /// What it computes, without a quote.
    #[serde(default)]
    #[schema(nullable = false)]
    spec: Option<JobSpec>,
    /// With `spec`: how the result is verified; `sampled` when absent.
    #[serde(default)]
    #[schema(nullable = false)]
    tier: Option<Tier>,
    /// With `spec`: what it runs on; `cpu` when absent.
    #[serde(default)]
    #[schema(nullable = false)]
    device: Option<Device>,
    /// The most that you pay. The job is refused when its price is above it.
    #[schema(schema_with = max_cost_schema)]
    max_cost: MaxCost,
    /// What you call it.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 200)]
    name: Option<String>,
    /// When it ends, done or not: in a minute to 30 days; in 24 hours when absent.
    #[serde(default, with = "comptoir_http::moment::option")]
    deadline_at: Option<OffsetDateTime>,
}

/// An amount, or its base units alone, since a deployment has one token.
enum MaxCost {
    Money(MoneyBody),
    Base(Amount),
}

impl<'de> Deserialize<'de> for MaxCost {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = MaxCost;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an amount, or its base units as a string")
            }

            fn visit_str<E: de::Error>(self, digits: &str) -> Result<MaxCost, E> {
                digits.parse().map(MaxCost::Base).map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<MaxCost, A::Error> {
                MoneyBody::deserialize(MapAccessDeserializer::new(fields)).map(MaxCost::Money)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

fn max_cost_schema() -> Schema {
    let base = ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some("^(0|[1-9][0-9]*)$"))
        .description(Some("Base units of the deployment's token"));
    let description = "The most that you pay. The job is refused when its price is above it.";
    Schema::OneOf(
        OneOfBuilder::new()
            .item(Ref::from_schema_name("Money"))
            .item(base)
            .description(Some(description))
            .build(),
    )
}

/// Submits a job and holds its price. With `Prefer: wait=30` the reply comes when the job has ended, at the latest
/// after so many seconds (60 at most), and shows the job as it is then.
#[utoipa::path(
    post, path = "/v1/jobs", tag = "jobs", security(("session" = []), ("api_key" = ["jobs:write"])),
    params(("Idempotency-Key" = String, Header), ("Prefer" = Option<String>, Header, description = "`wait=N`, seconds")),
    request_body = NewJobBody,
    responses(
        (status = 201, body = JobBody, headers(("Location" = String))),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn create_job(
    State(state): State<AppState>,
    caller: Caller<needs::JobsWrite>,
    headers: HeaderMap,
    request: IdempotentJson<NewJobBody>,
) -> Result<Response, Problem> {
    let asked = Asked {
        account: caller.account,
        key: request.key,
        at: state.now(),
    };
    let response = submit(&state, &caller, asked, &request.body).await?;
    match wait_seconds(&headers) {
        Some(seconds) => wait(&state, &caller, response, seconds).await,
        None => Ok(response),
    }
}

/// Prices what is asked for and has it committed; again when the prices changed in between.
async fn submit(
    state: &AppState,
    caller: &Identity,
    asked: Asked,
    body: &NewJobBody,
) -> Result<Response, Problem> {
    for _ in 0..PRICINGS_MAX {
        // Prepared before the transaction, which must not wait for files; judged in it, after a repetition is recognised.
        let submission = match prepare(state, caller, &asked, body).await {
            Ok(submission) => submission,
            Err(problem) => {
                return idempotency::run(state, caller, asked.key, move |_| {
                    Box::pin(async move { Err(problem) })
                })
                .await;
            }
        };
        let outcome = state.submissions.submit(state, submission).await?;
        if let Ok(answer) = outcome.answer(state, &asked) {
            return answer;
        }
    }
    Err(Problem::unavailable("The prices are changing").retry_after(RETRY_AFTER_SECONDS))
}

async fn prepare(
    state: &AppState,
    caller: &Identity,
    asked: &Asked,
    body: &NewJobBody,
) -> Result<Submission, Problem> {
    let now = state.now();
    let deadline_at = body.deadline_at.unwrap_or(now + DEADLINE_DEFAULT);
    check(body, deadline_at, now)?;
    let payer = caller.owner()?;
    let device = body.device.unwrap_or(default_device());
    let wanted = body.spec.as_ref().map(|_| device);
    let terms = quoting::terms_kept(state, wanted).await?;
    let source = match (body.quote_id, &body.spec) {
        (Some(quote), _) => Source::Stored(quote),
        (None, Some(spec)) => {
            let wanted = Wanted {
                spec: spec.clone(),
                tier: body.tier.unwrap_or(default_tier()),
                device,
            };
            let priced = quoting::price(state, caller.account, wanted, &terms).await?;
            let quote = priced
                .into_quote(now)
                .map_err(|error| not_quoted(error.into()))?;
            Source::Fresh(Box::new(quote))
        }
        (None, None) => return Err(Problem::invalid("", "expected `quote_id` or `spec`")),
    };
    let max_cost = match &body.max_cost {
        MaxCost::Money(money) => money.amount_of(&terms.asset, "/max_cost")?,
        MaxCost::Base(amount) => *amount,
    };
    Ok(Submission {
        asked: Asked {
            at: now,
            ..asked.clone()
        },
        payer,
        spender: caller.spender(),
        source,
        name: body.name.clone(),
        max_cost,
        deadline_at,
        asset_id: terms.asset.id,
    })
}

fn check(
    body: &NewJobBody,
    deadline_at: OffsetDateTime,
    now: OffsetDateTime,
) -> Result<(), Problem> {
    let mut errors = Vec::new();
    let priced_apart = body.spec.is_some() || body.tier.is_some() || body.device.is_some();
    if body.quote_id.is_some() && priced_apart {
        errors.push(FieldError::new(
            "/quote_id",
            "the quote says `spec`, `tier` and `device`; leave them out",
        ));
    }
    let named = body.name.as_deref();
    if !named.is_none_or(|name| is_name(name, NAME_CHARS_MAX)) {
        errors.push(FieldError::new(
            "/name",
            format!("expected 1 to {NAME_CHARS_MAX} characters, none of control"),
        ));
    }
    if !(now + DEADLINE_MIN..=now + DEADLINE_MAX).contains(&deadline_at) {
        errors.push(FieldError::new(
            "/deadline_at",
            "expected a time in a minute to 30 days from now",
        ));
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Problem::invalid_fields(errors))
    }
}

/// The seconds of `Prefer: wait=N`; a preference that is not understood is no error (RFC 7240).
fn wait_seconds(headers: &HeaderMap) -> Option<u64> {
    let mut preferences = headers
        .get_all(PREFER)
        .iter()
        .filter_map(|it| it.to_str().ok())
        .flat_map(|it| it.split(','));
    let wait = preferences.find_map(|it| it.trim().strip_prefix("wait=")?.parse::<u64>().ok());
    wait.map(|seconds| seconds.min(WAIT_SECONDS_MAX))
}

/// Holds the reply until the job has ended or the time is over, then shows the job as it is.
async fn wait(
    state: &AppState,
    caller: &Identity,
    response: Response,
    seconds: u64,
) -> Result<Response, Problem> {
    let location = response
        .headers()
        .get(header::LOCATION)
        .and_then(|it| it.to_str().ok());
    let Some(job) = location.and_then(|it| it.rsplit('/').next()?.parse::<JobId>().ok()) else {
        return Ok(response);
    };
    let mut woken = state.wake.subscribe(Channel::Job(job));
    let end = Instant::now() + StdDuration::from_secs(seconds);
    loop {
        let progress =
            events::progress(&mut *caller.read(state).await?, caller.account, job).await?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || progress.is_none_or(|it| it.ended) {
            break;
        }
        woken.wait(left.min(POLL_EVERY)).await;
    }
    let body = read(state, caller, job).await?;
    let (mut head, _) = response.into_parts();
    head.headers.remove(header::CONTENT_LENGTH);
    let applied = HeaderValue::try_from(format!("wait={seconds}")).expect("digits are ASCII");
    head.headers.insert(PREFERENCE_APPLIED, applied);
    Ok((head.status, head.headers, Json(body)).into_response())
}

pub(super) fn not_created(error: CreateError) -> Problem {
    let detail = error.to_string();
    match error {
        CreateError::QuoteNotFound => {
            Problem::not_found().errors([FieldError::new("/quote_id", "no such quote")])
        }
        CreateError::QuoteExpired(_) => {
            Problem::new(StatusCode::GONE, "quote_expired", "The quote has expired").detail(detail)
        }
        CreateError::DataRightEnded => dataset_inputs::ended().detail(detail),
        CreateError::QuoteUsed => Problem::new(
            StatusCode::CONFLICT,
            "quote_used",
            "A job was made from the quote",
        ),
        CreateError::AboveMaxCost { .. } => {
            let title = "The price is above max_cost";
            Problem::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "max_cost_below_quote",
                title,
            )
            .errors([FieldError::new("/max_cost", detail)])
        }
        CreateError::AboveSpendLimit { hold, limit } => {
            above_spend_limit(limit).detail(format!("The job holds {hold} base units; {limit}"))
        }
        CreateError::Database(error) => error.into(),
        CreateError::Quote(error) => not_quoted(error),
        CreateError::Hold(error) => hold_refused(error),
    }
}

/// What an API key is told that may not spend so much.
pub(crate) fn above_spend_limit(limit: AboveSpendLimit) -> Problem {
    Problem::new(
        StatusCode::PAYMENT_REQUIRED,
        "spend_limit_reached",
        "The key may not spend so much",
    )
    .detail(limit.to_string())
}
