//! What owners of accounts are told by mail: written in the transaction of its cause, put into words when it is sent.

mod takedowns;

use alloy_primitives::Address;
use comptoir_domain::id::{AccountId, NoticeId};
use comptoir_store::{
    PgTransaction,
    notices::{self, DueNotice, NewNotice},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::auth::keys::Keys;
use takedowns::Takedown;

/// Something that the owner of an account is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "facts", rename_all = "snake_case")]
pub(crate) enum Notice {
    /// The account asked to be paid at another address.
    AddressChangeRequested {
        old: Address,
        new: Address,
        #[serde(with = "time::serde::rfc3339")]
        effective_at: OffsetDateTime,
    },
    /// It took that back.
    AddressChangeCancelled { new: Address },
    /// It is paid at another address.
    AddressChanged { old: Address, new: Address },
    /// The address belongs to another account now.
    AddressChangeRefused { new: Address },
    /// A way to set a new password; the secret is its token.
    PasswordReset {
        #[serde(with = "time::serde::rfc3339")]
        expires_at: OffsetDateTime,
    },
    /// The password was replaced.
    PasswordChanged {},
    /// A refresh token was used by two.
    SessionReused {},
    /// Where a takedown of the account's dataset, or one that it filed, stands: by `state`. Written by the database.
    Takedown(Takedown),
    /// Nothing is sent to a webhook endpoint any more.
    WebhookDisabled {
        endpoint: String,
        url: String,
        /// It asked for that, with 410; else it failed for days.
        gone: bool,
        #[serde(with = "time::serde::rfc3339")]
        since: OffsetDateTime,
    },
}

/// A written notice is not one of this version.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnreadableNotice {
    #[error("read a notice")]
    Json(#[from] serde_json::Error),
    #[error("open the secret of a notice")]
    Secret,
}

/// Writes a notice to the account's owner, who has an e-mail address or is told nothing.
pub(crate) async fn write(
    tx: &mut PgTransaction<'_>,
    keys: &Keys,
    account: AccountId,
    notice: &Notice,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    write_with_secret(tx, keys, (account, None), notice, now).await
}

/// Writes a notice that shows a secret; in the database it is sealed.
pub(crate) async fn write_with_secret(
    tx: &mut PgTransaction<'_>,
    keys: &Keys,
    (account, secret): (AccountId, Option<&str>),
    notice: &Notice,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    let id = NoticeId::generate();
    let written =
        serde_json::to_value(notice).map_err(|error| sqlx::Error::Encode(error.into()))?;
    let sealed = secret.map(|secret| keys.seal_reply(&sealed_for(id), secret.as_bytes()));
    let new = NewNotice {
        id,
        account,
        kind: written["kind"].as_str().unwrap_or_default(),
        facts: &written["facts"],
        secret: sealed.as_deref(),
    };
    notices::create(tx, &new, now).await
}

fn sealed_for(id: NoticeId) -> String {
    format!("notice {id}")
}

/// A notice in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Letter {
    pub subject: &'static str,
    pub text: String,
}

/// Puts a notice into words, for the service at `origin`.
pub(crate) fn put_into_words(
    due: &DueNotice,
    keys: &Keys,
    origin: &str,
) -> Result<Letter, UnreadableNotice> {
    let written = Value::from_iter([
        ("kind", Value::from(due.kind.as_str())),
        ("facts", due.facts.clone()),
    ]);
    let notice: Notice = serde_json::from_value(written)?;
    let secret = due.secret.as_ref().map(|sealed| {
        let opened = keys.open_reply(&sealed_for(due.id), sealed).ok()?;
        String::from_utf8(opened).ok()
    });
    let secret = match secret {
        None => String::new(),
        Some(opened) => opened.ok_or(UnreadableNotice::Secret)?,
    };
    let (subject, text) = words(&notice, &secret, origin);
    let text = format!("{text}\n\n-- \n{origin}\nNotice {}\n", due.id);
    Ok(Letter { subject, text })
}

fn at(time: &OffsetDateTime) -> String {
    time.format(&Rfc3339).unwrap_or_default()
}

