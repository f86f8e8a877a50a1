//! Writing events: a group of them in a few statements, each counted once.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use alloy_primitives::Address;
use comptoir_domain::{
    atto::Atto,
    id::{AccountId, AllowanceId, ApiKeyId, ModelId, ModelVersionId, UsageWindowId},
    model::Usage,
    usage::{self, Counted},
};
use sqlx::{PgConnection, types::BigDecimal};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{UsageEvent, windows::to_madds};
use crate::{
    PgTransaction,
    codec::{to_amount, to_atto, wide_to_numeric},
    model_prices::{self, ModelPrice},
};

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recorded {
    /// It is free.
    Free,
    /// It is charged with the others of a window.
    In(UsageWindowId),
    /// It was not taken.
    Refused,
}

/// Writes the events of a group, and adds each to its window and its allowance. An event is refused where its allowance is closed, unknown, somebody
/// else's or used up, or where it does not cost what its price says. The same call is taken once; saying so again, with the same content, changes
/// nothing. The transaction must be one that sees everybody.
///
/// # Errors
/// When a statement fails: then none is taken.
pub async fn record(
    tx: &mut PgTransaction<'_>,
    events: &[UsageEvent],
) -> sqlx::Result<Vec<Recorded>> {
    let budgets = lock(tx, events).await?;
    let windows = windows(tx, events, &budgets).await?;
    let mut known = HashMap::new();
    let mut chosen = choose(events, &budgets, &windows, &known);
    if chosen.len() < events.len() {
        // What was taken before draws nothing again.
        known = stored(tx, events).await?;
        chosen = choose(events, &budgets, &windows, &known);
    }
    let mut fresh = insert(tx, &chosen).await?;
    count(tx, &chosen, &fresh).await?;
    if fresh.len() < chosen.len() {
        known.extend(stored(tx, events).await?);
    }
    let chosen: HashMap<_, _> = chosen
        .into_iter()
        .map(|(it, window)| (it.call.0, window))
        .collect();
    let outcome = |event: &UsageEvent| {
        let call = event.call.0;
        if fresh.remove(&call) {
            return Recorded::of(chosen.get(&call).copied().flatten());
        }
        let before = known.get(&call);
        let same = before.filter(|(_, content)| *content == Content::of(event));
        same.map_or(Recorded::Refused, |(window, _)| Recorded::of(*window))
    };
    Ok(events.iter().map(outcome).collect())
}

impl Recorded {
    fn of(window: Option<UsageWindowId>) -> Self {
        window.map_or(Self::Free, Self::In)
    }
}

/// What was stored of a call, and the window that it is in.
type Known = (Option<UsageWindowId>, Content);

/// What is left of an open allowance. Its row is locked.
struct Budget {
    account: AccountId,
    key: Option<ApiKeyId>,
    asset_id: i32,
    amount: Atto,
    drawn: Atto,
}

async fn lock(
    tx: &mut PgTransaction<'_>,
    events: &[UsageEvent],
) -> sqlx::Result<HashMap<AllowanceId, Budget>> {
    let ids: BTreeSet<_> = events.iter().filter_map(|it| it.allowance).collect();
    let ids: Vec<_> = ids.into_iter().map(|it| it.0).collect();
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = sqlx::query!(
        "SELECT allowance_id, account_id, api_key_id, asset_id, amount_base, drawn_atto FROM allowances
         WHERE allowance_id = ANY ($1) AND closed_at IS NULL ORDER BY allowance_id FOR NO KEY UPDATE",
        &ids,
    )
    .fetch_all(&mut **tx)
    .await?;
    rows.into_iter()
        .map(|row| {
            let budget = Budget {
                account: AccountId(row.account_id),
                key: row.api_key_id.map(ApiKeyId),
                asset_id: row.asset_id,
                amount: Atto::from_base(to_amount("amount_base", &row.amount_base)?),
                drawn: to_atto("drawn_atto", &row.drawn_atto)?,
            };
            Ok((AllowanceId(row.allowance_id), budget))
        })
        .collect()
}

/// What makes calls be charged together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct WindowKey {
    allowance: AllowanceId,
    model: ModelId,
    version: ModelVersionId,
    price: i32,
    worker_owner: Address,
}

impl WindowKey {
    fn of(event: &UsageEvent) -> Option<Self> {
        Some(Self {
            allowance: event.allowance?,
            model: event.model,
            version: event.version,
            price: event.price,
            worker_owner: event.worker_owner,
        })
    }
}

struct Window {
    id: UsageWindowId,
    price: ModelPrice,
}

