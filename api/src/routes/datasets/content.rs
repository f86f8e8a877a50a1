//! `…/files/{file}/content`: the bytes of a published file, for who has a right to them.

use std::{error::Error, ops::Range, sync::Arc};

use alloy_primitives::Address;
use axum::{
    body::{Body, Bytes as Piece},
    extract::State,
    http::{HeaderMap, Method, StatusCode},
    response::Response,
};
use comptoir_domain::{
    id::{AccountId, DatasetFileId, DatasetId, DatasetLinkId, DatasetVersionId, PurchaseId},
    purchase::PurchaseState,
};
use comptoir_store::{
    PgTransaction,
    dataset_files::{self, File},
    dataset_servings::{self, Served},
    dataset_versions::Version,
    datasets,
    entitlements::{self, Entitlement, Standing},
    objects::ReadPartError,
    purchases::{self, EndError},
    tenant,
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use sqlx::PgConnection;
use time::format_description::well_known::Rfc3339;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    rereads::{Reads, while_allowed},
    versions::{read_version, require_ready},
};
use crate::{
    AppState, Problem,
    auth::{Caller, Identity, needs},
    availability,
    extract::Path,
    ranges::{Bytes, Wanted},
    routes::{blobs::Binary, blocked},
    sealed::SealedFile,
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(get_dataset_content))
}

/// A file that somebody may read, and by what right: `None` where it is the reader's own, or a sample.
pub(super) struct Opened {
    /// What it was looked up by.
    tx: PgTransaction<'static>,
    version: Version,
    file: File,
    right: Option<Entitlement>,
}

impl Opened {
    /// The length of the file.
    pub(super) const fn bytes(&self) -> u64 {
        self.file.entry.bytes
    }

    /// What is said of its bytes before they are read.
    fn described(&self) -> Bytes {
        let entry = &self.file.entry;
        Bytes {
            tag: format!("\"{}\"", entry.sha256),
            count: entry.bytes,
            // A right may end, and nobody but who has it is to keep the bytes.
            cache: "private, no-store",
        }
    }

    /// Gets a range of it ready to be read.
    async fn unseal(
        self,
        state: &AppState,
        range: &Range<u64>,
    ) -> Result<(SealedFile, Option<Entitlement>), Problem> {
        let mut tx = self.tx;
        tenant::widen(&mut tx).await?;
        let what = (&self.version, self.file);
        let file = SealedFile::open_range(state, &mut tx, what, range).await;
        tx.rollback().await?;
        match file {
            Ok(file) => Ok((file, self.right)),
            Err(error) => {
                let is_damage = error.is_damage();
                Err(cannot_serve(state, self.right.as_ref(), (&error, is_damage)).await)
            }
        }
    }
}

/// Who reads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader {
    /// By whose right.
    pub account: AccountId,
    /// Its address, where it is known.
    pub address: Option<Address>,
    /// The link that is followed; `None`: with a credential.
    pub link: Option<DatasetLinkId>,
}

impl Reader {
    /// Somebody with a credential.
    pub(super) fn of(caller: &Identity) -> Self {
        Self {
            account: caller.account,
            address: caller.address,
            link: None,
        }
    }
}

/// What is read by whom: a version of a dataset.
pub(super) type Place = (DatasetId, DatasetVersionId);

/// Opens a file for somebody who may have its bytes: its seller, who has a right to it, or everybody where it is a sample of a listed dataset. This
/// is the one place that decides it. 404 for who may not know of the file at all; 402, 403 and 410 for who may not have its bytes; 451 for
/// everybody while the dataset is blocked.
pub(super) async fn open(
    state: &AppState,
    reader: Reader,
    place: Place,
    file: DatasetFileId,
) -> Result<Opened, Problem> {
    let account = reader.account;
    let mut tx = tenant::read_by_index(&state.db, (account, reader.address)).await?;
    let version = read_version(&mut tx, account, place).await?;
    let found = dataset_files::find(&mut tx, version.id, file).await?;
    let file = found.ok_or_else(Problem::not_found)?;
    require_ready(&version)?;
    let is_free = version.account == account || file.entry.is_sample;
    let right = if is_free {
        if let Some(takedown) = datasets::blocked_by(&mut tx, place.0).await? {
            return Err(blocked(takedown));
        }
        None
    } else {
        Some(require_right(state, &mut tx, account, place).await?)
    };
    Ok(Opened {
        tx,
        version,
        file,
        right,
    })
}

/// The right by which the account reads the version.
async fn require_right(
    state: &AppState,
    connection: &mut PgConnection,
    account: AccountId,
    place: Place,
) -> Result<Entitlement, Problem> {
    let standing = entitlements::standing(connection, account, place, state.now()).await?;
    let offers = || format!("its offers are at /v1/datasets/{}/offers", place.0);
    match standing {
        Standing::Blocked(takedown) => Err(blocked(takedown)),
        Standing::Active(right) => Ok(right),
        Standing::ComputeOnly => Err(Problem::new(
            StatusCode::FORBIDDEN,
            "compute_only",
            "The account may compute on the dataset, and not read it",
        )),
        Standing::Expired(at) => Err(Problem::new(
            StatusCode::GONE,
            "entitlement_expired",
            "The right to these bytes is over",
        )
        .detail(format!(
            "since {}; {}",
            at.format(&Rfc3339)
                .expect("times of the service are within the calendar"),
            offers()
        ))),
        Standing::TakenBack | Standing::None => {
            if entitlements::is_on_sale(connection, place).await? {
                return Err(Problem::new(
                    StatusCode::PAYMENT_REQUIRED,
                    "payment_required",
                    "The account has no right to these bytes yet",
                )
                .detail(offers()));
            }
            Err(not_entitled())
        }
    }
}

