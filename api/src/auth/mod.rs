//! Who is calling. Naming [`Caller`] in a handler is what protects the route, and its type
//! parameter says what the credential must be allowed to do:
//!
//! ```ignore
//! async fn list_jobs(State(state): State<AppState>, caller: Caller<needs::JobsRead>) -> …
//! ```

pub mod keys;
pub mod password;

use std::{marker::PhantomData, ops::Deref};

use alloy_primitives::Address;
use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts},
};
use comptoir_domain::{
    credential::ApiKey,
    id::{AccountId, ApiKeyId},
    scope::{Scope, Scopes},
};
use comptoir_store::{accounts, api_keys};

use crate::{AppState, Problem};

/// A scope, as a type that a handler can name.
pub trait Need: Send + Sync + 'static {
    /// The scope; none where any credential will do.
    const SCOPE: Option<Scope>;
}

/// The scopes that a handler can name in [`Caller`]; the document names the same.
pub mod needs {
    use super::{Need, Scope};

    /// Any credential will do.
    #[derive(Debug)]
    pub enum Nothing {}

    impl Need for Nothing {
        const SCOPE: Option<Scope> = None;
    }

    macro_rules! needs {
        ($($name:ident),+ $(,)?) => {$(
            #[doc = concat!("[`Scope::", stringify!($name), "`]")]
            #[derive(Debug)]
            pub enum $name {}

            impl Need for $name {
                const SCOPE: Option<Scope> = Some(Scope::$name);
            }
        )+};
    }

    needs!(
        AccountRead,
        AccountWrite,
        KeysRead,
        KeysWrite,
        BalanceRead,
        PayoutsWrite,
        ReceiptsRead,
        JobsRead,
        JobsWrite,
        BlobsRead,
        BlobsWrite,
        WorkersRead,
        WorkersWrite,
    );
}

/// An authenticated caller whose credential allows `N`; see [`Identity`] for what is known of it.
#[derive(Debug)]
pub struct Caller<N: Need> {
    identity: Identity,
    need: PhantomData<N>,
}

/// Who calls, and what the credential allows.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The account.
    pub account: AccountId,
    /// Its bound address.
    pub address: Option<Address>,
    /// What the credential may do.
    pub scopes: Scopes,
    /// The API key, unless somebody signed in.
    pub api_key: Option<ApiKeyId>,
}

impl Identity {
    /// The bound address, which is what money belongs to: 409 without one.
    pub fn owner(&self) -> Result<Address, Problem> {
        self.address.ok_or_else(|| {
            Problem::new(
                StatusCode::CONFLICT,
                "address_not_bound",
                "The account has no bound address",
            )
        })
    }
}

impl<N: Need> Deref for Caller<N> {
    type Target = Identity;

    fn deref(&self) -> &Identity {
        &self.identity
    }
}

impl<N: Need> FromRequestParts<AppState> for Caller<N> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Problem> {
        let identity = authenticate(&parts.headers, state).await?;
        if let Some(scope) = N::SCOPE
            && !identity.scopes.allow(scope)
        {
            return Err(insufficient_scope(scope));
        }
        Ok(Self {
            identity,
            need: PhantomData,
        })
    }
}

async fn authenticate(headers: &HeaderMap, state: &AppState) -> Result<Identity, Problem> {
    let token = bearer(headers).ok_or_else(Problem::unauthenticated)?;
    let identity = if token.starts_with("ck_") {
        by_api_key(token, state).await?
    } else {
        by_access_token(token, state).await?
    };
    identity.ok_or_else(|| {
        Problem::unauthenticated().header(
            header::WWW_AUTHENTICATE,
            HeaderValue::from_static(r#"Bearer error="invalid_token""#),
        )
    })
}

/// The token of the only `Authorization` header.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next()?.to_str().ok()?;
    if values.next().is_some() {
        return None;
    }
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token)
}

async fn by_api_key(token: &str, state: &AppState) -> Result<Option<Identity>, Problem> {
    let Ok(key) = token.parse::<ApiKey>() else {
        return Ok(None);
    };
    if key.environment() != state.config.environment {
        return Ok(None);
    }
    let mut connection = state.db.acquire().await?;
    let holder =
        api_keys::find_holder(&mut connection, state.keys.api_key_hmac(&key), state.now()).await?;
    Ok(holder.map(|holder| Identity {
        account: holder.account,
        address: holder.address,
        scopes: holder.scopes,
        api_key: Some(holder.key),
    }))
}

async fn by_access_token(token: &str, state: &AppState) -> Result<Option<Identity>, Problem> {
    let Ok(claims) = state.keys.verify(token, state.now()) else {
        return Ok(None);
    };
    let Ok(account) = claims.sub.parse::<AccountId>() else {
        return Ok(None);
    };
    let mut connection = state.db.acquire().await?;
    let account = accounts::find(&mut connection, account).await?;
    Ok(account.map(|account| Identity {
        account: account.id,
        address: account.address,
        scopes: Scopes::all(),
        api_key: None,
    }))
}

/// The credential is good, but not for this: 403.
#[must_use]
pub fn insufficient_scope(scope: Scope) -> Problem {
    Problem::new(
        StatusCode::FORBIDDEN,
        "insufficient_scope",
        "The credential does not allow this",
    )
    .detail(format!("The scope `{scope}` is needed"))
}
