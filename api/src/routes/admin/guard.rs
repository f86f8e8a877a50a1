//! Who is an administrator. The role is read from Postgres at each request; no token carries it.

use axum::{
    extract::FromRequestParts,
    http::{HeaderValue, StatusCode, header, request::Parts},
};
use comptoir_domain::{
    audit::{Action, Actor, Event, Origin},
    id::AccountId,
};
use comptoir_http::client_ip;
use comptoir_store::admins;
use time::{Duration, OffsetDateTime};

use crate::{
    AppState, Problem,
    auth::{Caller, Credential, Identity, needs},
};

/// How long ago an administrator may have signed in to act, and not only to read.
const FRESH_FOR: Duration = Duration::minutes(15);

/// An administrator who reads. Its `state` reaches the database in the role of administrators.
pub(super) struct Admin {
    /// Who.
    pub(super) identity: Identity,
    /// The service, with the database role of administrators.
    pub(super) state: AppState,
    signed_in_at: OffsetDateTime,
}

/// An administrator who acts: signed in by password in the last minutes.
pub(super) struct FreshAdmin {
    /// Who.
    pub(super) identity: Identity,
    /// The service, with the database role of administrators.
    pub(super) state: AppState,
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
        Event::new(
            Actor::Account(self.identity.account),
            action,
            subject.to_string(),
        )
        .from(self.origin.clone())
    }
}

impl FromRequestParts<AppState> for Admin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Problem> {
        let caller = Caller::<needs::Nothing>::from_request_parts(parts, state).await?;
        let Credential::Session(session) = caller.credential else {
            return Err(refused());
        };
        let state = AppState {
            db: state.admin_db.clone(),
            ..state.clone()
        };
        let mut connection = state.db.acquire().await?;
        let (account, now) = (caller.account, state.now());
        let standing = admins::standing(&mut connection, account, Some(session), now).await?;
        drop(connection);
        if !standing.is_admin {
            return Err(refused());
        }
        let signed_in_at = standing.signed_in_at.ok_or_else(sign_in_again)?;
        Ok(Self {
            identity: Identity::clone(&caller),
            state,
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