/// The windows of events whose allowances are open. Those that are missing are opened; there is none where version, price and allowance do not fit.
async fn windows(
    conn: &mut PgConnection,
    events: &[UsageEvent],
    budgets: &HashMap<AllowanceId, Budget>,
) -> sqlx::Result<HashMap<WindowKey, Window>> {
    let open = |it: &&UsageEvent| it.allowance.is_some_and(|id| budgets.contains_key(&id));
    let mut wanted: BTreeMap<WindowKey, OffsetDateTime> = BTreeMap::new();
    for event in events.iter().filter(open) {
        if let Some(key) = WindowKey::of(event).filter(|it| !it.worker_owner.is_zero()) {
            let from = wanted.entry(key).or_insert(event.at);
            *from = event.at.min(*from);
        }
    }
    let mut found = find_windows(conn, wanted.keys()).await?;
    let missing: Vec<_> = wanted
        .iter()
        .filter(|(key, _)| !found.contains_key(key))
        .collect();
    if !missing.is_empty() {
        open_windows(conn, &missing).await?;
        let missing = missing.into_iter().map(|(key, _)| key);
        found.extend(find_windows(conn, missing).await?);
    }
    let streams: BTreeSet<_> = found.keys().map(|it| (it.model, it.price)).collect();
    let streams: Vec<_> = streams.into_iter().collect();
    let prices = model_prices::find_all(conn, &streams).await?;
    let prices: HashMap<_, _> = prices
        .into_iter()
        .map(|it| ((it.model, it.number), it))
        .collect();
    let windows = found.into_iter().filter_map(|(key, id)| {
        let price = prices.get(&(key.model, key.price))?.clone();
        Some((key, Window { id, price }))
    });
    Ok(windows.collect())
}

async fn find_windows(
    conn: &mut PgConnection,
    keys: impl Iterator<Item = &WindowKey>,
) -> sqlx::Result<HashMap<WindowKey, UsageWindowId>> {
    let keys: Vec<_> = keys.copied().collect();
    let allowances: Vec<_> = keys.iter().map(|it| it.allowance.0).collect();
    let models: Vec<_> = keys.iter().map(|it| it.model.0).collect();
    let versions: Vec<_> = keys.iter().map(|it| it.version.0).collect();
    let prices: Vec<_> = keys.iter().map(|it| it.price).collect();
    let owners: Vec<_> = keys.iter().map(|it| it.worker_owner.to_vec()).collect();
    let rows = sqlx::query!(
        r#"SELECT it.place AS "place!", w.window_id
           FROM UNNEST($1::uuid[], $2::uuid[], $3::uuid[], $4::integer[], $5::bytea[]) WITH ORDINALITY
               AS it (allowance, model, version, price, worker_owner, place)
           JOIN usage_windows w ON w.allowance_id = it.allowance AND w.model_id = it.model AND w.version_id = it.version
               AND w.price_number = it.price AND w.worker_owner = it.worker_owner"#,
        &allowances,
        &models,
        &versions,
        &prices,
        &owners,
    )
    .fetch_all(conn)
    .await?;
    let found = rows.into_iter().filter_map(|row| {
        let key = crate::codec::at(&keys, row.place)?;
        Some((*key, UsageWindowId(row.window_id)))
    });
    Ok(found.collect())
}

async fn open_windows(
    conn: &mut PgConnection,
    missing: &[(&WindowKey, &OffsetDateTime)],
) -> sqlx::Result<()> {
    let ids: Vec<_> = missing
        .iter()
        .map(|_| UsageWindowId::generate().0)
        .collect();
    let allowances: Vec<_> = missing.iter().map(|(it, _)| it.allowance.0).collect();
    let models: Vec<_> = missing.iter().map(|(it, _)| it.model.0).collect();
    let versions: Vec<_> = missing.iter().map(|(it, _)| it.version.0).collect();
    let prices: Vec<_> = missing.iter().map(|(it, _)| it.price).collect();
    let owners: Vec<_> = missing
        .iter()
        .map(|(it, _)| it.worker_owner.to_vec())
        .collect();
    let times: Vec<_> = missing.iter().map(|(_, from)| **from).collect();
    sqlx::query!(
        "INSERT INTO usage_windows (window_id, allowance_id, account_id, model_id, version_id, price_number, worker_owner, opened_at)
         SELECT it.id, it.allowance, a.account_id, it.model, it.version, it.price, it.worker_owner, it.opened_at
         FROM UNNEST($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::integer[], $6::bytea[], $7::timestamptz[])
             AS it (id, allowance, model, version, price, worker_owner, opened_at)
         JOIN allowances a ON a.allowance_id = it.allowance
         JOIN model_versions v ON v.version_id = it.version AND v.model_id = it.model
         JOIN model_prices p ON p.model_id = it.model AND p.number = it.price AND p.asset_id = a.asset_id",
        &ids,
        &allowances,
        &models,
        &versions,
        &prices,
        &owners,
        &times,
    )
    .execute(conn)
    .await
    .map(drop)
}

