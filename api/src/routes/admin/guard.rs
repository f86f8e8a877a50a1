//! Who is an administrator, and how one acts. The role is read from Postgres at each request; no token carries it. What
//! administrators may change is reached through this module alone, which writes the audit log in the same transaction.

use axum::{
    extract::FromRequestParts,
    http::{HeaderValue, StatusCode, header, request::Parts},
    response::Response,
};
use comptoir_domain::{
    audit::{Action, Actor, Event, Origin},
    id::AccountId,
};
use comptoir_http::client_ip;
use comptoir_store::{PgTransaction, admins, audit};
use futures::future::BoxFuture;
use sqlx::PgPool;
use time::{Duration, OffsetDateTime};
use tracing::Instrument as _;

use crate::{
    AppState, Problem,
    auth::{Caller, Credential, Identity, needs},
    idempotency::{self, Key, Reply},
};

/// How long ago an administrator may have signed in to act, and not only to read.
const FRESH_FOR: Duration = Duration::minutes(15);

/// What an administrator does, inside the transaction that writes it down.
pub(super) trait Work<T>:
    for<'t> FnOnce(
        &'t mut PgTransaction<'static>,
        &'t mut Event,
    ) -> BoxFuture<'t, Result<T, Problem>>
    + Send
    + 'static
{
}

impl<T, F> Work<T> for F where
    F: for<'t> FnOnce(
            &'t mut PgTransaction<'static>,
            &'t mut Event,
        ) -> BoxFuture<'t, Result<T, Problem>>
        + Send
        + 'static
{
}

/// Postgres in the role `comptoir_admin`. Whoever holds it reads, or acts and has it written down; nothing gives the pool away.
#[derive(Clone)]
pub struct AdminDb(PgPool);

impl From<PgPool> for AdminDb {
    fn from(pool: PgPool) -> Self {
        Self(pool)
    }
}

impl AdminDb {
    /// A transaction that reads alone.
    pub(super) async fn read(&self) -> sqlx::Result<PgTransaction<'static>> {
        self.0.begin_with("BEGIN READ ONLY").await
    }

    /// Runs an action in one transaction with its line in the audit log, in a task of its own: a client that hangs up leaves
    /// nothing half done. The action may add to the event what it finds out.
    pub(super) async fn act<T: Send + 'static>(
        &self,
        event: Event,
        now: OffsetDateTime,
        work: impl Work<T>,
    ) -> Result<T, Problem> {
        let (db, mut event) = (self.0.clone(), event);
        let acting = async move {
            let mut tx = db.begin().await?;
            match work(&mut tx, &mut event).await {
                Ok(done) => {
                    audit::append(&mut tx, &event, now).await?;
                    tx.commit().await?;
                    Ok(done)
                }
                Err(problem) => {
                    tx.rollback().await?;
                    Err(problem)
                }
            }
        };
        let done = tokio::spawn(acting.in_current_span()).await;
        done.map_err(|error| Problem::internal(&error))?
    }
}

/// An administrator who reads.
pub(super) struct Admin {
    /// Who.
    pub(super) identity: Identity,
    /// The service, with the rights that it has for clients.
    pub(super) state: AppState,
    signed_in_at: OffsetDateTime,
}

impl Admin {
    /// A transaction of administrators that reads alone.
    pub(super) async fn read(&self) -> sqlx::Result<PgTransaction<'static>> {
        self.state.admin_db.read().await
    }
}

/// An administrator who acts: signed in by password in the last minutes.
pub(super) struct FreshAdmin {
    /// The service, with the rights that it has for clients.
    pub(super) state: AppState,
    identity: Identity,
    origin: Origin,
}

impl FreshAdmin {
    /// The account.
    pub(super) const fn account(&self) -> AccountId {
        self.identity.account
    }

    /// What the audit log is told of an action of this administrator.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "subjects are identifiers, which are copied"
    )]
    pub(super) fn event(&self, action: Action, subject: impl ToString) -> Event {
        let actor = Actor::Account(self.identity.account);
        Event::new(actor, action, subject.to_string()).from(self.origin.clone())
    }

    /// A transaction of administrators that reads alone.
    pub(super) async fn read(&self) -> sqlx::Result<PgTransaction<'static>> {
        self.state.admin_db.read().await
    }

    /// Acts, as [`AdminDb::act`] says.
    pub(super) async fn act<T: Send + 'static>(
        &self,
        event: Event,
        work: impl Work<T>,
    ) -> Result<T, Problem> {
        let now = self.state.now();
        self.state.admin_db.act(event, now, work).await
    }

    /// Acts once per `Idempotency-Key`: a repeated request is answered with the first one's reply, and changes nothing.
    pub(super) async fn act_once(
        &self,
        key: Key,
        event: Event,
        work: impl Work<Reply>,
    ) -> Result<Response, Problem> {
        let (now, mut event) = (self.state.now(), event);
        let state = AppState {
            db: self.state.admin_db.0.clone(),
            ..self.state.clone()
        };
        idempotency::run(&state, &self.identity, key, move |tx| {
            Box::pin(async move {
                let reply = work(tx, &mut event).await?;
                audit::append(tx, &event, now).await?;
                Ok(reply)
            })
        })
        .await
    }
}

impl FromRequestParts<AppState> for Admin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Problem> {
        let caller = Caller::<needs::Nothing>::from_request_parts(parts, state).await?;
        let Credential::Session(session) = caller.credential else {
            return Err(refused());
        };
        let (account, now) = (caller.account, state.now());
        let mut connection = state.admin_db.0.acquire().await?;
        let standing = admins::standing(&mut connection, account, Some(session), now).await?;
        drop(connection);
        if !standing.is_admin {
            return Err(refused());
        }
        let signed_in_at = standing.signed_in_at.ok_or_else(sign_in_again)?;
        Ok(Self {
            identity: Identity::clone(&caller),
            state: state.clone(),
            signed_in_at,
        })
    }
}

impl FromRequestParts<AppState> for FreshAdmin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Problem> {
        let admin = Admin::from_request_parts(parts, state).await?;
        if admin.signed_in_at.saturating_add(FRESH_FOR) <= admin.state.now() {
            return Err(sign_in_again());
        }
        Ok(Self {
            identity: admin.identity,
            state: admin.state,
            origin: client_ip::origin(),
        })
    }
}

fn refused() -> Problem {
    Problem::new(
        StatusCode::FORBIDDEN,
        "admin_required",
        "Only an administrator who signed in may do this",
    )
}

/// As RFC 9470 asks for a fresh sign-in.
fn sign_in_again() -> Problem {
    let challenge = r#"Bearer error="insufficient_user_authentication", max_age=900"#;
    Problem::new(
        StatusCode::UNAUTHORIZED,
        "fresh_sign_in_required",
        "Sign in again, with the password",
    )
    .header(
        header::WWW_AUTHENTICATE,
        HeaderValue::from_static(challenge),
    )
}
