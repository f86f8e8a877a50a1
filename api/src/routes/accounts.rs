//! `/v1/accounts` and `/v1/account`: signing up, the account, its address.

use std::fmt::Write as _;

use alloy_primitives::{Address, Signature};
use axum::{
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use comptoir_domain::{
    credential::{Email, check_password},
    id::{AccountId, ChallengeId},
};
use comptoir_store::{
    accounts::{self, Account, BindError, Challenge, SignUpError},
    assets::{self, AssetError},
};
use serde::{Deserialize, Deserializer, Serialize};
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};
use tracing::Instrument as _;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    AppState, FieldError, Problem,
    auth::{Caller, keys::random, needs},
    etag::Conditions,
    extract::Json,
    money::AddressBody,
};

/// How long an address may take to sign.
const CHALLENGE_LIFETIME: Duration = Duration::minutes(5);

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create_account))
        .routes(routes!(find_account, update_account))
        .routes(routes!(create_challenge))
        .routes(routes!(bind_address))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewAccount {
    #[schema(format = Email, max_length = 254)]
    email: String,
    #[schema(format = Password, min_length = 12, max_length = 128)]
    password: String,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct AccountPatch {
    /// Are earnings to be released on-chain without being asked for?
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    auto_release: Option<bool>,
}

/// In a merge patch `null` removes; nothing here can be removed.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    bool::deserialize(deserializer).map(Some)
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum AccountObject {
    Account,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Account)]