/// The events that may be taken and were not before, each with its window.
fn choose<'e>(
    events: &'e [UsageEvent],
    budgets: &HashMap<AllowanceId, Budget>,
    windows: &HashMap<WindowKey, Window>,
    known: &HashMap<Uuid, Known>,
) -> Vec<(&'e UsageEvent, Option<UsageWindowId>)> {
    let mut drawn: HashMap<AllowanceId, Atto> = HashMap::new();
    let mut chosen = Vec::with_capacity(events.len());
    let fresh = events
        .iter()
        .filter(|it| usage::is_bounded(&it.usage) && !known.contains_key(&it.call.0));
    for event in fresh {
        let Some(key) = WindowKey::of(event) else {
            if event.cost == Atto::ZERO {
                chosen.push((event, None));
            }
            continue;
        };
        let (Some(budget), Some(window)) = (budgets.get(&key.allowance), windows.get(&key)) else {
            continue;
        };
        let fits = (budget.account, budget.key) == (event.account, event.key)
            && budget.asset_id == window.price.asset_id
            && window.price.tariff.cost(&event.usage) == Some(event.cost);
        let before = drawn.entry(key.allowance).or_insert(budget.drawn);
        let after = before
            .checked_add(event.cost)
            .filter(|it| *it <= budget.amount);
        if let (true, Some(after)) = (fits, after) {
            *before = after;
            chosen.push((event, Some(window.id)));
        }
    }
    chosen
}

/// Writes events: those that were not there.
async fn insert(
    conn: &mut PgConnection,
    chosen: &[(&UsageEvent, Option<UsageWindowId>)],
) -> sqlx::Result<HashSet<Uuid>> {
    let it = Columns::of(chosen);
    let fresh = sqlx::query_scalar!(
        "INSERT INTO usage_events (call_id, window_id, account_id, api_key_id, model_id, version_id, price_number, worker_id, worker_owner, rows,
             input_tokens, output_tokens, madds, cost_atto, duration_us, at)
         SELECT * FROM UNNEST($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::uuid[], $6::uuid[], $7::integer[], $8::uuid[], $9::bytea[],
             $10::bigint[], $11::bigint[], $12::bigint[], $13::numeric[], $14::numeric[], $15::bigint[], $16::timestamptz[])
         ON CONFLICT (call_id) DO NOTHING RETURNING call_id",
        &it.calls,
        &it.windows as &[Option<Uuid>],
        &it.accounts,
        &it.keys as &[Option<Uuid>],
        &it.models,
        &it.versions,
        &it.prices,
        &it.workers,
        &it.owners,
        &it.rows,
        &it.input_tokens,
        &it.output_tokens,
        &it.madds,
        &it.costs,
        &it.durations,
        &it.times,
    )
    .fetch_all(conn)
    .await?;
    Ok(fresh.into_iter().collect())
}

#[derive(Default)]
struct Columns {
    calls: Vec<Uuid>,
    windows: Vec<Option<Uuid>>,
    accounts: Vec<Uuid>,
    keys: Vec<Option<Uuid>>,
    models: Vec<Uuid>,
    versions: Vec<Uuid>,
    prices: Vec<i32>,
    workers: Vec<Uuid>,
    owners: Vec<Vec<u8>>,
    rows: Vec<i64>,
    input_tokens: Vec<i64>,
    output_tokens: Vec<i64>,
    madds: Vec<BigDecimal>,
    costs: Vec<BigDecimal>,
    durations: Vec<i64>,
    times: Vec<OffsetDateTime>,
}

impl Columns {
    fn of(chosen: &[(&UsageEvent, Option<UsageWindowId>)]) -> Self {
        let mut columns = Self::default();
        for (event, window) in chosen {
            let usage = &event.usage;
            columns.calls.push(event.call.0);
            columns.windows.push(window.map(|it| it.0));
            columns.accounts.push(event.account.0);
            columns.keys.push(event.key.map(|it| it.0));
            columns.models.push(event.model.0);
            columns.versions.push(event.version.0);
            columns.prices.push(event.price);
            columns.workers.push(event.worker.0);
            columns.owners.push(event.worker_owner.to_vec());
            columns.rows.push(usage.rows.cast_signed());
            columns.input_tokens.push(usage.input_tokens.cast_signed());
            columns
                .output_tokens
                .push(usage.output_tokens.cast_signed());
            columns.madds.push(BigDecimal::from(usage.madds));
            columns.costs.push(wide_to_numeric(event.cost.atto()));
            columns.durations.push(event.duration_us.into());
            columns.times.push(event.at);
        }
        columns
    }
}

