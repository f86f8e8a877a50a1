//! `/v1/auth/siwe`: signing in with a wallet (EIP-4361).

use alloy::primitives::{Address, Bytes, Signature, eip191_hash_message};
use axum::{
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
};
use comptoir_domain::{
    audit::{Action, Actor, Event, Origin},
    digest::Sha256,
    id::AccountId,
};
use comptoir_http::client_ip;
use comptoir_store::{
    PgTransaction,
    accounts::{self, BindError},
    assets::{self, AssetError},
    audit,
    sessions::Method,
    siwe_nonces,
};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{accounts::in_task, address::refused, auth::note_refusal};
use crate::{
    AppState, Problem,
    auth::{
        keys::random,
        session::{self, Continued, SignedInBody},
    },
    extract::Json,
};

/// How long a wallet may take to sign.
const NONCE_LIFETIME: Duration = Duration::minutes(5);
/// Longest message: ours have some 300 bytes.
const MESSAGE_BYTES_MAX: usize = 4096;
/// Longest signature of a contract's, in bytes.
const SIGNATURE_BYTES_MAX: usize = 4096;
/// What a wallet shows above the rest.
const STATEMENT: &str = "Sign in to Comptoir. Signing moves no money.";

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create_nonce))
        .routes(routes!(sign_in))
}

