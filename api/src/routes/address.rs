//! `/v1/account/address`: binding the account's address, and changing it.

use std::fmt::Write as _;

use alloy_primitives::{Address, Signature};
use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use comptoir_domain::{
    audit::{Action, Actor, Event},
    id::{AccountId, ChallengeId},
};
use comptoir_http::client_ip;
use comptoir_store::{
    PgTransaction,
    accounts::{self, BindError, Challenge},
    address_changes::{self, ChangeError},
    assets::{self, AssetError},
    audit, limits,
};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::accounts::{AccountBody, in_task};
use crate::{
    AppState, Problem,
    auth::{keys::random, session::SignedIn},
    extract::Json,
    limiting::limited,
    money::AddressBody,
    notices::{self, Notice},
};

/// How long an address may take to sign.
const CHALLENGE_LIFETIME: Duration = Duration::minutes(5);

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create_challenge))
        .routes(routes!(bind_address))
        .routes(routes!(cancel_change))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewChallenge {
    /// The address to be bound; with the checksum of EIP-55, or in lower case.
    #[schema(pattern = "^0x[0-9a-fA-F]{40}$")]
    address: String,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ChallengeObject {
    AddressChallenge,
}

#[derive(Serialize, ToSchema)]
#[schema(as = AddressChallenge)]
struct ChallengeBody {
    #[schema(value_type = String)]
    id: ChallengeId,
    object: ChallengeObject,
    address: AddressBody,
    /// Sign exactly this with the address's key, as EIP-191 says (`personal_sign`).
    message: String,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    expires_at: OffsetDateTime,
}

/// Asks for a message whose signature proves that an address is the caller's.
#[utoipa::path(
    post, path = "/v1/account/address/challenges", tag = "accounts",
    security(("session" = [])),
    request_body = NewChallenge,
    responses(
        (status = 201, body = ChallengeBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn create_challenge(
    State(state): State<AppState>,
    caller: SignedIn,
    Json(body): Json<NewChallenge>,
) -> Result<(StatusCode, Json<ChallengeBody>), Problem> {
    let address = parse_address(&body.address).ok_or_else(|| {
        Problem::invalid(
            "/address",
            "expected 0x and 40 hexadecimal digits, in lower case or with the checksum of EIP-55",
        )
    })?;
    let mut connection = state.db.acquire().await?;
    accounts::check_changeable(&mut connection, caller.identity.account, address)
        .await
        .map_err(|error| refused(&error))?;
    let asset = assets::current(&mut connection)
        .await
        .map_err(|error| match error {
            AssetError::NoneRegistered => {
                Problem::unavailable("No settlement contract is registered yet")
            }
            AssetError::Database(_) => Problem::internal(&error),
        })?;
    let created_at = state.now();
    let expires_at = created_at + CHALLENGE_LIFETIME;
    let challenge = Challenge {
        id: ChallengeId::generate(),
        address,
        message: message(
            &state.config.public_origin,
            address,
            caller.identity.account,
            asset.chain_id,
            expires_at,
        ),
        expires_at,
    };
    accounts::create_challenge(&mut connection, caller.identity.account, &challenge).await?;
    let body = ChallengeBody {
        id: challenge.id,
        object: ChallengeObject::AddressChallenge,
        address: AddressBody(address),
        message: challenge.message,
        created_at,
        expires_at,
    };
    Ok((StatusCode::CREATED, Json(body)))
}

/// What the owner of an address signs: it names everything that the signature is good for.
fn message(
    origin: &str,
    address: Address,
    account: AccountId,
    chain_id: u64,
    expires_at: OffsetDateTime,
) -> String {
    let nonce = random::<16>().iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes any text");
        text
    });
    let expires_at = expires_at
        .format(&Rfc3339)
        .expect("a clock shows years of four digits");
    format!(
        "{origin} asks you to bind this address to your account there.\n\
         Signing moves no money.\n\
         \n\
         Address: {address}\n\
         Account: {account}\n\
         Chain ID: {chain_id}\n\
         Nonce: {nonce}\n\
         Expires: {expires_at}"
    )
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct AddressProof {
    #[schema(value_type = String)]
    challenge_id: ChallengeId,
    /// 65 bytes in hexadecimal: r, s, v.
    #[schema(pattern = "^0x[0-9a-fA-F]{130}$")]
    signature: String,
}

/// Binds the address of a challenge to the account. Where the account has an address, it is paid at the new one after 24
/// hours: its owner is told by mail, and may take it back until then.
#[utoipa::path(
    post, path = "/v1/account/address", tag = "accounts",
    security(("session" = [])),
    request_body = AddressProof,
    responses(
        (status = 200, body = AccountBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn bind_address(
    State(state): State<AppState>,
    caller: SignedIn,
    Json(body): Json<AddressProof>,
) -> Result<Response, Problem> {
    let signature: Signature = body
        .signature
        .strip_prefix("0x")
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| Problem::invalid("/signature", "expected 0x and 130 hexadecimal digits"))?;
    let (account, origin) = (caller.identity.account, client_ip::origin());
    in_task(async move {
        let now = state.now();
        let mut tx = state.db.begin().await?;
        let challenge = accounts::lock_challenge(&mut tx, account, body.challenge_id, now)
            .await
            .map_err(|error| refused(&error))?;
        let signer = signature.recover_address_from_msg(&challenge.message);
        if signer.ok() != Some(challenge.address) {
            return Err(Problem::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "signature_mismatch",
                "The signature is not one of the challenge's message by its address",
            ));
        }
        let seen = accounts::lock(&mut tx, account).await?;
        let action = match seen.and_then(|account| account.address) {
            None => {
                accounts::bind(&mut tx, account, &challenge, now)
                    .await
                    .map_err(|error| refused(&error))?;
                Action::AddressBound
            }
            Some(old) => {
                ask(&state, &mut tx, (account, old), &challenge, now).await?;
                Action::AddressChangeRequested
            }
        };
        let shown = AccountBody::read(&mut tx, account).await?;
        let address = challenge.address.to_string();
        let event = Event::new(Actor::Account(account), action, address)
            .of_account(account)
            .from(origin);
        audit::append(&mut tx, &event, now)
            .await
            .map_err(|error| Problem::internal(&error))?;
        tx.commit().await?;
        Ok(Json(shown).into_response())
    })
    .await
}

/// Asks for the change to the address of a challenge that was answered, and tells the account's owner.
async fn ask(
    state: &AppState,
    tx: &mut PgTransaction<'_>,
    (account, old): (AccountId, Address),
    challenge: &Challenge,
    now: OffsetDateTime,
) -> Result<(), Problem> {
    limits::refuse_frozen(tx, account).await.map_err(limited)?;
    let new = challenge.address;
    accounts::check_changeable(tx, account, new)
        .await
        .map_err(|error| refused(&error))?;
    accounts::spend_challenge(tx, challenge.id, now).await?;
    let change = address_changes::request(tx, account, (old, new), now)
        .await
        .map_err(|error| not_asked(&error))?;
    let notice = Notice::AddressChangeRequested {
        old,
        new,
        effective_at: change.effective_at,
    };
    notices::write(tx, &state.keys, account, &notice, now).await?;
    Ok(())
}

/// Takes back a change of the address that waits. Where none does, nothing changes.
#[utoipa::path(
    post, path = "/v1/account/address/cancel", tag = "accounts", security(("session" = [])),
    responses(
        (status = 200, body = AccountBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn cancel_change(
    State(state): State<AppState>,
    caller: SignedIn,
) -> Result<Response, Problem> {
    let (account, origin) = (caller.identity.account, client_ip::origin());
    in_task(async move {
        let now = state.now();
        let mut tx = state.db.begin().await?;
        let cancelled = address_changes::cancel(&mut tx, account, now).await?;
        let shown = AccountBody::read(&mut tx, account).await?;
        if let Some(change) = cancelled {
            let notice = Notice::AddressChangeCancelled { new: change.new };
            notices::write(&mut tx, &state.keys, account, &notice, now).await?;
            let (actor, action) = (Actor::Account(account), Action::AddressChangeCancelled);
            let event = Event::new(actor, action, change.new.to_string())
                .of_account(account)
                .from(origin);
            audit::append(&mut tx, &event, now)
                .await
                .map_err(|error| Problem::internal(&error))?;
        }
        tx.commit().await?;
        Ok(Json(shown).into_response())
    })
    .await
}

fn not_asked(error: &ChangeError) -> Problem {
    match error {
        ChangeError::Pending => Problem::new(
            StatusCode::CONFLICT,
            "address_change_pending",
            "A change of the address waits already",
        ),
        ChangeError::Bind(error) => refused(error),
        ChangeError::Database(_) => Problem::internal(error),
    }
}

fn parse_address(text: &str) -> Option<Address> {
    let digits = text.strip_prefix("0x")?;
    if digits.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Address::parse_checksummed(text, None).ok();
    }
    digits.parse().ok()
}

pub(super) fn refused(error: &BindError) -> Problem {
    use BindError as E;
    match error {
        E::AddressRefused => Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "address_refused",
            "The address cannot be an account's",
        ),
        E::AddressTaken => Problem::new(
            StatusCode::CONFLICT,
            "address_taken",
            "The address is bound to another account",
        ),
        E::AlreadyBound => Problem::new(
            StatusCode::CONFLICT,
            "address_already_bound",
            "The address is the account's already",
        ),
        E::NoChallenge => Problem::not_found(),
        E::ChallengeSpent => Problem::new(
            StatusCode::CONFLICT,
            "challenge_spent",
            "The challenge was used or has expired",
        ),
        E::Database(_) => Problem::internal(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_with_a_wrong_checksum_is_refused() {
        let right = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed";
        assert!(parse_address(right).is_some());
        assert!(parse_address(&right.to_lowercase()).is_some());
        for wrong in [
            &right.replace("5aA", "5AA"),
            &right[2..],
            &right[..41],
            "0X5aaeb6053f3e94c9b9a09f33669435e7ef1beaed",
            "vitalik.eth",
        ] {
            assert_eq!(parse_address(wrong), None, "{wrong}");
        }
    }
}