fn words(notice: &Notice, secret: &str, origin: &str) -> (&'static str, String) {
    match notice {
        Notice::AddressChangeRequested {
            old,
            new,
            effective_at,
        } => (
            "Your payout address is about to change",
            change_words((old, new), &at(effective_at), origin),
        ),
        Notice::AddressChangeCancelled { new } => (
            "Your payout address stays as it is",
            format!("The change of your payout address to\n\n    {new}\n\nwas taken back."),
        ),
        Notice::AddressChanged { old, new } => (
            "Your payout address has changed",
            format!("Your account is paid at\n\n    {new}\n\nfrom now on. Before, it was\n\n    {old}"),
        ),
        Notice::AddressChangeRefused { new } => (
            "Your payout address stays as it is",
            format!(
                "Your account was to be paid at\n\n    {new}\n\nfrom now on, but another account has taken that address\n\
                 meanwhile. You are paid where you were before."
            ),
        ),
        Notice::PasswordReset { expires_at } => (
            "Set a new password",
            reset_words(secret, &at(expires_at), origin),
        ),
        Notice::PasswordChanged {} => (
            "Your password was replaced",
            "Your password was replaced, and everybody who was signed in is signed out. API keys work on: revoke those that\n\
             somebody else may have.\n\n\
             If it was not you, ask for another password at once."
                .to_owned(),
        ),
        Notice::Takedown(takedown) => takedown.words(origin),
        Notice::WebhookDisabled {
            endpoint,
            url,
            gone,
            since,
        } => (
            "A webhook endpoint was disabled",
            webhook_words((endpoint, url), *gone, &at(since), origin),
        ),
        Notice::SessionReused {} => (
            "You were signed out",
            "A token of your sign-in was used by two, so one of them is a thief. That sign-in has ended, for both. Sign in\n\
             again; if you did not copy the token yourself, look after the machine that it was kept on."
                .to_owned(),
        ),
    }
}

fn change_words((old, new): (&Address, &Address), effective_at: &str, origin: &str) -> String {
    format!(
        "Somebody who is signed in to your account asked that it be paid at\n\n    {new}\n\ninstead of\n\n    {old}\n\n\
         That happens at {effective_at}, for what is earned from then on. What is left under the old address then becomes\n\
         claimable there.\n\n\
         If it was not you, sign in before that time and take it back (`comptoir address cancel`, or POST\n\
         {origin}/v1/account/address/cancel), and replace your password."
    )
}

fn reset_words(secret: &str, expires_at: &str, origin: &str) -> String {
    format!(
        "Somebody asked to set a new password for your account. If it was you, use this token, once, until {expires_at}:\n\n\
         \x20   {secret}\n\n\
         with `comptoir password reset`, or POST {origin}/v1/auth/password.\n\n\
         If it was not you, do nothing: your password stays as it is."
    )
}

fn webhook_words(
    (endpoint, url): (&str, &str),
    is_gone: bool,
    since: &str,
    origin: &str,
) -> String {
    let why = if is_gone {
        "It answered 410, which asks for that.".to_owned()
    } else {
        format!("Nothing that was sent there since {since} was taken.")
    };
    format!(
        "Your webhook endpoint {endpoint} was disabled:\n\n    {url}\n\n{why} `comptoir webhook deliveries {endpoint}` shows what was\n\
         answered. Once it works, enable it (`comptoir webhook update {endpoint} --enable`, or PATCH\n\
         {origin}/v1/webhook-endpoints/{endpoint}) and have what it missed sent again (`comptoir webhook redeliver {endpoint}\n\
         --since TIME`). Events are kept for 30 days."
    )
}

#[cfg(test)]
mod tests {
    use comptoir_http::key_ring::KeyFile;
    use serde_json::json;
    use time::macros::datetime;

    use super::*;
    use crate::auth::keys::Secrets;

    fn keys() -> Keys {
        let secrets = Secrets {
            ring: KeyFile::generate().ring().unwrap(),
            pepper: &[7; 32],
        };
        Keys::new(secrets, "https://comptoir.test").unwrap()
    }

    fn due(kind: &str, facts: Value, secret: Option<Vec<u8>>) -> DueNotice {
        DueNotice {
            id: NoticeId::generate(),
            recipient: "someone@example.org".to_owned(),
            kind: kind.to_owned(),
            facts,
            secret,
            created_at: datetime!(2026-11-22 12:00 UTC),
            attempts: 1,
        }
    }

    #[test]
    fn a_notice_that_nothing_is_known_of_is_not_sent() {
        let keys = keys();
        let read = |due: &DueNotice| put_into_words(due, &keys, "https://comptoir.test");
        assert!(read(&due("password_changed", json!({}), None)).is_ok());
        assert!(read(&due("another", json!({}), None)).is_err());
        assert!(read(&due("password_reset", json!({}), None)).is_err());
        let sealed_elsewhere = keys.seal_reply("notice of another", b"crp_secret");
        let facts = json!({ "expires_at": "2026-11-22T12:30:00Z" });
        assert!(read(&due("password_reset", facts, Some(sealed_elsewhere))).is_err());
    }
}
