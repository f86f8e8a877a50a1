//! `/v1/usage`: what calls of models used and what that costs: sums, the calls themselves, and the windows that they are charged in.

mod body;

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use comptoir_domain::{
    id::{ApiKeyId, CallId, ModelId, ModelVersionId, UsageWindowId},
    usage::{self as records, LINE_BYTES_MAX, UsageRecord},
};
use comptoir_store::{
    assets, tenant,
    usage::{self, GroupBy, SumPlace, UsageFilter},
};
use futures::{StreamExt as _, stream};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use time::{Duration, OffsetDateTime};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    AppState, Problem,
    auth::{Caller, Identity, needs},
    page::{List, Page, PageQuery},
    quoting::no_asset,
};
use body::{UsageEventBody, UsageSumBody, UsageWindowBody};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(sum_usage))
        .routes(routes!(list_usage_events))
        .routes(routes!(list_usage_windows))
}

/// Times that one request sums at most.
const SUMS_MAX: i64 = 1_500;
/// What is summed where the client does not say, in times.
const SUMS: i32 = 30;
/// The longest time that calls are listed of.
const LISTED_MAX: Duration = Duration::days(366);
/// The time that calls are listed of where the client does not say.
const LISTED: Duration = Duration::DAY;
/// Lines that are read at a time for a file.
const LINES_AT_ONCE: usize = 2_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ToSchema)]
enum SumLength {
    #[serde(rename = "1m")]
    Minute,
    #[serde(rename = "1h")]
    Hour,
    #[default]
    #[serde(rename = "1d")]
    Day,
}

