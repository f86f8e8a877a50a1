//! What is listed, searched: the tables that triggers keep in step with datasets, their versions and offers, and with public models.

use std::collections::HashMap;

use comptoir_domain::{
    amount::Amount,
    catalog::{ItemKind, Search, Sort},
    dataset::Format,
    id::{AccountId, DatasetId, DatasetVersionId, ModelId, ModelVersionId},
    offer::OfferKind,
};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, types::BigDecimal};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    PgTransaction,
    codec::{to_amount, to_enum, to_numeric},
    model_prices::{self, ModelPrice},
};

/// A listed dataset or a public model, as a search finds it.
#[derive(Debug, Clone)]
pub struct Item {
    /// Whose.
    pub seller: AccountId,
    /// Its name among the seller's.
    pub name: String,
    /// One line.
    pub title: String,
    /// An SPDX licence expression.
    pub licence: String,
    /// Words to find it by.
    pub tags: Vec<String>,
    /// Why it, or the newest version of a model, is not recommended any more.
    pub deprecation: Option<String>,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// The number of its newest version, of a dataset of those that are ready.
    pub number: i32,
    /// What it is.
    pub what: What,
    /// Where it is in the list.
    pub position: Position,
}

/// What is listed.
#[derive(Debug, Clone)]
pub enum What {
    /// A dataset.
    Dataset {
        /// Which.
        id: DatasetId,
        /// Its newest version that is ready.
        version: DatasetVersionId,
        /// What that has in it.
        contents: Contents,
        /// The cheapest price of each kind of its open offers.
        prices: Vec<(OfferKind, Amount)>,
    },
    /// A model.
    Model {
        /// Which.
        id: ModelId,
        /// Its newest version.
        version: ModelVersionId,
        /// What calls of it cost.
        price: Option<Box<ModelPrice>>,
    },
}

/// What a version of a dataset has in it.
#[derive(Debug, Clone)]
pub struct Contents {
    /// Its files.
    pub files: i32,
    /// Their bytes.
    pub bytes: u64,
    /// Rows of all its tables; `None`: it has none.
    pub rows: Option<u64>,
    /// What its files are, each once.
    pub formats: Vec<Format>,
}

/// A place in a list: what it is sorted by, and the item where that is equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    id: Uuid,
    rank: Option<i32>,
    price: Option<Amount>,
}

struct Row {
    item_id: Uuid,
    kind: String,
    account_id: Uuid,
    name: String,
    title: String,
    licence: String,
    tags: Vec<String>,
    deprecation: Option<String>,
    created_at: OffsetDateTime,
    version_id: Uuid,
    number: i32,
    files: Option<i32>,
    bytes: Option<i64>,
    rows: Option<i64>,
    formats: Option<Vec<String>>,
    rank: Option<i32>,
    price_base: Option<BigDecimal>,
}

/// One statement: how a sort finds a page's items that pass all filters, and what is shown of these. In one, so that nothing goes missing
/// between the two.
macro_rules! page {
    ($find:tt, $after:tt, $order:tt; $search:expr, $asset:expr, $before:expr, $limit:expr, $now:expr $(, $key:expr)?) => {
        sqlx::query_as!(
            Row,
            "WITH found AS MATERIALIZED (SELECT * FROM (" + $find + " WHERE ($1::text IS NULL OR c.search @@ catalog_query($1))
                   AND ($2::text[] = '{}' OR c.tags @> $2) AND ($3::text IS NULL OR c.licence = $3)
                   AND ($4::text IS NULL OR $4 = ANY (c.formats))
                   AND ($5::bigint IS NULL OR c.bytes >= $5) AND ($6::bigint IS NULL OR c.bytes <= $6)
                   AND ($7::uuid IS NULL OR c.account_id = $7)
                   AND ($8::text IS NULL OR EXISTS (
                       SELECT FROM catalog_prices o WHERE o.item_id = c.item_id AND o.kind = $8 AND o.asset_id = $10
                         AND o.counts_from <= $11 AND o.counts_until > $11 AND ($9::numeric IS NULL OR o.price_base <= $9)))
                   AND ($14::text IS NULL OR c.kind = $14)
                   AND " + $after + " ORDER BY " + $order + " LIMIT $13)
               SELECT c.item_id, c.kind, c.account_id, c.name, c.title, c.licence, c.tags, c.deprecation, c.created_at, c.version_id, c.number,
                   c.files, c.bytes, c.rows, c.formats, found.rank AS \"rank?\", found.price_base AS \"price_base?\"
               FROM found JOIN catalog c USING (item_id) ORDER BY " + $order,
            $search.words,
            &$search.tags,
            $search.licence,
            $search.format.map(Format::as_str),
            $search.bytes_min.map(u64::cast_signed),
            $search.bytes_max.map(u64::cast_signed),
            $search.seller.map(|it| it.0),
            $search.offer.map(OfferKind::as_str),
            $search.price_max.map(to_numeric),
            $asset,
            $now,
            $before.map(|it| it.id),
            $limit,
            $search.kind.map(ItemKind::as_str)
            $(, $key)?
        )
    };
}

