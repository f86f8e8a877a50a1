//! What happens later, beside answering: address changes are applied, forgotten passwords get their tokens, notices are
//! sent, datasets are shredded. Each step is bounded, safe to repeat, and safe to run in several processes.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use comptoir_domain::{
    audit::{Action, Actor, Event},
    digest::Sha256,
    id::{AccountId, AllowanceId, TakedownId},
    takedown::Act,
};
use comptoir_store::{
    PgTransaction,
    address_changes::{self, Applied},
    allowances::{self, CloseError},
    assets::{self, AssetError},
    audit,
    contributions::{self, AnswerError},
    dataset_links, ledger,
    notices::{self as outbox, ATTEMPTS_MAX, DueNotice},
    password_resets,
    purchases::{self, Due},
    releases::{self, WithdrawalError},
    subscriptions::RenewError,
    takedowns::{self, ActError},
    wake::Channel,
    withheld_results,
};
use time::{Duration, OffsetDateTime};

use crate::{
    AppState,
    auth::keys::random,
    mail::{Letter, Mailer},
    metrics::{
        ALLOWANCES_ABANDONED, CONTRIBUTIONS_LAPSED, PURCHASE_STEPS, RESULTS_DENIED,
        TAKEDOWNS_OVERDUE,
    },
    notices::{self, Notice},
    shredding,
};

/// Changes, requests and messages of one step.
const AT_ONCE: usize = 50;
/// Links that one step forgets.
const LINKS_AT_ONCE: i64 = 1_000;
/// How long a token that replaces a password holds.
pub const RESET_LIFETIME: Duration = Duration::minutes(30);
/// What such a token begins with.
pub const RESET_PREFIX: &str = "crp_";
/// Who did it, for the audit log.
const SERVICE: Actor = Actor::Service("api");