impl SumLength {
    const fn duration(self) -> Duration {
        match self {
            Self::Minute => Duration::MINUTE,
            Self::Hour => Duration::HOUR,
            Self::Day => Duration::DAY,
        }
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct SumFilter {
    /// What a sum is made for, beside the time: `key`, `model` and `version`, any of them with commas between.
    #[param(example = "key,model")]
    group_by: Option<String>,
    /// How long the time of a sum is; it begins on the minute, the hour or the day (UTC).
    #[serde(default)]
    #[param(inline)]
    window: SumLength,
    /// Calls that were answered then or later; left out: 30 times before `to`.
    #[serde(default, with = "time::serde::rfc3339::option")]
    #[param(value_type = Option<String>, format = DateTime)]
    from: Option<OffsetDateTime>,
    /// Calls that were answered before; left out: now.
    #[serde(default, with = "time::serde::rfc3339::option")]
    #[param(value_type = Option<String>, format = DateTime)]
    to: Option<OffsetDateTime>,
    /// Calls of this model alone.
    #[param(value_type = Option<String>)]
    model: Option<ModelId>,
    /// Calls with this API key alone.
    #[param(value_type = Option<String>)]
    key: Option<ApiKeyId>,
}

impl SumFilter {
    fn group_by(&self) -> Result<GroupBy, Problem> {
        let mut by = GroupBy::default();
        for name in self.group_by.iter().flat_map(|names| names.split(',')) {
            match name {
                "key" => by.key = true,
                "model" => by.model = true,
                "version" => by.version = true,
                _ => {
                    let why = "expected `key`, `model` and `version`, with commas between";
                    return Err(Problem::bad_parameter("group_by", why));
                }
            }
        }
        Ok(by)
    }

    fn calls(&self, caller: &Identity, now: OffsetDateTime) -> Result<UsageFilter, Problem> {
        let length = self.window.duration();
        let longest = length.saturating_mul(i32::try_from(SUMS_MAX).unwrap_or(i32::MAX));
        let (from, to) = between(
            (self.from, self.to),
            (length.saturating_mul(SUMS), longest),
            now,
        )?;
        Ok(UsageFilter {
            account: caller.account,
            from,
            to,
            model: self.model,
            key: self.key,
        })
    }
}

/// A time that is asked for, which is neither empty nor too long.
fn between(
    (from, to): (Option<OffsetDateTime>, Option<OffsetDateTime>),
    (usual, longest): (Duration, Duration),
    now: OffsetDateTime,
) -> Result<(OffsetDateTime, OffsetDateTime), Problem> {
    let to = to.unwrap_or(now);
    let from = from.unwrap_or_else(|| to.saturating_sub(usual));
    if from >= to {
        return Err(Problem::bad_parameter(
            "from",
            "expected a time before `to`",
        ));
    }
    if to - from > longest {
        let why = format!("expected {longest} before `to` at most");
        return Err(Problem::bad_parameter("from", why));
    }
    Ok((from, to))
}

/// The place of a sum as a cursor keeps it.
type SumCursor = (
    i64,
    Option<ApiKeyId>,
    Option<ModelId>,
    Option<ModelVersionId>,
);

/// Sums of what was used, newest first: calls, rows, tokens, multiply-adds and costs, by time, key, model and version.
#[utoipa::path(
    get, path = "/v1/usage", tag = "models", security(("session" = []), ("api_key" = ["usage:read"])),
    params(PageQuery, SumFilter),
    responses(
        (status = 200, body = Page<UsageSumBody>),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn sum_usage(
    State(state): State<AppState>,
    caller: Caller<needs::UsageRead>,
    list: List<SumFilter>,
) -> Result<Page<UsageSumBody>, Problem> {
    let after: Option<SumCursor> = list.position(&state, &caller)?;
    let after = after.and_then(|(from, key, model, version)| {
        Some(SumPlace {
            from: OffsetDateTime::from_unix_timestamp(from).ok()?,
            key,
            model,
            version,
        })
    });
    let by = list.filter.group_by()?;
    // A page after the first is of the same time, whenever it is asked for: what comes after its place is older.
    let calls = list.filter.calls(&caller, state.now())?;
    let length = list.filter.window.duration();
    let mut connection = caller.read(&state).await?;
    let sums = usage::sums(&mut connection, &calls, (by, length), after, list.fetch()).await?;
    let place = |it: &usage::UsageSum| -> SumCursor {
        let SumPlace {
            from,
            key,
            model,
            version,
        } = it.place;
        (from.unix_timestamp(), key, model, version)
    };
    Ok(list.page(&state, &caller, sums, place, |it| {
        UsageSumBody::new(&it, length)
    }))
}

#[derive(Debug, Clone, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct EventFilter {
    /// The calls of this usage window, in the order of its usage file. Nothing else is asked for then.
    #[param(value_type = Option<String>)]
    window: Option<UsageWindowId>,
    /// Calls that were answered then or later; left out: a day before `to`.
    #[serde(default, with = "time::serde::rfc3339::option")]
    #[param(value_type = Option<String>, format = DateTime)]
    from: Option<OffsetDateTime>,
    /// Calls that were answered before; left out: now.
    #[serde(default, with = "time::serde::rfc3339::option")]
    #[param(value_type = Option<String>, format = DateTime)]
    to: Option<OffsetDateTime>,
    /// Calls of this model alone.
    #[param(value_type = Option<String>)]
    model: Option<ModelId>,
    /// Calls with this API key alone.
    #[param(value_type = Option<String>)]
    key: Option<ApiKeyId>,
}

/// Which calls are listed.
#[derive(Debug, Clone, Copy)]
enum Listed {
    Window(UsageWindowId),
    Between(UsageFilter),
}

/// Where a list of calls goes on.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct CallCursor {
    /// Microseconds since 1970.
    at: i64,
    call: CallId,
}

impl CallCursor {
    fn of(record: &UsageRecord) -> Self {
        let at = i64::try_from(record.at.unix_timestamp_nanos() / 1_000).unwrap_or(i64::MAX);
        Self {
            at,
            call: record.call,
        }
    }

    fn at(self) -> Option<OffsetDateTime> {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.at) * 1_000).ok()
    }
}

impl EventFilter {
    async fn listed(
        &self,
        conn: &mut PgConnection,
        caller: &Identity,
        now: OffsetDateTime,
    ) -> Result<Listed, Problem> {
        let Some(window) = self.window else {
            let (from, to) = between((self.from, self.to), (LISTED, LISTED_MAX), now)?;
            return Ok(Listed::Between(UsageFilter {
                account: caller.account,
                from,
                to,
                model: self.model,
                key: self.key,
            }));
        };
        let is_alone = (self.from.is_none() && self.to.is_none())
            && (self.model.is_none() && self.key.is_none());
        if !is_alone {
            let why = "expected nothing beside it";
            return Err(Problem::bad_parameter("window", why));
        }
        let found = usage::window(conn, caller.account, window).await?;
        found.ok_or_else(Problem::not_found)?;
        Ok(Listed::Window(window))
    }
}

impl Listed {
    async fn read(
        &self,
        conn: &mut PgConnection,
        after: Option<CallCursor>,
        limit: i64,
    ) -> sqlx::Result<Vec<UsageRecord>> {
        match self {
            Self::Window(window) => {
                usage::events_of(conn, *window, after.map(|it| it.call), limit).await
            }
            Self::Between(filter) => {
                let after = after.and_then(|it| Some((it.at()?, it.call)));
                usage::events(conn, filter, after, limit).await
            }
        }
    }
}

