//! Pages of a list: newest first, by key, with a signed cursor instead of a number.
//!
//! ```ignore
//! async fn list_jobs(State(state): State<AppState>, caller: Caller<needs::JobsRead>, list: List<JobFilter>)
//!     -> Result<Page<JobBody>, Problem> {
//!     let before: Option<JobId> = list.position(&state, &caller)?;
//!     let rows = jobs::list(&mut connection, caller.account, &list.filter, before, list.fetch()).await?;
//!     Ok(list.page(&state, &caller, rows, |row| row.id, JobBody::from))
//! }
//! ```

use axum::{
    extract::FromRequestParts,
    http::{HeaderValue, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use utoipa::{IntoParams, ToSchema};

use crate::{AppState, Problem, auth::Identity, extract::Json};

/// Rows of a page when the client does not say.
const LIMIT_DEFAULT: u32 = 20;
/// Rows of a page at most.
const LIMIT_MAX: u32 = 100;

/// The parameters that every list takes, for the document: `params(PageQuery)`.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// Rows on the page.
    #[param(minimum = 1, maximum = 100, default = 20)]
    pub limit: Option<u32>,
    /// Where the page begins: `next_cursor` of the page before.
    pub cursor: Option<String>,
}

/// A list without filters.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoFilter {}

/// What a request asks of a list; `F` is the struct of its filters, which denies unknown fields.
#[derive(Debug)]
pub struct List<F = NoFilter> {
    /// The filters.
    pub filter: F,
    limit: u32,
    cursor: Option<String>,
    path: String,
    filter_query: String,
}

impl<F: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for List<F> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let query = parts.uri.query().unwrap_or_default();
        let pairs: Vec<(String, String)> = serde_urlencoded::from_str(query)
            .map_err(|error| Problem::malformed(error.to_string()))?;
        let (mut limit, mut cursor, mut filters) = (None, None, Vec::new());
        for (name, value) in pairs {
            let slot = match name.as_str() {
                "limit" => &mut limit,
                "cursor" => &mut cursor,
                _ => {
                    filters.push((name, value));
                    continue;
                }
            };
            if slot.replace(value).is_some() {
                return Err(Problem::bad_parameter(&name, "given twice"));
            }
        }
        let filter_query = serde_urlencoded::to_string(&filters)
            .map_err(|error| Problem::malformed(error.to_string()))?;
        let filter = serde_urlencoded::from_str(&filter_query)
            .map_err(|error| Problem::malformed(error.to_string()))?;
        Ok(Self {
            filter,
            limit: parse_limit(limit.as_deref())?,
            cursor,
            path: parts.uri.path().to_owned(),
            filter_query,
        })
    }
}

fn parse_limit(limit: Option<&str>) -> Result<u32, Problem> {
    let Some(limit) = limit else {
        return Ok(LIMIT_DEFAULT);
    };
    limit
        .parse()
        .ok()
        .filter(|limit| (1..=LIMIT_MAX).contains(limit))
        .ok_or_else(|| {
            Problem::bad_parameter("limit", format!("expected a number from 1 to {LIMIT_MAX}"))
        })
}

impl<F> List<F> {
    /// The key of the row that the page begins after: the client's place in the list.
    pub fn position<K: DeserializeOwned>(
        &self,
        state: &AppState,
        caller: &Identity,
    ) -> Result<Option<K>, Problem> {
        let Some(cursor) = &self.cursor else {
            return Ok(None);
        };
        state
            .keys
            .open_cursor(&self.context(caller), cursor)
            .and_then(|position| serde_json::from_slice(&position).ok())
            .map(Some)
            .ok_or_else(|| Problem::bad_parameter("cursor", "not a cursor of this list"))
    }

    /// How many rows to read: one more than the page has, to know whether it is the last.
    #[must_use]
    pub fn fetch(&self) -> i64 {
        i64::from(self.limit) + 1
    }

    /// The page of these rows, of which there are [`Self::fetch`] at most.
    pub fn page<R, K: Serialize, B>(
        &self,
        state: &AppState,
        caller: &Identity,
        mut rows: Vec<R>,
        key: impl Fn(&R) -> K,
        body: impl Fn(R) -> B,
    ) -> Page<B> {
        let limit = usize::try_from(self.limit).expect("a page has 100 rows at most");
        let has_more = rows.len() > limit;
        rows.truncate(limit);
        let last = rows.last().filter(|_| has_more);
        let next_cursor = last.map(|row| {
            let position = serde_json::to_vec(&key(row)).expect("keys are identifiers and numbers");
            state.keys.sign_cursor(&self.context(caller), &position)
        });
        let next_link = next_cursor.as_ref().map(|cursor| {
            let filters = if self.filter_query.is_empty() {
                String::new()
            } else {
                format!("{}&", self.filter_query)
            };
            format!(
                "<{}?{filters}limit={}&cursor={cursor}>; rel=\"next\"",
                self.path, self.limit
            )
        });
        Page {
            object: ListObject::List,
            data: rows.into_iter().map(body).collect(),
            has_more,
            next_cursor,
            next_link,
        }
    }

    /// A cursor is good for this caller's list with these filters and no other.
    fn context(&self, caller: &Identity) -> String {
        format!("{} {}?{}", caller.account, self.path, self.filter_query)
    }
}

/// The kind of object that a page is.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ListObject {
    /// A page of a list.
    List,
}

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct Page<T> {
    object: ListObject,
    data: Vec<T>,
    /// Is there a page after this one?
    has_more: bool,
    /// What `cursor` must be for the page after this one.
    #[schema(required = true)]
    next_cursor: Option<String>,
    #[serde(skip)]
    next_link: Option<String>,
}

impl<T: Serialize> IntoResponse for Page<T> {
    fn into_response(self) -> Response {
        let link = self
            .next_link
            .as_deref()
            .and_then(|link| HeaderValue::from_str(link).ok());
        let mut response = Json(self).into_response();
        if let Some(link) = link {
            response.headers_mut().insert(header::LINK, link);
        }
        response
    }
}