/// Why a step was not done.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// Money of an address that was left could not be held.
    #[error("release what is left under an old address")]
    Sweep(#[from] WithdrawalError),
    /// Contributions that nobody answered could not be given up.
    #[error("give up contributions")]
    Lapse(#[from] AnswerError),
    /// Takedowns whose clock has run out could not be decided.
    #[error("decide takedowns")]
    Takedown(#[from] ActError),
    /// Postgres failed.
    #[error("a step of the api")]
    Database(#[from] sqlx::Error),
}

/// Does what is due; says how much that was.
///
/// # Errors
/// When Postgres fails: the rest waits for the next step.
pub async fn step(state: &AppState) -> Result<usize, StepError> {
    let mut done = 0;
    for _ in 0..AT_ONCE {
        if !apply_address_change(state).await? {
            break;
        }
        done += 1;
    }
    done += release_what_is_left(state).await?;
    done += answer_reset_requests(state).await?;
    done += purchases_due(state).await?;
    done += close_allowances(state).await?;
    done += decide_takedowns(state).await?;
    done += deny_results(state).await?;
    done += forget_links(state).await?;
    done += give_up_contributions(state).await?;
    done += shredding::shred_forgotten(state).await?;
    done += shredding::remove_objects(state).await?;
    done += shredding::rewrap(state).await?;
    if let Some(mailer) = &state.mailer {
        done += send_notices(state, mailer).await?;
    }
    Ok(done)
}

async fn apply_address_change(state: &AppState) -> Result<bool, StepError> {
    let now = state.now();
    let mut tx = state.db.begin().await?;
    let Some((change, applied)) = address_changes::apply_due(&mut tx, now).await? else {
        return Ok(false);
    };
    let (old, new) = (change.old, change.new);
    let notice = match applied {
        Applied::Changed => Notice::AddressChanged { old, new },
        Applied::Refused => Notice::AddressChangeRefused { new },
    };
    notices::write(&mut tx, &state.keys, change.account, &notice, now).await?;
    if applied == Applied::Changed {
        let event = Event::new(SERVICE, Action::AddressChanged, new.to_string())
            .of_account(change.account)
            .with("old", old.to_string());
        audit::append(&mut tx, &event, now).await?;
    }
    tx.commit().await?;
    Ok(true)
}

/// Makes what is under addresses that accounts left claimable there: nothing else reaches it.
async fn release_what_is_left(state: &AppState) -> Result<usize, StepError> {
    let now = state.now();
    let mut tx = state.db.begin().await?;
    let asset = match assets::current(&mut tx).await {
        Ok(asset) => asset,
        Err(AssetError::NoneRegistered) => return Ok(0),
        Err(AssetError::Database(error)) => return Err(error.into()),
    };
    let limit = i64::try_from(AT_ONCE).unwrap_or(i64::MAX);
    let left = address_changes::left_with_money(&mut tx, asset.id, now, limit).await?;
    let mut released = 0;
    for owner in left {
        let available = ledger::balances(&mut tx, owner.1, asset.id)
            .await?
            .available;
        match releases::request_withdrawal(&mut tx, asset.id, owner, available, now).await {
            Ok(_) => released += 1,
            // It was spent in this moment, or its owner leaves: what the contract pays then is all of it.
            Err(WithdrawalError::Nothing | WithdrawalError::Hold(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    tx.commit().await?;
    Ok(released)
}

/// Charges what is final, gives back what was not answered, renews subscriptions. Each in a transaction of its own: one that fails waits, and
/// hinders no other.
async fn purchases_due(state: &AppState) -> Result<usize, StepError> {
    let now = state.now();
    let limit = i64::try_from(AT_ONCE).unwrap_or(i64::MAX);
    let due = purchases::due(&mut *state.db.acquire().await?, now, limit).await?;
    let mut done = 0;
    for it in due {
        let outcome = match purchase_due(state, it, now).await {
            Ok(()) => {
                done += 1;
                "done"
            }
            Err(error) => {
                tracing::error!(
                    ?it,
                    error = &error as &dyn std::error::Error,
                    "a purchase waits"
                );
                let put_off = purchases::put_off(&mut *state.db.acquire().await?, it, now).await;
                if let Err(error) = put_off {
                    tracing::error!(?it, %error, "a purchase is tried again at once");
                }
                "failed"
            }
        };
        metrics::counter!(PURCHASE_STEPS, "outcome" => outcome).increment(1);
    }
    Ok(done)
}

/// All or nothing, and no lock is left of what failed.
async fn purchase_due(state: &AppState, it: Due, now: OffsetDateTime) -> Result<(), RenewError> {
    let mut tx = state.db.begin().await?;
    match purchases::step(&mut tx, it, now).await {
        Ok(()) => Ok(tx.commit().await?),
        Err(error) => {
            tx.rollback().await?;
            Err(error)
        }
    }
}

/// Charges what processes that fell silent left open. Each in a transaction of its own: one that fails waits, and hinders no other.
async fn close_allowances(state: &AppState) -> Result<usize, StepError> {
    let now = state.now();
    let limit = i64::try_from(AT_ONCE).unwrap_or(i64::MAX);
    let abandoned = allowances::abandoned(&mut *state.db.acquire().await?, now, limit).await?;
    let mut done = 0;
    for id in abandoned {
        let outcome = match close_allowance(state, id, now).await {
            Ok(receipts) => {
                tracing::warn!(allowance.id = %id, receipts, "an allowance was closed for a silent process");
                done += 1;
                "closed"
            }
            Err(error) => {
                tracing::error!(
                    allowance.id = %id,
                    error = &error as &dyn std::error::Error,
                    "an allowance waits"
                );
                allowances::put_off(&mut *state.db.acquire().await?, id, now).await?;
                "failed"
            }
        };
        metrics::counter!(ALLOWANCES_ABANDONED, "outcome" => outcome).increment(1);
    }
    Ok(done)
}

async fn close_allowance(
    state: &AppState,
    id: AllowanceId,
    now: OffsetDateTime,
) -> Result<usize, CloseError> {
    let mut tx = state.db.begin().await?;
    match allowances::close(&mut tx, id, now).await {
        Ok(receipts) => {
            tx.commit().await?;
            Ok(receipts.len())
        }
        Err(error) => {
            tx.rollback().await?;
            Err(error)
        }
    }
}

/// Decides takedowns whose clock has run out: one that nobody contested is right, one that nobody decided is wrong.
async fn decide_takedowns(state: &AppState) -> Result<usize, StepError> {
    let now = state.now();
    let limit = i64::try_from(AT_ONCE).unwrap_or(i64::MAX);
    let overdue = takedowns::overdue(&mut *state.db.acquire().await?, now, limit).await?;
    let mut done = 0;
    for id in overdue {
        match decide_takedown(state, id).await {
            Ok(decided) => done += usize::from(decided),
            // One that fails waits, and hinders no other.
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(takedown.id = %id, error, "a takedown waits");
            }
        }
    }
    Ok(done)
}

async fn decide_takedown(state: &AppState, id: TakedownId) -> Result<bool, StepError> {
    let now = state.now();
    let mut tx = state.db.begin().await?;
    let Some((decided, act)) = takedowns::expire(&mut tx, id, now).await? else {
        return Ok(false);
    };
    let action = match act {
        Act::Uphold => Action::TakedownUpheld,
        Act::Reject => Action::TakedownRejected,
        Act::Freeze | Act::Dismiss | Act::Contest | Act::Withdraw => return Ok(false),
    };
    let event = Event::new(SERVICE, action, id.to_string())
        .of_account(decided.seller)
        .with("dataset_id", decided.dataset.to_string());
    audit::append(&mut tx, &event, now).await?;
    tx.commit().await?;
    tracing::warn!(takedown.id = %id, state = %decided.state, "the clock decided a takedown");
    metrics::counter!(TAKEDOWNS_OVERDUE, "state" => decided.state.as_str()).increment(1);
    Ok(true)
}

/// Denies results that sellers of datasets did not release in time.
async fn deny_results(state: &AppState) -> Result<usize, StepError> {
    let limit = i64::try_from(AT_ONCE).unwrap_or(i64::MAX);
    let mut connection = state.db.acquire().await?;
    let denied = withheld_results::deny_due(&mut connection, state.now(), limit).await?;
    for job in &denied {
        tracing::info!(%job, "results of a job were not released in time");
        metrics::counter!(RESULTS_DENIED).increment(1);
        state.wake.publish(Channel::Job(*job));
    }
    Ok(denied.len())
}

/// Forgets links that are over for a day.
async fn forget_links(state: &AppState) -> Result<usize, StepError> {
    let before = state.now().saturating_sub(Duration::DAY);
    let mut connection = state.db.acquire().await?;
    let forgotten = dataset_links::forget(&mut connection, before, LINKS_AT_ONCE).await?;
    Ok(usize::try_from(forgotten).unwrap_or(usize::MAX))
}

/// Gives up contributions that their owners did not answer in time.
async fn give_up_contributions(state: &AppState) -> Result<usize, StepError> {
    let mut tx = state.db.begin().await?;
    let limit = i64::try_from(AT_ONCE).unwrap_or(i64::MAX);
    let lapsed = contributions::lapse_due(&mut tx, state.now(), limit).await?;
    tx.commit().await?;
    if lapsed > 0 {
        tracing::info!(lapsed, "contributions were not answered in time");
        let counted = u64::try_from(lapsed).unwrap_or(u64::MAX);
        metrics::counter!(CONTRIBUTIONS_LAPSED).increment(counted);
    }
    Ok(lapsed)
}

async fn answer_reset_requests(state: &AppState) -> Result<usize, StepError> {
    let now = state.now();
    let mut tx = state.db.begin().await?;
    let limit = i64::try_from(AT_ONCE).unwrap_or(i64::MAX);
    let (taken, accounts) = password_resets::take_requests(&mut tx, now, limit).await?;
    for account in &accounts {
        give_reset_token(state, &mut tx, *account).await?;
    }
    for account in &accounts {
        let action = Action::PasswordResetRequested;
        let event = Event::new(SERVICE, action, account.to_string()).of_account(*account);
        audit::append(&mut tx, &event, now).await?;
    }
    tx.commit().await?;
    Ok(taken)
}

async fn give_reset_token(
    state: &AppState,
    tx: &mut PgTransaction<'_>,
    account: AccountId,
) -> Result<(), StepError> {
    let now = state.now();
    let expires_at = now.saturating_add(RESET_LIFETIME);
    let secret = BASE64_URL_SAFE_NO_PAD.encode(random::<32>());
    let token = format!("{RESET_PREFIX}{secret}");
    let hash = Sha256::of(token.as_bytes());
    password_resets::create(tx, account, hash, now, expires_at).await?;
    let notice = Notice::PasswordReset { expires_at };
    let to = (account, Some(token.as_str()));
    notices::write_with_secret(tx, &state.keys, to, &notice, now).await?;
    Ok(())
}

/// Sends what is due, each message outside of any transaction.
async fn send_notices(state: &AppState, mailer: &Mailer) -> Result<usize, StepError> {
    let limit = i64::try_from(AT_ONCE).unwrap_or(i64::MAX);
    let due = outbox::take_due(&mut *state.db.acquire().await?, state.now(), limit).await?;
    let taken = due.len();
    for notice in due {
        let sent = send(state, mailer, &notice).await;
        let is_for_good = sent.as_ref().is_err_and(|error| error.is_for_good);
        let is_last = is_for_good || notice.attempts >= ATTEMPTS_MAX;
        match &sent {
            Ok(()) => tracing::info!(notice.id = %notice.id, notice.kind, "notice sent"),
            Err(error) if is_last => {
                tracing::error!(notice.id = %notice.id, notice.kind, error = error.says, "notice given up");
            }
            Err(error) => {
                tracing::warn!(notice.id = %notice.id, notice.kind, error = error.says, "notice not sent yet");
            }
        }
        if sent.is_ok() || is_last {
            let mut connection = state.db.acquire().await?;
            outbox::end(&mut connection, notice.id, sent.is_ok(), state.now()).await?;
        }
    }
    Ok(taken)
}

/// Why a message was not sent.
struct Unsent {
    /// Text alone: its causes may name whom the message is for, and are left out.
    says: String,
    /// Another attempt would end like this one.
    is_for_good: bool,
}

async fn send(state: &AppState, mailer: &Mailer, due: &DueNotice) -> Result<(), Unsent> {
    let origin = &state.config.public_origin;
    let words = notices::put_into_words(due, &state.keys, origin).map_err(|error| Unsent {
        says: error.to_string(),
        is_for_good: false,
    })?;
    let letter = Letter {
        to: &due.recipient,
        id: &due.id.to_string(),
        subject: words.subject,
        text: words.text,
    };
    mailer.send(letter).await.map_err(|error| Unsent {
        says: error.to_string(),
        is_for_good: error.is_for_good(),
    })
}