/// The calls themselves, oldest first, or those of one usage window in the order of its usage file. With `Accept: text/csv` all of them, as a file:
/// that of a window is what its receipt names as the result.
#[utoipa::path(
    get, path = "/v1/usage/events", tag = "models", security(("session" = []), ("api_key" = ["usage:read"])),
    params(PageQuery, EventFilter),
    responses(
        (status = 200, content((Page<UsageEventBody> = "application/json"), (String = "text/csv"))),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn list_usage_events(
    State(state): State<AppState>,
    caller: Caller<needs::UsageRead>,
    list: List<EventFilter>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let after: Option<CallCursor> = list.position(&state, &caller)?;
    let mut connection = caller.read(&state).await?;
    let listed = list.filter.listed(&mut connection, &caller, state.now());
    let listed = listed.await?;
    let mut response = if wants_csv(&headers) {
        drop(connection);
        file(state, (caller.account, caller.address), listed)
    } else {
        let rows = listed.read(&mut connection, after, list.fetch()).await?;
        let page = list.page(&state, &caller, rows, CallCursor::of, |it| {
            UsageEventBody::new(&it)
        });
        page.into_response()
    };
    let vary = HeaderValue::from_static("accept");
    response.headers_mut().append(header::VARY, vary);
    Ok(response)
}

fn wants_csv(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter();
    let accepted = accepted.filter_map(|it| it.to_str().ok());
    let mut types = accepted.flat_map(|list| list.split(','));
    types.any(|it| {
        it.split(';')
            .next()
            .is_some_and(|it| it.trim() == "text/csv")
    })
}

/// The file of these calls. It is read in pieces, each in a transaction of its own: a slow reader holds nothing.
fn file(state: AppState, tenant: tenant::Tenant, listed: Listed) -> Response {
    let header = stream::once(async { Ok::<_, sqlx::Error>(format!("{}\n", records::HEADER)) });
    let lines = stream::try_unfold(Some(None), move |after: Option<Option<CallCursor>>| {
        let state = state.clone();
        async move {
            let Some(after) = after else { return Ok(None) };
            let mut connection = tenant::read(&state.db, tenant).await?;
            let limit = i64::try_from(LINES_AT_ONCE).unwrap_or(i64::MAX);
            let read = listed.read(&mut connection, after, limit).await;
            let records = read.inspect_err(|error| {
                let error = error as &dyn std::error::Error;
                tracing::error!(error, "a usage file ends early");
            })?;
            let next = records.last().filter(|_| records.len() == LINES_AT_ONCE);
            let next = next.map(|last| Some(CallCursor::of(last)));
            let mut text = String::with_capacity(records.len() * LINE_BYTES_MAX / 2);
            for record in &records {
                text.push_str(&record.to_string());
                text.push('\n');
            }
            Ok((!text.is_empty()).then_some((text, next)))
        }
    });
    let mut response = Body::from_stream(header.chain(lines)).into_response();
    let headers = response.headers_mut();
    let csv = HeaderValue::from_static("text/csv; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, csv);
    let name = HeaderValue::from_static("attachment; filename=\"usage.csv\"");
    headers.insert(header::CONTENT_DISPOSITION, name);
    response
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum UsageWindowState {
    /// Calls are counted in it.
    Open,
    /// What was counted is charged.
    Charged,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct WindowFilter {
    /// In this state alone.
    #[param(inline)]
    state: Option<UsageWindowState>,
}

/// What calls are charged together, newest first: what was counted, what that costs, and the receipt of it.
#[utoipa::path(
    get, path = "/v1/usage/windows", tag = "models", security(("session" = []), ("api_key" = ["usage:read"])),
    params(PageQuery, WindowFilter),
    responses(
        (status = 200, body = Page<UsageWindowBody>),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn list_usage_windows(
    State(state): State<AppState>,
    caller: Caller<needs::UsageRead>,
    list: List<WindowFilter>,
) -> Result<Page<UsageWindowBody>, Problem> {
    let before: Option<UsageWindowId> = list.position(&state, &caller)?;
    let is_open = list.filter.state.map(|it| it == UsageWindowState::Open);
    let mut connection = caller.read(&state).await?;
    let asset = assets::current(&mut connection).await.map_err(no_asset)?;
    let account = caller.account;
    let rows = usage::windows(&mut connection, account, is_open, before, list.fetch()).await?;
    Ok(list.page(
        &state,
        &caller,
        rows,
        |it| it.id,
        |it| UsageWindowBody::new(&it, &asset),
    ))
}