fn not_entitled() -> Problem {
    Problem::new(
        StatusCode::FORBIDDEN,
        "not_entitled",
        "The account has no right to these bytes",
    )
}

/// The purchase that the first byte makes final.
fn open_purchase(right: &Entitlement) -> Option<PurchaseId> {
    right.purchase.filter(|_| right.is_open)
}

/// Notes what is about to be handed out, and makes the sale final by which it is. Nothing leaves before that is committed.
async fn before_first_byte(
    state: &AppState,
    right: Option<&Entitlement>,
    served: &Served,
) -> Result<(), Problem> {
    let now = state.now();
    let mut tx = tenant::begin_for_everybody(&state.db).await?;
    if let Some(open) = right.and_then(open_purchase) {
        purchases::make_final(&mut tx, open, now)
            .await
            .map_err(|error| match error {
                // It was given back in this moment.
                EndError::NotOpen(_) => not_entitled(),
                error => Problem::internal(&error),
            })?;
        dataset_servings::begin(&mut tx, open, now).await?;
    }
    dataset_servings::write(&mut tx, served, now).await?;
    Ok(tx.commit().await?)
}

/// What is told where the first piece cannot be read, or the key that opens it. Where that is for good, and nothing of the purchase was ever handed
/// out, the price goes back.
async fn cannot_serve(
    state: &AppState,
    right: Option<&Entitlement>,
    (error, is_damage): (&(dyn Error + Send + Sync + 'static), bool),
) -> Problem {
    let open = right.and_then(open_purchase);
    let (Some(open), true) = (open, is_damage) else {
        return Problem::internal(error);
    };
    match give_back(state, open).await {
        Ok(true) => availability::unavailable().detail(format!("{open} is refunded")),
        Ok(false) => Problem::internal(error),
        Err(problem) => problem,
    }
}

/// Refunds a purchase that is not final and of which nothing was handed out; says whether it did.
async fn give_back(state: &AppState, id: PurchaseId) -> Result<bool, Problem> {
    let mut tx = state.db.begin().await?;
    let locked = purchases::lock(&mut tx, id).await?;
    let open = locked.filter(|it| it.state == PurchaseState::Granted);
    let Some(purchase) = open else {
        return Ok(false);
    };
    match purchases::refund(&mut tx, &purchase, "it could not be served", state.now()).await {
        Ok(()) => {}
        Err(EndError::Served) => return Ok(false),
        Err(error) => return Err(Problem::internal(&error)),
    }
    tx.commit().await?;
    tracing::warn!(purchase.id = %purchase.id, "a purchase that could not be served is refunded");
    Ok(true)
}

/// Downloads a file of a ready version, whole or in part: one of yours, one that you have a right to, or a sample of a listed dataset. The first byte
/// of something bought makes its sale final; where that byte cannot be read, the price goes back. `HEAD` says how long it is, and reads nothing.
#[utoipa::path(
    get, path = "/v1/datasets/{dataset}/versions/{version}/files/{file}/content", tag = "datasets",
    security(("session" = []), ("api_key" = ["datasets:read"])),
    params(
        ("dataset" = String, Path), ("version" = String, Path), ("file" = String, Path),
        ("Range" = Option<String>, Header, description = "One range of bytes, such as `bytes=0-99`"),
    ),
    responses(
        (status = 200, body = Binary, content_type = "application/octet-stream", headers(("ETag" = String))),
        (status = 206, body = Binary, content_type = "application/octet-stream", headers(("Content-Range" = String))),
        (status = 304),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn get_dataset_content(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsRead>,
    Path((dataset, version, file)): Path<(DatasetId, DatasetVersionId, DatasetFileId)>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (reader, place) = (Reader::of(&caller), (dataset, version));
    if method == Method::HEAD {
        let opened = open(&state, reader, place, file).await?;
        return Ok(match opened.described().wanted(&headers)? {
            Wanted::Nothing(response) => response,
            Wanted::Range(answer) => answer.with(Body::empty()),
        });
    }
    serve(&state, reader, place, file, &headers).await
}

/// Hands out what is asked for of a file, to somebody who may have it.
pub(super) async fn serve(
    state: &AppState,
    reader: Reader,
    place: Place,
    file: DatasetFileId,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let opened = open(state, reader, place, file).await?;
    let answer = match opened.described().wanted(headers)? {
        Wanted::Nothing(response) => return Ok(response),
        Wanted::Range(answer) => answer,
    };
    let (file, right) = opened.unseal(state, &answer.range).await?;
    let served = Served {
        account: reader.account,
        dataset: place.0,
        version: place.1,
        file: file.file().id,
        purchase: right.and_then(|it| it.purchase),
        link: reader.link,
        first_byte: answer.range.start,
        bytes: answer.range.end.saturating_sub(answer.range.start),
    };
    // The first piece before the head: what is lost is told with a status, and paid by nobody. What is found to be lost later ends the answer.
    let mut pieces = Box::pin(Arc::new(file).stream(answer.range.clone()));
    let first = match pieces.try_next().await {
        Ok(first) => first,
        Err(error) => {
            let is_damage = error.is_damage();
            return Err(cannot_serve(state, right.as_ref(), (&error, is_damage)).await);
        }
    };
    before_first_byte(state, right.as_ref(), &served).await?;
    let first = stream::iter(first.map(Ok::<Piece, ReadPartError>));
    let pieces = first.chain(pieces);
    let reads = Reads {
        account: reader.account,
        place,
        needs_right: right.is_some(),
    };
    let body = Body::from_stream(while_allowed(state.clone(), reads, pieces));
    Ok(answer.with(body))
}
