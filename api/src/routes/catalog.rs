//! `/v1/catalog`: what is listed, searched.

use axum::extract::State;
use comptoir_domain::{
    amount::Amount,
    asset::Asset,
    catalog::{ItemKind, Search, Sort},
    dataset::Format,
    id::AccountId,
    offer::OfferKind,
};
use comptoir_store::{
    assets::{self, AssetError},
    catalog::{self, Item, Position, What},
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::models::ModelPriceBody;
use crate::{
    AppState, Problem,
    auth::{Caller, needs},
    money::MoneyBody,
    page::{List, Page, PageQuery},
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(search_catalog))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct CatalogFilter {
    /// Words of the title, name, tags or description: all of them, unless `or` is between them. `"…"`: one after the other; `-`: without it.
    #[param(max_length = 256)]
    q: Option<String>,
    /// What it is.
    kind: Option<ItemKind>,
    /// Tags with commas between them: it has all of them.
    #[param(example = "images,digits")]
    tags: Option<String>,
    /// The SPDX licence expression that it has, exactly.
    #[param(max_length = 200)]
    licence: Option<String>,
    /// Of datasets: a file of its newest version is of this.
    format: Option<Format>,
    /// Of datasets: its newest version has so many bytes at least.
    min_bytes: Option<u64>,
    /// Of datasets: its newest version has so many bytes at most.
    max_bytes: Option<u64>,
    /// Of datasets: it has an open offer of this kind.
    offer: Option<OfferKind>,
    /// The cheapest of these offers costs so many base units at most: of the purchase, of a second, of a period, or of a job.
    #[param(value_type = Option<String>)]
    max_price: Option<Amount>,
    /// Whose it is.
    #[param(value_type = Option<String>)]
    seller: Option<AccountId>,
    /// What comes first; left out: `relevance` where `q` is, `newest` otherwise. `price` takes `offer`.
    sort: Option<Sort>,
}

impl CatalogFilter {
    fn search(&self) -> Result<Search, Problem> {
        let tags = self.tags.iter().flat_map(|it| it.split(','));
        let by_default = if self.q.is_some() {
            Sort::Relevance
        } else {
            Sort::Newest
        };
        let search = Search {
            kind: self.kind,
            words: self.q.clone(),
            tags: tags.map(str::to_owned).collect(),
            licence: self.licence.clone(),
            format: self.format,
            bytes_min: self.min_bytes,
            bytes_max: self.max_bytes,
            offer: self.offer,
            price_max: self.max_price,
            seller: self.seller,
            sort: self.sort.unwrap_or(by_default),
        };
        match search.refusals().first() {
            Some((name, why)) => Err(Problem::bad_parameter(name, *why)),
            None => Ok(search),
        }
    }
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum CatalogItemObject {
    CatalogItem,
}

/// The newest version, of a dataset of those that are ready.
#[derive(Serialize, ToSchema)]
struct CatalogVersion {
    id: String,
    number: i32,
    /// Its files; `null` of a model.
    #[schema(required = true)]
    files: Option<i32>,
    /// Their bytes; `null` of a model.
    #[schema(required = true)]
    bytes: Option<u64>,
    /// Rows of all its tables; `null`: it has none.
    #[schema(required = true)]
    rows: Option<u64>,
    /// What its files are, each once; `null` of a model.
    #[schema(required = true)]
    formats: Option<Vec<Format>>,
}

/// What the cheapest open offer of a kind costs now.
#[derive(Serialize, ToSchema)]
struct CatalogPrice {
    kind: OfferKind,
    /// Of the purchase (`buy`), of a second (`rent`), of a period (`subscribe`), of a job (`compute_only`).
    price: MoneyBody,
}

/// A listed dataset, or a public model.
#[derive(Serialize, ToSchema)]
#[schema(as = CatalogItem)]
struct CatalogItemBody {
    #[schema(example = "ds_01h455vb4pex5vsknk084sn02q")]
    id: String,
    object: CatalogItemObject,
    kind: ItemKind,
    #[schema(value_type = String)]
    seller: AccountId,
    name: String,
    title: String,
    /// An SPDX licence expression.
    licence: String,
    tags: Vec<String>,
    /// Why it, or the newest version of a model, is not recommended any more; `null` while it is.
    #[schema(required = true)]
    deprecation: Option<String>,
    version: CatalogVersion,
    /// One for each kind of a dataset's open offers.
    prices: Vec<CatalogPrice>,
    /// What calls of a model cost now; `null` of a dataset.
    #[schema(required = true)]
    call_price: Option<ModelPriceBody>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

impl CatalogItemBody {
    fn new(item: Item, asset: Option<&Asset>) -> Self {
        let (kind, id, version, prices, call_price) = match item.what {
            What::Dataset {
                id,
                version,
                contents,
                prices,
            } => {
                let version = CatalogVersion {
                    id: version.to_string(),
                    number: item.number,
                    files: Some(contents.files),
                    bytes: Some(contents.bytes),
                    rows: contents.rows,
                    formats: Some(contents.formats),
                };
                (ItemKind::Dataset, id.to_string(), version, prices, None)
            }
            What::Model { id, version, price } => {
                let version = CatalogVersion {
                    id: version.to_string(),
                    number: item.number,
                    files: None,
                    bytes: None,
                    rows: None,
                    formats: None,
                };
                (ItemKind::Model, id.to_string(), version, vec![], price)
            }
        };
        let prices = prices.into_iter().zip(asset.into_iter().cycle());
        Self {
            id,
            object: CatalogItemObject::CatalogItem,
            kind,
            seller: item.seller,
            name: item.name,
            title: item.title,
            licence: item.licence,
            tags: item.tags,
            deprecation: item.deprecation,
            version,
            prices: prices
                .map(|((kind, amount), asset)| CatalogPrice {
                    kind,
                    price: MoneyBody::new(amount, asset),
                })
                .collect(),
            call_price: call_price
                .zip(asset)
                .map(|(price, asset)| ModelPriceBody::new(*price, asset)),
            created_at: item.created_at,
        }
    }
}

/// Searches what is listed: datasets and public models. A cursor is of one search: with other parameters it is refused.
#[utoipa::path(
    get, path = "/v1/catalog", tag = "market", security(("session" = []), ("api_key" = ["datasets:read"])),
    params(CatalogFilter, PageQuery),
    responses(
        (status = 200, body = Page<CatalogItemBody>),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn search_catalog(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsRead>,
    list: List<CatalogFilter>,
) -> Result<Page<CatalogItemBody>, Problem> {
    let search = list.filter.search()?;
    let after: Option<Position> = list.position(&state, &caller)?;
    let mut tx = caller.read(&state).await?;
    // Where no token is registered, nothing has a price, and all else can be found.
    let asset = match assets::current(&mut tx).await {
        Ok(asset) => Some(asset),
        Err(AssetError::NoneRegistered) => None,
        Err(error) => return Err(Problem::internal(&error)),
    };
    let (asset_id, now) = (asset.as_ref().map(|it| it.id), state.now());
    let rows = catalog::search(&mut tx, &search, asset_id, after, list.fetch(), now).await?;
    let body = |item| CatalogItemBody::new(item, asset.as_ref());
    Ok(list.page(&state, &caller, rows, |item| item.position, body))
}
