//! Binding prices, each for one job of one account; and what archives were found to be.

use comptoir_domain::{
    amount::Amount,
    atto::Atto,
    digest::Sha256,
    fit::{FACTS_VERSION, ProgramFacts},
    id::{AccountId, QuoteId},
    job::{Device, JobSpec, Tier},
    price::Meter,
};
use sqlx::{PgConnection, types::BigDecimal};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    codec::{to_amount, to_digest, to_document, to_enum, to_numeric, to_wide, wide_to_numeric},
    dataset_inputs::{self, QuotedData},
};

/// A quote to be made.
#[derive(Debug, Clone)]
pub struct NewQuote {
    /// For whom.
    pub account: AccountId,
    /// Row of `assets`.
    pub asset_id: i32,
    /// What is to be computed.
    pub spec: JobSpec,
    /// How the result is verified.
    pub tier: Tier,
    /// What it runs on.
    pub device: Device,
    /// The terms of the price.
    pub meter: Meter,
    /// Row of `price_versions`.
    pub price_version: i32,
    /// The exact price of all replicas.
    pub amount: Atto,
    /// The dataset that the job reads, if it does, and what that costs.
    pub data: Option<QuotedData>,
    /// Memory that a worker must offer.
    pub min_memory_bytes: u64,
    /// Until when it binds.
    pub expires_at: OffsetDateTime,
}

/// A quote.
#[derive(Debug, Clone, PartialEq)]
pub struct Quote {
    /// Its identifier.
    pub id: QuoteId,
    /// Row of `assets`.
    pub asset_id: i32,
    /// What is to be computed.
    pub spec: JobSpec,
    /// The digest of the specification in canonical form: the `inputHash` of a receipt.
    pub spec_sha256: Sha256,
    /// How the result is verified.
    pub tier: Tier,
    /// What it runs on.
    pub device: Device,
    /// The terms of the price.
    pub meter: Meter,
    /// Row of `price_versions`.
    pub price_version: i32,
    /// The exact price of all replicas.
    pub amount: Atto,
    /// The dataset that the job reads, if it does, and what that costs.
    pub data: Option<QuotedData>,
    /// The exact price in whole base units, rounded up, and the dataset's: never more is charged.
    pub hold: Amount,
    /// Memory that a worker must offer.
    pub min_memory_bytes: u64,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// Until when it binds.
    pub expires_at: OffsetDateTime,
}