#[derive(Serialize, ToSchema)]
struct SiweNonce {
    /// Goes into the message; good once.
    nonce: String,
    /// What the message must name as its domain,
    domain: String,
    /// its URI,
    uri: String,
    /// its version,
    version: &'static str,
    /// and one of these as its chain.
    chain_ids: Vec<u64>,
    /// What the message may say; you may leave it out or say something else.
    statement: &'static str,
    #[serde(with = "time::serde::rfc3339")]
    issued_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    expires_at: OffsetDateTime,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SignedMessage {
    /// The message of EIP-4361, exactly as it was signed.
    #[schema(max_length = 4096)]
    message: String,
    /// Of the address in the message, by EIP-191 (65 bytes) or, of a contract, by EIP-1271; in hexadecimal.
    #[schema(pattern = "^0x([0-9a-fA-F]{2})+$")]
    signature: String,
    /// What continues the session: `tokens` when absent.
    #[serde(default)]
    #[schema(nullable = false)]
    session: Option<Continued>,
}

/// Gives the nonce that a sign-in message must have. It is good once, for five minutes.
#[utoipa::path(
    post, path = "/v1/auth/siwe/nonce", tag = "auth", security(()),
    responses(
        (status = 201, body = SiweNonce),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn create_nonce(State(state): State<AppState>) -> Result<Response, Problem> {
    let nonce = alloy::hex::encode(random::<16>());
    let issued_at = state.now();
    let expires_at = issued_at + NONCE_LIFETIME;
    let mut connection = state.db.acquire().await?;
    let chain_ids = chains(&state, &mut connection).await?;
    let hash = Sha256::of(nonce.as_bytes());
    siwe_nonces::create(&mut connection, hash, expires_at).await?;
    let uri = state.config.public_origin.clone();
    let body = SiweNonce {
        nonce,
        domain: domain_of(&uri).to_owned(),
        uri,
        version: "1",
        chain_ids,
        statement: STATEMENT,
        issued_at,
        expires_at,
    };
    Ok((StatusCode::CREATED, session::no_store(), Json(body)).into_response())
}

/// The configured chains; the one of the settlement contract where none are.
async fn chains(
    state: &AppState,
    connection: &mut sqlx::PgConnection,
) -> Result<Vec<u64>, Problem> {
    if !state.config.sign_in_chains.is_empty() {
        return Ok(state.config.sign_in_chains.clone());
    }
    match assets::current(connection).await {
        Ok(asset) => Ok(vec![asset.chain_id]),
        Err(AssetError::NoneRegistered) => Ok(Vec::new()),
        Err(error @ AssetError::Database(_)) => Err(Problem::internal(&error)),
    }
}

/// The host of an origin, with the port where it has one.
fn domain_of(origin: &str) -> &str {
    origin
        .split_once("://")
        .map_or(origin, |(_, domain)| domain)
}

/// Signs in with a signed message. An address that no account is bound to gets an account of its own.
#[utoipa::path(
    post, path = "/v1/auth/siwe", tag = "auth", security(()),
    request_body = SignedMessage,
    responses(
        (status = 200, body = SignedInBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn sign_in(
    State(state): State<AppState>,
    headers: HeaderMap,
    Json(body): Json<SignedMessage>,
) -> Result<Response, Problem> {
    let continued = body.session.unwrap_or_default();
    if continued == Continued::Cookie {
        session::require_own_page(&headers, &state)?;
    }
    let signature = parse_signature(&body.signature)?;
    let message = parse_message(&body.message)?;
    let address = Address::from(message.address);
    let client = client_ip::current();
    let attempt = state.sign_ins.attempt(&address.to_string(), client).await?;
    if let Err(why) = check(&state, &message).await? {
        note_refusal(&state, None, (Action::SessionRefused, "siwe")).await?;
        return Err(refuse(why));
    }
    let chain = (message.chain_id, address);
    if !is_signed(&state, chain, &body.message, signature).await? {
        note_refusal(&state, None, (Action::SessionRefused, "siwe")).await?;
        return Err(refuse(
            "the signature is not one of the message by its address",
        ));
    }
    let (nonce, origin) = (Sha256::of(message.nonce.as_bytes()), client_ip::origin());
    in_task(async move {
        let now = state.now();
        let mut tx = state.db.begin().await?;
        // Spent in the transaction that signs in: of two that show it at once, one does.
        if !siwe_nonces::spend(&mut tx, nonce, now).await? {
            return Err(refuse("the nonce was used or has expired"));
        }
        let account = account_of(&mut tx, address, &origin, now).await?;
        let who = (account, Method::Siwe);
        let answer = session::begin_in(&mut tx, &state, who, continued, origin).await?;
        tx.commit().await?;
        attempt.succeeded();
        Ok(answer.into_response())
    })
    .await
}

/// The message, if it is written exactly as EIP-4361 says: what a wallet showed is what is read here.
fn parse_message(text: &str) -> Result<siwe::Message, Problem> {
    if text.len() > MESSAGE_BYTES_MAX {
        let detail = format!("expected {MESSAGE_BYTES_MAX} bytes at most");
        return Err(Problem::invalid("/message", detail));
    }
    let message = text.parse::<siwe::Message>();
    message
        .ok()
        .filter(|message| message.to_string() == text)
        .ok_or_else(|| Problem::invalid("/message", "expected a message as EIP-4361 writes it"))
}

fn parse_signature(text: &str) -> Result<Bytes, Problem> {
    let digits = text.strip_prefix("0x").unwrap_or_default();
    alloy::hex::decode(digits)
        .ok()
        .filter(|signature| (1..=SIGNATURE_BYTES_MAX).contains(&signature.len()))
        .map(Bytes::from)
        .ok_or_else(|| Problem::invalid("/signature", "expected 0x and hexadecimal digits"))
}

/// Is the message for us, now? The nonce is looked at last, and spent later.
async fn check(
    state: &AppState,
    message: &siwe::Message,
) -> Result<Result<(), &'static str>, Problem> {
    let (origin, now) = (&state.config.public_origin, state.now());
    let uri = message.uri.as_str();
    let ours = uri
        .strip_prefix(origin.as_str())
        .is_some_and(|path| path.is_empty() || path.starts_with('/'));
    if message.domain.as_str() != domain_of(origin) || !ours {
        return Ok(Err("the message is for another site"));
    }
    if !message.valid_at(&now) {
        return Ok(Err("the message does not hold now"));
    }
    let mut connection = state.db.acquire().await?;
    if !chains(state, &mut connection)
        .await?
        .contains(&message.chain_id)
    {
        return Ok(Err("the message is for another chain"));
    }
    let nonce = Sha256::of(message.nonce.as_bytes());
    if !siwe_nonces::is_open(&mut connection, nonce, now).await? {
        return Ok(Err("the nonce was used or has expired"));
    }
    Ok(Ok(()))
}

/// Did the address sign the message, with its key or, as a contract, by its own rules?
async fn is_signed(
    state: &AppState,
    (chain_id, address): (u64, Address),
    message: &str,
    signature: Bytes,
) -> Result<bool, Problem> {
    let signer = Signature::try_from(signature.as_ref())
        .ok()
        .and_then(|signature| signature.recover_address_from_msg(message).ok());
    if signer == Some(address) {
        return Ok(true);
    }
    let Some(wallets) = &state.contract_wallets else {
        return Ok(false);
    };
    let hash = eip191_hash_message(message);
    let taken = wallets.take((chain_id, address), hash, signature).await;
    taken.map_err(|error| {
        tracing::warn!(error = %error, "a contract's signature cannot be judged");
        Problem::unavailable("The Ethereum node does not answer now")
    })
}

/// The account that is bound to the address; a new one where there is none.
async fn account_of(
    tx: &mut PgTransaction<'_>,
    address: Address,
    origin: &Origin,
    now: OffsetDateTime,
) -> Result<AccountId, Problem> {
    if let Some(account) = accounts::find_by_address(tx, address).await? {
        return Ok(account.id);
    }
    let made = accounts::create_for_wallet(tx, address, now).await;
    let account = made.map_err(|error: BindError| refused(&error))?.id;
    let actor = Actor::Account(account);
    for (action, subject) in [
        (Action::AccountCreated, account.to_string()),
        (Action::AddressBound, address.to_string()),
    ] {
        let event = Event::new(actor.clone(), action, subject)
            .of_account(account)
            .from(origin.clone());
        audit::append(tx, &event, now)
            .await
            .map_err(|error| Problem::internal(&error))?;
    }
    Ok(account)
}

fn refuse(why: &str) -> Problem {
    super::auth::invalid_grant().detail(why)
}