/// Adds fresh events to their windows and allowances.
async fn count(
    conn: &mut PgConnection,
    chosen: &[(&UsageEvent, Option<UsageWindowId>)],
    fresh: &HashSet<Uuid>,
) -> sqlx::Result<()> {
    let mut sums: BTreeMap<UsageWindowId, (Counted, Atto)> = BTreeMap::new();
    let mut seen = HashSet::new();
    for (event, window) in chosen {
        let Some(window) = window else { continue };
        if fresh.contains(&event.call.0) && seen.insert(event.call) {
            let (counted, cost) = sums.entry(*window).or_default();
            *counted = counted.with(&event.usage).ok_or_else(too_much)?;
            *cost = cost.checked_add(event.cost).ok_or_else(too_much)?;
        }
    }
    if sums.is_empty() {
        return Ok(());
    }
    let ids: Vec<_> = sums.keys().map(|it| it.0).collect();
    let signed = |count: fn(&Counted) -> u64| -> Vec<i64> {
        let counts = sums.values().map(|(it, _)| count(it).cast_signed());
        counts.collect()
    };
    let madds: Vec<_> = sums
        .values()
        .map(|(it, _)| BigDecimal::from(it.madds))
        .collect();
    let costs: Vec<_> = sums
        .values()
        .map(|(_, cost)| wide_to_numeric(cost.atto()))
        .collect();
    sqlx::query!(
        "WITH counted AS (
             UPDATE usage_windows w SET calls = w.calls + it.calls, rows = w.rows + it.rows, input_tokens = w.input_tokens + it.input_tokens,
                 output_tokens = w.output_tokens + it.output_tokens, madds = w.madds + it.madds, cost_atto = w.cost_atto + it.cost
             FROM UNNEST($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::numeric[], $7::numeric[])
                 AS it (id, calls, rows, input_tokens, output_tokens, madds, cost)
             WHERE w.window_id = it.id RETURNING w.allowance_id, it.cost
         )
         UPDATE allowances a SET drawn_atto = a.drawn_atto + it.cost
         FROM (SELECT allowance_id, sum(cost) AS cost FROM counted GROUP BY allowance_id) it WHERE a.allowance_id = it.allowance_id",
        &ids,
        &signed(|it| it.calls),
        &signed(|it| it.rows),
        &signed(|it| it.input_tokens),
        &signed(|it| it.output_tokens),
        &madds,
        &costs,
    )
    .execute(conn)
    .await
    .map(drop)
}

fn too_much() -> sqlx::Error {
    sqlx::Error::Encode("the sums of a group of calls are above any".into())
}

/// What makes two events of a call the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Content {
    allowance: Option<AllowanceId>,
    account: AccountId,
    key: Option<ApiKeyId>,
    version: ModelVersionId,
    price: i32,
    worker: Uuid,
    usage: Usage,
    cost: Atto,
}

impl Content {
    const fn of(event: &UsageEvent) -> Self {
        Self {
            allowance: event.allowance,
            account: event.account,
            key: event.key,
            version: event.version,
            price: event.price,
            worker: event.worker.0,
            usage: event.usage,
            cost: event.cost,
        }
    }
}

/// What is stored of these calls.
async fn stored(
    conn: &mut PgConnection,
    events: &[UsageEvent],
) -> sqlx::Result<HashMap<Uuid, Known>> {
    let calls: Vec<_> = events.iter().map(|it| it.call.0).collect();
    let rows = sqlx::query!(
        r#"SELECT call_id, window_id, (SELECT allowance_id FROM usage_windows w WHERE w.window_id = e.window_id) AS "allowance_id?", account_id, api_key_id,
             version_id, price_number, worker_id, rows, input_tokens, output_tokens, madds, cost_atto
           FROM usage_events e WHERE call_id = ANY ($1)"#,
        &calls,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            let content = Content {
                allowance: row.allowance_id.map(AllowanceId),
                account: AccountId(row.account_id),
                key: row.api_key_id.map(ApiKeyId),
                version: ModelVersionId(row.version_id),
                price: row.price_number,
                worker: row.worker_id,
                usage: Usage {
                    rows: row.rows.cast_unsigned(),
                    input_tokens: row.input_tokens.cast_unsigned(),
                    output_tokens: row.output_tokens.cast_unsigned(),
                    madds: to_madds(&row.madds)?,
                },
                cost: to_atto("cost_atto", &row.cost_atto)?,
            };
            Ok((row.call_id, (row.window_id.map(UsageWindowId), content)))
        })
        .collect()
}
