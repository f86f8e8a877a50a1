//! `/v1/jobs/{id}/verdict`: what a job's result was accepted, or refused, on.

use axum::{extract::State, http::StatusCode};
use comptoir_domain::{
    asset::Asset,
    digest::Sha256,
    id::{AttemptId, JobId},
};
use comptoir_store::{
    assets,
    draws::{self, MadeDraw},
    holdback::{self, Holdback},
    verdicts, withheld_results,
};
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::withheld;
use crate::{
    AppState, Problem,
    auth::{Caller, needs},
    extract::{Json, Path},
    money::MoneyBody,
    quoting::no_asset,
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(find_verdict))
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum VerdictObject {
    Verdict,
}

/// Why a sampled job's result was, or was not, run again. The operator draws; whoever has the seed can draw again:
/// `drawn_ppm` is the first 8 bytes, little-endian, of SHA-256(seed ‖ attempt UUID ‖ seal), times 10^6, divided by 2^64.
#[derive(Serialize, ToSchema)]
#[schema(as = Draw)]
struct DrawBody {
    /// The attempt whose result it is.
    #[schema(value_type = String)]
    attempt_id: AttemptId,
    /// Was it run again by another owner: is `drawn_ppm` below `rate_ppm`?
    audited: bool,
    /// Results of the worker that others had confirmed.
    trusted: u32,
    /// The rate that follows from them, in millionths.
    rate_ppm: u32,
    /// What was drawn, in millionths.
    drawn_ppm: u32,
    /// The piece of a training that its audit began with, counted from 0: the second 8 bytes of the same digest, times the
    /// number of pieces, divided by 2^64.
    #[schema(required = true)]
    piece: Option<u32>,
    /// SHA-256(`comptoir audit seed v1` ‖ seed); stored before anything was drawn from the seed.
    #[schema(value_type = String)]
    seed_commitment: Sha256,
    /// The seed, in hexadecimal; `null` while results are still drawn for with it.
    #[schema(required = true, value_type = Option<String>)]
    seed: Option<Sha256>,
    #[serde(with = "time::serde::rfc3339")]
    drawn_at: OffsetDateTime,
}

/// Pay that a worker's owner does not have to spend, not yet or not any more.
#[derive(Serialize, ToSchema)]
#[schema(as = Holdback)]
struct HoldbackBody {
    /// Who earned it, as CAIP-10 names it.
    payee: String,
    amount: MoneyBody,
    /// `forfeited`: the worker was caught with another result, and this came back to you.
    #[schema(pattern = "^(held|released|forfeited)$")]
    state: String,
}

/// A verdict and its evidence: `evidence_sha256` is the SHA-256 of the canonical JSON (RFC 8785) of `evidence`, and the
/// receipt commits to it. `evidence.results` has seal, salt and outputs of every execution that was compared,
/// `evidence.comparisons` how each two of them compare.
#[derive(Serialize, ToSchema)]
#[schema(as = Verdict)]
struct VerdictBody {
    #[schema(value_type = String, example = "job_01h455vb4pex5vsknk084sn02q")]
    job_id: JobId,
    object: VerdictObject,
    /// How the result was verified.
    #[schema(pattern = "^(unverified|sampled|bitwise|tolerance|unstable)$")]
    kind: String,
    #[schema(value_type = Object)]
    evidence: serde_json::Value,
    #[schema(value_type = String)]
    evidence_sha256: Sha256,
    /// The draw of a sampled job; `null` for other tiers.
    #[schema(required = true)]
    draw: Option<DrawBody>,
    /// Pay for the job that was held back.
    holdbacks: Vec<HoldbackBody>,
    #[serde(with = "time::serde::rfc3339")]
    decided_at: OffsetDateTime,
}

impl From<MadeDraw> for DrawBody {
    fn from(made: MadeDraw) -> Self {
        Self {
            attempt_id: made.attempt,
            audited: made.draw.is_audited(),
            trusted: made.draw.trusted,
            rate_ppm: made.draw.rate_ppm,
            drawn_ppm: made.draw.drawn_ppm,
            piece: made.piece,
            seed_commitment: made.commitment,
            seed: made.shown,
            drawn_at: made.drawn_at,
        }
    }
}

impl HoldbackBody {
    fn new(holdback: Holdback, asset: &Asset) -> Self {
        Self {
            payee: asset.caip10(holdback.owner),
            amount: MoneyBody::new(holdback.amount, asset),
            state: holdback.state,
        }
    }
}

/// What the result was verified by, with everything that the verdict rests on. It names the results, so it waits for the seller of a dataset as
/// they do. 409 `no_verdict` before there is one,
/// and for a job that ended without.
#[utoipa::path(
    get, path = "/v1/jobs/{id}/verdict", tag = "jobs", security(("session" = []), ("api_key" = ["jobs:read"])),
    params(("id" = String, Path)),
    responses(
        (status = 200, body = VerdictBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn find_verdict(
    State(state): State<AppState>,
    caller: Caller<needs::JobsRead>,
    Path(id): Path<JobId>,
) -> Result<Json<VerdictBody>, Problem> {
    let mut connection = caller.read(&state).await?;
    let decided = verdicts::find_decided(&mut connection, caller.account, id)
        .await?
        .ok_or_else(Problem::not_found)?
        .ok_or_else(no_verdict)?;
    if let Some(why) = withheld_results::of_job(&mut connection, caller.account, id).await? {
        return Err(withheld(why));
    }
    let asset = assets::current(&mut connection).await.map_err(no_asset)?;
    let draw = draws::find(&mut connection, id).await?;
    let holdbacks = holdback::of_job(&mut connection, id).await?;
    Ok(Json(VerdictBody {
        job_id: id,
        object: VerdictObject::Verdict,
        kind: decided.kind,
        evidence: decided.evidence,
        evidence_sha256: decided.evidence_sha256,
        draw: draw.map(DrawBody::from),
        holdbacks: holdbacks
            .into_iter()
            .map(|it| HoldbackBody::new(it, &asset))
            .collect(),
        decided_at: decided.decided_at,
    }))
}

fn no_verdict() -> Problem {
    Problem::new(StatusCode::CONFLICT, "no_verdict", "The job has no verdict")
}
