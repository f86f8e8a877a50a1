//! What is listed, searched: the tables that triggers keep in step with datasets, their versions and offers.

use comptoir_domain::{
    amount::Amount,
    catalog::{Search, Sort},
    dataset::Format,
    id::{AccountId, DatasetId, DatasetVersionId},
    offer::OfferKind,
};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, types::BigDecimal};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    PgTransaction,
    codec::{to_amount, to_enum, to_numeric},
};

/// A listed dataset, as a search finds it.
#[derive(Debug, Clone)]
pub struct Item {
    /// Which.
    pub id: DatasetId,
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
    /// Why it is not recommended any more.
    pub deprecation: Option<String>,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// Its newest version that is ready.
    pub version: Newest,
    /// The cheapest price of each kind of its open offers.
    pub prices: Vec<(OfferKind, Amount)>,
    /// Where it is in the list.
    pub position: Position,
}

/// What the newest ready version of a dataset has in it.
#[derive(Debug, Clone)]
pub struct Newest {
    /// Which.
    pub id: DatasetVersionId,
    /// Its number.
    pub number: i32,
    /// Its files.
    pub files: i32,
    /// Their bytes.
    pub bytes: u64,
    /// Rows of all its tables; `None`: it has none.
    pub rows: Option<u64>,
    /// What its files are, each once.
    pub formats: Vec<Format>,
}

/// A place in a list: what it is sorted by, and the dataset where that is equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    id: DatasetId,
    rank: Option<i32>,
    price: Option<Amount>,
}

struct Row {
    dataset_id: Uuid,
    account_id: Uuid,
    name: String,
    title: String,
    licence: String,
    tags: Vec<String>,
    deprecation: Option<String>,
    created_at: OffsetDateTime,
    version_id: Uuid,
    number: i32,
    files: i32,
    bytes: i64,
    rows: Option<i64>,
    formats: Vec<String>,
    rank: Option<i32>,
    price_base: Option<BigDecimal>,
}

/// One statement: how a sort finds a page's datasets that pass all filters, and what is shown of these. In one, so that nothing goes missing
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
                       SELECT FROM catalog_prices o WHERE o.dataset_id = c.dataset_id AND o.kind = $8 AND o.asset_id = $10
                         AND o.counts_from <= $11 AND o.counts_until > $11 AND ($9::numeric IS NULL OR o.price_base <= $9)))
                   AND " + $after + " ORDER BY " + $order + " LIMIT $13)
               SELECT found.dataset_id, d.account_id, d.name, d.title, d.licence, d.tags, d.deprecation, d.created_at, c.version_id, c.number,
                   c.files, c.bytes, c.rows, c.formats, found.rank AS \"rank?\", found.price_base AS \"price_base?\"
               FROM found JOIN catalog c USING (dataset_id) JOIN datasets d USING (dataset_id) ORDER BY " + $order,
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
            $before.map(|it| it.id.0),
            $limit
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
                "SELECT c.dataset_id, NULL::integer AS rank, NULL::numeric AS price_base FROM catalog c",
                "($12::uuid IS NULL OR c.dataset_id < $12)) it",
                "dataset_id DESC";
                search, asset_id, after, limit, now
            )
            .fetch_all(&mut **tx)
            .await?
        }
        Sort::Relevance => {
            page!(
                "SELECT c.dataset_id, (ts_rank(c.search, catalog_query($1)) * 1000000)::integer AS rank, NULL::numeric AS price_base
                 FROM catalog c",
                "true) it WHERE ($12::uuid IS NULL OR (rank, dataset_id) < ($14::integer, $12))",
                "rank DESC, dataset_id DESC";
                search, asset_id, after, limit, now, after.and_then(|it| it.rank)
            )
            .fetch_all(&mut **tx)
            .await?
        }
        Sort::Price => {
            page!(
                "SELECT p.dataset_id, NULL::integer AS rank, p.price_base FROM catalog_prices p JOIN catalog c USING (dataset_id)",
                "p.asset_id = $10 AND p.kind = $8 AND p.counts_from <= $11 AND p.counts_until > $11
                   AND NOT EXISTS (
                       SELECT FROM catalog_prices q WHERE q.dataset_id = p.dataset_id AND q.asset_id = $10 AND q.kind = $8
                         AND q.counts_from <= $11 AND q.counts_until > $11 AND (q.price_base, q.offer_id) < (p.price_base, p.offer_id))
                   AND ($12::uuid IS NULL OR (p.price_base, p.dataset_id) > ($14::numeric, $12))) it",
                "price_base, dataset_id";
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
    }
    Ok(items)
}

async fn add_prices(
    conn: &mut PgConnection,
    items: &mut [Item],
    asset_id: i32,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    let ids: Vec<_> = items.iter().map(|it| it.id.0).collect();
    let prices = sqlx::query!(
        r#"SELECT dataset_id, kind, min(price_base) AS "price_base!" FROM catalog_prices
           WHERE dataset_id = ANY ($1) AND asset_id = $2 AND counts_from <= $3 AND counts_until > $3
           GROUP BY dataset_id, kind ORDER BY dataset_id, kind"#,
        &ids,
        asset_id,
        now,
    )
    .fetch_all(conn)
    .await?;
    for price in prices {
        let kind = to_enum("kind", &price.kind, OfferKind::parse)?;
        let amount = to_amount("price_base", &price.price_base)?;
        let item = items.iter_mut().find(|it| it.id.0 == price.dataset_id);
        item.expect("prices of these datasets were read")
            .prices
            .push((kind, amount));
    }
    Ok(())
}

impl TryFrom<Row> for Item {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        let id = DatasetId(row.dataset_id);
        let formats = row.formats.iter();
        let price = row.price_base.as_ref();
        Ok(Self {
            id,
            seller: AccountId(row.account_id),
            name: row.name,
            title: row.title,
            licence: row.licence,
            tags: row.tags,
            deprecation: row.deprecation,
            created_at: row.created_at,
            version: Newest {
                id: DatasetVersionId(row.version_id),
                number: row.number,
                files: row.files,
                bytes: row.bytes.cast_unsigned(),
                rows: row.rows.map(i64::cast_unsigned),
                formats: formats
                    .map(|it| to_enum("formats", it, Format::parse))
                    .collect::<sqlx::Result<_>>()?,
            },
            prices: vec![],
            position: Position {
                id,
                rank: row.rank,
                price: price.map(|it| to_amount("price_base", it)).transpose()?,
            },
        })
    }
}