/// Why a quote was not made.
#[derive(Debug, thiserror::Error)]
pub enum QuoteError {
    /// The specification has a number that JSON cannot hold.
    #[error("hash the specification")]
    Document(#[from] serde_json::Error),
    /// The database failed.
    #[error("create a quote")]
    Database(#[from] sqlx::Error),
}

impl NewQuote {
    /// The quote that it becomes; nothing is written.
    ///
    /// # Errors
    /// When the specification has no JSON form.
    pub fn into_quote(self, now: OffsetDateTime) -> Result<Quote, serde_json::Error> {
        Ok(Quote {
            id: QuoteId::generate(),
            asset_id: self.asset_id,
            spec_sha256: Sha256::of_document(&self.spec)?,
            spec: self.spec,
            tier: self.tier,
            device: self.device,
            meter: self.meter,
            price_version: self.price_version,
            amount: self.amount,
            hold: hold(self.amount, self.data),
            data: self.data,
            min_memory_bytes: self.min_memory_bytes,
            created_at: now,
            expires_at: self.expires_at,
        })
    }
}

/// What a job holds. More than any amount is none that anybody has: the largest.
fn hold(amount: Atto, data: Option<QuotedData>) -> Amount {
    let data = data.and_then(|it| it.price).map(|it| it.price);
    let whole = amount.ceil().checked_add(data.unwrap_or(Amount::ZERO));
    whole.unwrap_or(Amount::MAX)
}

/// Makes a quote.
pub async fn create(
    conn: &mut PgConnection,
    new: NewQuote,
    now: OffsetDateTime,
) -> Result<Quote, QuoteError> {
    let account = new.account;
    let quote = new.into_quote(now)?;
    insert_all(conn, &[(account, &quote)]).await?;
    Ok(quote)
}

/// Writes quotes, each with its account.
pub(crate) async fn insert_all(
    conn: &mut PgConnection,
    quotes: &[(AccountId, &Quote)],
) -> Result<(), QuoteError> {
    let column = || quotes.iter().map(|(_, quote)| *quote);
    let specs: Result<Vec<_>, _> = column().map(|it| serde_json::to_value(&it.spec)).collect();
    let meters: Result<Vec<_>, _> = column().map(|it| serde_json::to_value(it.meter)).collect();
    let memory = column().map(|it| i64::try_from(it.min_memory_bytes).unwrap_or(i64::MAX));
    sqlx::query!(
        "INSERT INTO quotes (quote_id, account_id, asset_id, spec, spec_sha256, tier, device, meter, madds,
             price_version_id, amount_atto, hold_base, min_memory_bytes, created_at, expires_at)
         SELECT * FROM UNNEST($1::uuid[], $2::uuid[], $3::integer[], $4::jsonb[], $5::bytea[], $6::text[], $7::text[],
             $8::jsonb[], $9::numeric[], $10::integer[], $11::numeric[], $12::numeric[], $13::bigint[],
             $14::timestamptz[], $15::timestamptz[])",
        &column().map(|it| it.id.0).collect::<Vec<_>>(),
        &quotes.iter().map(|(account, _)| account.0).collect::<Vec<_>>(),
        &column().map(|it| it.asset_id).collect::<Vec<_>>(),
        &specs?,
        &column().map(|it| it.spec_sha256.0.to_vec()).collect::<Vec<_>>(),
        &column().map(|it| it.tier.as_str().to_owned()).collect::<Vec<_>>(),
        &column().map(|it| it.device.as_str().to_owned()).collect::<Vec<_>>(),
        &meters?,
        &column().map(|it| BigDecimal::from(it.meter.madds())).collect::<Vec<_>>(),
        &column().map(|it| it.price_version).collect::<Vec<_>>(),
        &column().map(|it| wide_to_numeric(it.amount.atto())).collect::<Vec<_>>(),
        &column().map(|it| to_numeric(it.hold)).collect::<Vec<_>>(),
        &memory.collect::<Vec<_>>(),
        &column().map(|it| it.created_at).collect::<Vec<_>>(),
        &column().map(|it| it.expires_at).collect::<Vec<_>>(),
    )
    .execute(&mut *conn)
    .await?;
    let quotes: Vec<&Quote> = column().collect();
    Ok(dataset_inputs::insert_all(conn, &quotes).await?)
}

struct Row {
    account_id: Uuid,
    quote_id: Uuid,
    asset_id: i32,
    spec: serde_json::Value,
    spec_sha256: Vec<u8>,
    tier: String,
    device: String,
    meter: serde_json::Value,
    price_version_id: i32,
    amount_atto: BigDecimal,
    hold_base: BigDecimal,
    min_memory_bytes: i64,
    created_at: OffsetDateTime,
    expires_at: OffsetDateTime,
    used: bool,
}

/// The account's quote of this identifier.
pub async fn find(
    conn: &mut PgConnection,
    account: AccountId,
    quote: QuoteId,
) -> sqlx::Result<Option<Quote>> {
    let found = find_all(conn, &[(account, quote)]).await?;
    Ok(found.into_iter().next().map(|(_, quote, _)| quote))
}

/// Those quotes that are their account's, each with whose it is and whether a job was made from it.
pub(crate) async fn find_all(
    conn: &mut PgConnection,
    wanted: &[(AccountId, QuoteId)],
) -> sqlx::Result<Vec<(AccountId, Quote, bool)>> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let (accounts, ids): (Vec<_>, Vec<_>) = wanted
        .iter()
        .map(|(account, quote)| (account.0, quote.0))
        .unzip();
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT account_id AS "account_id!", quote_id AS "quote_id!", asset_id, spec, spec_sha256, tier, device, meter, price_version_id, amount_atto, hold_base,
             min_memory_bytes, created_at, expires_at,
             EXISTS (SELECT FROM jobs WHERE jobs.quote_id = quotes.quote_id) AS "used!"
           FROM UNNEST($1::uuid[], $2::uuid[]) AS it (account_id, quote_id) JOIN quotes USING (account_id, quote_id)"#,
        &accounts,
        &ids,
    )
    .fetch_all(&mut *conn)
    .await?;
    let ids: Vec<_> = rows.iter().map(|row| row.quote_id).collect();
    let mut data = dataset_inputs::quoted(conn, &ids).await?;
    rows.into_iter()
        .map(|row| {
            let (account, used) = (AccountId(row.account_id), row.used);
            let data = data.remove(&QuoteId(row.quote_id));
            Ok((account, row.into_quote(data)?, used))
        })
        .collect()
}

impl Row {
    fn into_quote(self, data: Option<QuotedData>) -> sqlx::Result<Quote> {
        let amount = Atto::from_atto(to_wide("amount_atto", &self.amount_atto)?);
        Ok(Quote {
            id: QuoteId(self.quote_id),
            asset_id: self.asset_id,
            spec: to_document("spec", self.spec)?,
            spec_sha256: to_digest("spec_sha256", &self.spec_sha256)?,
            tier: to_enum("tier", &self.tier, Tier::parse)?,
            device: to_enum("device", &self.device, Device::parse)?,
            meter: to_document("meter", self.meter)?,
            price_version: self.price_version_id,
            amount: amount.ok_or_else(|| sqlx::Error::ColumnDecode {
                index: "amount_atto".into(),
                source: "larger than any amount".into(),
            })?,
            data,
            hold: to_amount("hold_base", &self.hold_base)?,
            min_memory_bytes: self.min_memory_bytes.unsigned_abs(),
            created_at: self.created_at,
            expires_at: self.expires_at,
        })
    }
}

/// What an archive was found to be, if it was read by the rules of this version.
pub async fn find_facts(
    conn: &mut PgConnection,
    program: Sha256,
) -> sqlx::Result<Option<ProgramFacts>> {
    let facts = sqlx::query_scalar!(
        "SELECT facts FROM programs WHERE sha256 = $1 AND facts_version = $2",
        &program.0,
        FACTS_VERSION,
    )
    .fetch_optional(conn)
    .await?;
    facts.map(|facts| to_document("facts", facts)).transpose()
}

/// Keeps what an archive was found to be. The same archive has the same facts: keeping them again changes nothing.
pub async fn keep_facts(
    conn: &mut PgConnection,
    program: Sha256,
    facts: &ProgramFacts,
    now: OffsetDateTime,
) -> Result<(), QuoteError> {
    sqlx::query!(
        "INSERT INTO programs (sha256, facts_version, facts, created_at) VALUES ($1, $2, $3, $4)
         ON CONFLICT (sha256, facts_version) DO NOTHING",
        &program.0,
        FACTS_VERSION,
        serde_json::to_value(facts)?,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}
