//! Who is calling. Naming [`Caller`] in a handler is what protects the route, and its type
//! parameter says what the credential must be allowed to do:
//!
//! ```ignore
//! async fn list_jobs(State(state): State<AppState>, caller: Caller<needs::JobsRead>) -> …
//! ```

pub mod callers;
pub mod contract_wallets;
pub mod keys;
pub mod password;
pub mod session;
pub mod sign_ins;

use std::{marker::PhantomData, ops::Deref};

use alloy_primitives::Address;
use axum::{
    extract::FromRequestParts,
    http::{HeaderValue, StatusCode, header, request::Parts},
};
use comptoir_domain::{
    audit::{Action, Actor, Event},
    credential::ApiKey,
    id::{AccountId, ApiKeyId, SessionId},
    scope::{Scope, Scopes},
};
use comptoir_http::{client_ip, credential, rate_limit};
use comptoir_store::{PgTransaction, api_keys::Holder, audit, sessions::LiveSession, tenant};
use time::OffsetDateTime;
use tracing::Instrument as _;

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
        DatasetsRead,
        DatasetsWrite,
        ModelsCall,
        ModelsRead,
        ModelsWrite,
        UsageRead,
        PurchasesRead,
        PurchasesWrite,
        WorkersRead,
        WorkersWrite,
        WebhooksRead,
        WebhooksWrite,
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
    /// What the request was made with.
    pub credential: Credential,
}

/// What a request was made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credential {
    /// Somebody signed in.
    Session(SessionId),
    /// An API key.
    ApiKey(KeyInUse),
    /// Nothing: what is asked for is public.
    Nothing,
}

/// The API key of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyInUse {
    /// Which.
    pub id: ApiKeyId,
    /// Are its jobs counted against a limit?
    pub has_spend_limit: bool,
    /// Has it an end, a spend limit, or networks that it may be used from? Then it makes no other keys.
    pub is_restricted: bool,
}

impl Identity {
    fn of_session(session: LiveSession) -> Self {
        Self {
            account: session.account,
            address: session.address,
            scopes: Scopes::all(),
            credential: Credential::Session(session.id),
        }
    }

    /// A transaction that sees what is the caller's and nothing else.
    pub async fn begin(&self, state: &AppState) -> sqlx::Result<PgTransaction<'static>> {
        tenant::begin(&state.db, (self.account, self.address)).await
    }

    /// As [`Self::begin`], to read alone: nothing is left to commit.
    pub async fn read(&self, state: &AppState) -> sqlx::Result<PgTransaction<'static>> {
        tenant::read(&state.db, (self.account, self.address)).await
    }

    /// As [`Self::read`], for what is found by keys.
    pub async fn read_by_index(&self, state: &AppState) -> sqlx::Result<PgTransaction<'static>> {
        tenant::read_by_index(&state.db, (self.account, self.address)).await
    }

    /// The API key, unless somebody signed in.
    #[must_use]
    pub const fn api_key(&self) -> Option<KeyInUse> {
        match self.credential {
            Credential::ApiKey(key) => Some(key),
            Credential::Session(_) | Credential::Nothing => None,
        }
    }

    /// The API key whose limit jobs count against.
    #[must_use]
    pub fn spender(&self) -> Option<ApiKeyId> {
        let key = self.api_key().filter(|key| key.has_spend_limit);
        key.map(|key| key.id)
    }

    /// Who it is, for the audit log.
    #[must_use]
    pub const fn actor(&self) -> Actor {
        match self.credential {
            Credential::ApiKey(key) => Actor::ApiKey(key.id),
            Credential::Session(_) => Actor::Account(self.account),
            Credential::Nothing => Actor::Anonymous,
        }
    }

    /// The session of somebody who signed in. An API key may do much, but not this: 403.
    pub fn session(&self) -> Result<SessionId, Problem> {
        match self.credential {
            Credential::Session(session) => Ok(session),
            Credential::ApiKey(_) | Credential::Nothing => Err(Problem::new(
                StatusCode::FORBIDDEN,
                "session_required",
                "Only somebody who signed in may do this",
            )),
        }
    }

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
        let identity = authenticate(parts, state).await?;
        rate_limit::accepted();
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

async fn authenticate(parts: &Parts, state: &AppState) -> Result<Identity, Problem> {
    let identity = if parts.headers.contains_key(header::AUTHORIZATION) {
        let token = credential::bearer(&parts.headers).ok_or_else(Problem::unauthenticated)?;
        if token.starts_with("ck_") {
            by_api_key(token, state).await?
        } else {
            by_access_token(token, state).await?
        }
    } else if parts.headers.contains_key(header::COOKIE) {
        session::by_cookie(parts, state).await?
    } else {
        return Err(Problem::unauthenticated());
    };
    identity.ok_or_else(|| {
        Problem::unauthenticated().header(
            header::WWW_AUTHENTICATE,
            HeaderValue::from_static(r#"Bearer error="invalid_token""#),
        )
    })
}

async fn by_api_key(token: &str, state: &AppState) -> Result<Option<Identity>, Problem> {
    let Ok(key) = token.parse::<ApiKey>() else {
        return Ok(None);
    };
    if key.environment() != state.config.environment {
        return Ok(None);
    }
    let hmac = state.keys.api_key_hmac(&key);
    let Some(holder) = state.callers.key(state, hmac, state.now()).await? else {
        return Ok(None);
    };
    if !holder.allowed_ips.allows(client_ip::current()) {
        return Err(refuse_address(state, &holder).await?);
    }
    let key = KeyInUse {
        id: holder.key,
        has_spend_limit: holder.has_spend_limit,
        is_restricted: holder.has_spend_limit
            || holder.expires_at.is_some()
            || !holder.allowed_ips.is_empty(),
    };
    Ok(Some(Identity {
        account: holder.account,
        address: holder.address,
        scopes: holder.scopes,
        credential: Credential::ApiKey(key),
    }))
}

/// The key is good, but may not be used from here: 403, and a line in the audit log, since somebody else may have it.
async fn refuse_address(state: &AppState, holder: &Holder) -> Result<Problem, Problem> {
    let now = state.now();
    let actor = Actor::ApiKey(holder.key);
    let event = Event::new(actor, Action::ApiKeyRefused, holder.key.to_string())
        .of_account(holder.account)
        .from(client_ip::origin());
    note(state, event, now).await?;
    Ok(Problem::new(
        StatusCode::FORBIDDEN,
        "ip_refused",
        "The key may not be used from this address",
    ))
}

/// Keeps an event of the audit log that comes with no other change.
pub(crate) async fn note(
    state: &AppState,
    event: Event,
    now: OffsetDateTime,
) -> Result<(), Problem> {
    let state = state.clone();
    let noting = async move {
        let mut tx = state.db.begin().await?;
        audit::append(&mut tx, &event, now).await?;
        tx.commit().await?;
        Ok::<_, sqlx::Error>(())
    };
    let done = tokio::spawn(noting.in_current_span()).await;
    Ok(done.map_err(|error| Problem::internal(&error))??)
}

async fn by_access_token(token: &str, state: &AppState) -> Result<Option<Identity>, Problem> {
    let now = state.now();
    let Ok((account, session)) = state.keys.verify(token, now) else {
        return Ok(None);
    };
    let live = state.callers.session(state, session, now).await?;
    let live = live.filter(|live| live.account == account);
    Ok(live.map(Identity::of_session))
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