struct AccountBody {
    #[schema(value_type = String, example = "acct_01h455vb4pex5vsknk084sn02q")]
    id: AccountId,
    object: AccountObject,
    /// `null` where only a wallet signs in.
    #[schema(required = true)]
    email: Option<String>,
    /// Of `user`, `provider`, `platform`.
    roles: Vec<String>,
    /// The bound address; `null` before one is bound.
    #[schema(required = true)]
    address: Option<AddressBody>,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    address_bound_at: Option<OffsetDateTime>,
    /// Are earnings released on-chain without being asked for?
    auto_release: bool,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

impl From<Account> for AccountBody {
    fn from(account: Account) -> Self {
        Self {
            id: account.id,
            object: AccountObject::Account,
            email: account.email,
            roles: account.roles,
            address: account.address.map(AddressBody),
            address_bound_at: account.address_bound_at,
            auto_release: account.auto_release,
            created_at: account.created_at,
        }
    }
}

/// Signs up. An e-mail address has one account, so the request may be repeated without an `Idempotency-Key`.
#[utoipa::path(
    post, path = "/v1/accounts", tag = "accounts", security(()),
    request_body = NewAccount,
    responses(
        (status = 201, body = AccountBody, headers(("Location" = String))),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn create_account(
    State(state): State<AppState>,
    Json(body): Json<NewAccount>,
) -> Result<Response, Problem> {
    let email: Email = body.email.parse().map_err(|error| {
        Problem::invalid_fields([FieldError::new("/email", format!("{error}"))])
    })?;
    check_password(&body.password, &email)
        .map_err(|error| Problem::invalid("/password", error.to_string()))?;
    let hash = state.passwords.hash(body.password).await?;
    let account = accounts::create(&mut *state.db.acquire().await?, &email, &hash, state.now())
        .await
        .map_err(|error| match error {
            SignUpError::EmailTaken => Problem::new(
                StatusCode::CONFLICT,
                "email_taken",
                "The e-mail address has an account",
            ),
            SignUpError::Database(_) => Problem::internal(&error),
        })?;
    let location = [(header::LOCATION, HeaderValue::from_static("/v1/account"))];
    Ok((
        StatusCode::CREATED,
        location,
        Json(AccountBody::from(account)),
    )
        .into_response())
}

/// The caller's account.
#[utoipa::path(
    get, path = "/v1/account", tag = "accounts", security(("session" = []), ("api_key" = ["account:read"])),
    responses(
        (status = 200, body = AccountBody, headers(("ETag" = String))),
        (status = 304),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn find_account(
    State(state): State<AppState>,
    caller: Caller<needs::AccountRead>,
    conditions: Conditions,
) -> Result<Response, Problem> {
    let account = accounts::find(&mut *state.db.acquire().await?, caller.account).await?;
    let account = account.ok_or_else(Problem::not_found)?;
    Ok(conditions.answer(AccountBody::from(account)))
}

/// Changes the caller's account.
#[utoipa::path(
    patch, path = "/v1/account", tag = "accounts", security(("session" = []), ("api_key" = ["account:write"])),
    params(("If-Match" = String, Header, description = "The `ETag` that the account was read with")),
    request_body(content = AccountPatch, content_type = "application/merge-patch+json"),
    responses(
        (status = 200, body = AccountBody, headers(("ETag" = String))),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn update_account(
    State(state): State<AppState>,
    caller: Caller<needs::AccountWrite>,
    conditions: Conditions,
    Json(patch): Json<AccountPatch>,
) -> Result<Response, Problem> {
    let account = caller.account;
    in_task(async move {
        let mut tx = state.db.begin().await?;
        let seen = accounts::lock(&mut tx, account)
            .await?
            .ok_or_else(Problem::not_found)?;
        conditions.require_match(&AccountBody::from(seen))?;
        if let Some(auto_release) = patch.auto_release {
            accounts::set_auto_release(&mut tx, account, auto_release).await?;
        }
        let changed = accounts::find(&mut tx, account)
            .await?
            .ok_or_else(Problem::not_found)?;
        tx.commit().await?;
        Ok(conditions.answer(AccountBody::from(changed)))
    })
    .await
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
    security(("session" = []), ("api_key" = ["account:write"])),
    request_body = NewChallenge,
    responses(
        (status = 201, body = ChallengeBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn create_challenge(
    State(state): State<AppState>,
    caller: Caller<needs::AccountWrite>,
    Json(body): Json<NewChallenge>,
) -> Result<(StatusCode, Json<ChallengeBody>), Problem> {
    let address = parse_address(&body.address).ok_or_else(|| {
        Problem::invalid(
            "/address",
            "expected 0x and 40 hexadecimal digits, in lower case or with the checksum of EIP-55",
        )
    })?;
    let mut connection = state.db.acquire().await?;
    accounts::check_bindable(&mut connection, caller.account, address)
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
            caller.account,
            asset.chain_id,
            expires_at,
        ),
        expires_at,
    };
    accounts::create_challenge(&mut connection, caller.account, &challenge).await?;
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

/// Binds the address of a challenge to the caller's account.
#[utoipa::path(
    post, path = "/v1/account/address", tag = "accounts",
    security(("session" = []), ("api_key" = ["account:write"])),
    request_body = AddressProof,
    responses(
        (status = 200, body = AccountBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn bind_address(
    State(state): State<AppState>,
    caller: Caller<needs::AccountWrite>,
    Json(body): Json<AddressProof>,
) -> Result<Response, Problem> {
    let signature: Signature = body
        .signature
        .strip_prefix("0x")
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| Problem::invalid("/signature", "expected 0x and 130 hexadecimal digits"))?;
    let account = caller.account;
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
        let bound = accounts::bind(&mut tx, account, &challenge, now)
            .await
            .map_err(|error| refused(&error))?;
        tx.commit().await?;
        Ok(Json(AccountBody::from(bound)).into_response())
    })
    .await
}

/// A transaction that a client's hanging up does not leave half done.
pub(super) async fn in_task(
    work: impl Future<Output = Result<Response, Problem>> + Send + 'static,
) -> Result<Response, Problem> {
    let done = tokio::spawn(work.in_current_span()).await;
    done.map_err(|error| Problem::internal(&error))?
}

fn parse_address(text: &str) -> Option<Address> {
    let digits = text.strip_prefix("0x")?;
    if digits.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Address::parse_checksummed(text, None).ok();
    }
    digits.parse().ok()
}

fn refused(error: &BindError) -> Problem {
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
            "The account has a bound address",
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