/// What is listed and fits a search, after a place in the list; prices are as of `now`, in this asset.
///
/// # Errors
/// When a statement fails, or what is stored is not known.
pub async fn search(
    tx: &mut PgTransaction<'_>,
    search: &Search,
    asset_id: Option<i32>,
    after: Option<Position>,
    limit: i64,
    now: OffsetDateTime,
) -> sqlx::Result<Vec<Item>> {
    // Which index finds it depends on what is asked.
    sqlx::query!("SELECT set_config('plan_cache_mode', 'force_custom_plan', true)")
        .fetch_one(&mut **tx)
        .await?;
    let rows = match search.sort {
        Sort::Newest => {
            page!(
                "SELECT c.item_id, NULL::integer AS rank, NULL::numeric AS price_base FROM catalog c",
                "($12::uuid IS NULL OR c.item_id < $12)) it",
                "item_id DESC";
                search, asset_id, after, limit, now
            )
            .fetch_all(&mut **tx)
            .await?
        }
        Sort::Relevance => {
            page!(
                "SELECT c.item_id, (ts_rank(c.search, catalog_query($1)) * 1000000)::integer AS rank, NULL::numeric AS price_base
                 FROM catalog c",
                "true) it WHERE ($12::uuid IS NULL OR (rank, item_id) < ($15::integer, $12))",
                "rank DESC, item_id DESC";
                search, asset_id, after, limit, now, after.and_then(|it| it.rank)
            )
            .fetch_all(&mut **tx)
            .await?
        }
        Sort::Price => {
            page!(
                "SELECT p.item_id, NULL::integer AS rank, p.price_base FROM catalog_prices p JOIN catalog c USING (item_id)",
                "p.asset_id = $10 AND p.kind = $8 AND p.counts_from <= $11 AND p.counts_until > $11
                   AND NOT EXISTS (
                       SELECT FROM catalog_prices q WHERE q.item_id = p.item_id AND q.asset_id = $10 AND q.kind = $8
                         AND q.counts_from <= $11 AND q.counts_until > $11 AND (q.price_base, q.offer_id) < (p.price_base, p.offer_id))
                   AND ($12::uuid IS NULL OR (p.price_base, p.item_id) > ($15::numeric, $12))) it",
                "price_base, item_id";
                search, asset_id, after, limit, now, after.and_then(|it| it.price).map(to_numeric)
            )
            .fetch_all(&mut **tx)
            .await?
        }
    };
    let mut items = rows
        .into_iter()
        .map(Item::try_from)
        .collect::<sqlx::Result<Vec<_>>>()?;
    if let Some(asset_id) = asset_id {
        add_prices(tx, &mut items, asset_id, now).await?;
        add_tariffs(tx, &mut items, now).await?;
    }
    Ok(items)
}

/// What the cheapest offers of datasets cost.
async fn add_prices(
    conn: &mut PgConnection,
    items: &mut [Item],
    asset_id: i32,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    let mut datasets = HashMap::new();
    for item in items {
        if let What::Dataset { id, prices, .. } = &mut item.what {
            datasets.insert(id.0, prices);
        }
    }
    let ids: Vec<_> = datasets.keys().copied().collect();
    let found = sqlx::query!(
        r#"SELECT item_id, kind, min(price_base) AS "price_base!" FROM catalog_prices
           WHERE item_id = ANY ($1) AND asset_id = $2 AND counts_from <= $3 AND counts_until > $3
           GROUP BY item_id, kind ORDER BY item_id, kind"#,
        &ids,
        asset_id,
        now,
    )
    .fetch_all(conn)
    .await?;
    for price in found {
        let kind = to_enum("kind", &price.kind, OfferKind::parse)?;
        let amount = to_amount("price_base", &price.price_base)?;
        if let Some(prices) = datasets.get_mut(&price.item_id) {
            prices.push((kind, amount));
        }
    }
    Ok(())
}

/// What calls of models cost.
async fn add_tariffs(
    conn: &mut PgConnection,
    items: &mut [Item],
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    let mut models = HashMap::new();
    for item in items {
        if let What::Model { id, price, .. } = &mut item.what {
            models.insert(*id, price);
        }
    }
    let ids: Vec<_> = models.keys().copied().collect();
    for found in model_prices::current_of(conn, &ids, now).await? {
        if let Some(price) = models.get_mut(&found.model) {
            **price = Some(Box::new(found));
        }
    }
    Ok(())
}

impl TryFrom<Row> for Item {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        let price = row.price_base.as_ref();
        let price = price.map(|it| to_amount("price_base", it)).transpose()?;
        let what = match to_enum("kind", &row.kind, ItemKind::parse)? {
            ItemKind::Dataset => What::Dataset {
                id: DatasetId(row.item_id),
                version: DatasetVersionId(row.version_id),
                contents: Contents {
                    files: row.files.unwrap_or_default(),
                    bytes: row.bytes.unwrap_or_default().cast_unsigned(),
                    rows: row.rows.map(i64::cast_unsigned),
                    formats: row
                        .formats
                        .iter()
                        .flatten()
                        .map(|it| to_enum("formats", it, Format::parse))
                        .collect::<sqlx::Result<_>>()?,
                },
                prices: vec![],
            },
            ItemKind::Model => What::Model {
                id: ModelId(row.item_id),
                version: ModelVersionId(row.version_id),
                price: None,
            },
        };
        Ok(Self {
            seller: AccountId(row.account_id),
            name: row.name,
            title: row.title,
            licence: row.licence,
            tags: row.tags,
            deprecation: row.deprecation,
            created_at: row.created_at,
            number: row.number,
            what,
            position: Position {
                id: row.item_id,
                rank: row.rank,
                price,
            },
        })
    }
}
