//! Mail: by SMTP, or into a folder where it is read by developers and tests.

use std::{fmt, time::Duration};

use comptoir_domain::credential::{Email, InvalidEmail};
use lettre::{
    Address, AsyncFileTransport, AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor,
    message::{Mailbox, header::ContentType},
};

/// How long handing one message over may take.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// Why no mail can be sent, or this one was not.
#[derive(Debug, thiserror::Error)]
pub enum MailError {
    /// Neither SMTP nor a folder.
    #[error(
        "expected `smtps://user:password@host`, `smtp://host:port?tls=required`, or `file:///folder`"
    )]
    Url,
    /// The text of an address is none.
    #[error("expected an e-mail address")]
    Address(#[from] lettre::address::AddressError),
    /// The parts make no message.
    #[error("make a message")]
    Message(#[from] lettre::error::Error),
    /// The server did not take it.
    #[error("hand a message to the mail server")]
    Smtp(#[from] lettre::transport::smtp::Error),
    /// The folder did not take it.
    #[error("write a message into the mail folder")]
    File(#[from] lettre::transport::file::Error),
    /// Too slow.
    #[error("the mail server did not answer in time")]
    Timeout,
}

impl MailError {
    /// Will the same message be refused every time?
    #[must_use]
    pub const fn is_for_good(&self) -> bool {
        matches!(self, Self::Address(_))
    }
}

/// Reads an e-mail address that mail can be sent to: who signs up with another would never hear of anything.
///
/// # Errors
/// When it is no address, or not one that [`Mailer::send`] takes.
pub fn sendable(text: &str) -> Result<Email, InvalidEmail> {
    let email: Email = text.parse()?;
    let address: Result<Address, _> = email.as_str().parse();
    address.map(|_| email).map_err(|_| InvalidEmail)
}

/// Sends mail from one address; cheap to clone.
#[derive(Clone)]
pub struct Mailer {
    from: Mailbox,
    transport: Transport,
}

#[derive(Clone)]
enum Transport {
    Smtp(AsyncSmtpTransport<Tokio1Executor>),
    Folder(AsyncFileTransport<Tokio1Executor>),
}

impl fmt::Debug for Mailer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailer").finish_non_exhaustive()
    }
}

/// One message.
#[derive(Debug)]
pub struct Letter<'a> {
    /// To whom.
    pub to: &'a str,
    /// Identifies it, so that a second copy is known for one.
    pub id: &'a str,
    /// What it is about.
    pub subject: &'a str,
    /// What it says.
    pub text: String,
}

impl Mailer {
    /// A mailer for a URL; `from` is a mailbox such as `Comptoir <no-reply@comptoir.example>`.
    ///
    /// # Errors
    /// When either is none.
    pub fn open(url: &str, from: &str) -> Result<Self, MailError> {
        let transport = if let Some(folder) = url.strip_prefix("file://") {
            if !folder.starts_with('/') {
                return Err(MailError::Url);
            }
            Transport::Folder(AsyncFileTransport::new(folder))
        } else if url.starts_with("smtp://") || url.starts_with("smtps://") {
            let builder = AsyncSmtpTransport::<Tokio1Executor>::from_url(url);
            let builder = builder.map_err(|_| MailError::Url)?;
            Transport::Smtp(builder.timeout(Some(SEND_TIMEOUT)).build())
        } else {
            return Err(MailError::Url);
        };
        Ok(Self {
            from: from.parse()?,
            transport,
        })
    }

    /// Hands a message over.
    ///
    /// # Errors
    /// When it is not taken; it may be tried again, unless it is refused [for good](MailError::is_for_good).
    pub async fn send(&self, letter: Letter<'_>) -> Result<(), MailError> {
        let domain = self.from.email.domain();
        let message = Message::builder()
            .from(self.from.clone())
            .to(Mailbox::new(None, letter.to.parse()?))
            .message_id(Some(format!("<{}@{domain}>", letter.id)))
            .subject(letter.subject)
            .header(ContentType::TEXT_PLAIN)
            .body(letter.text)?;
        let sending = async {
            match &self.transport {
                Transport::Smtp(smtp) => smtp.send(message).await.map(drop)?,
                Transport::Folder(folder) => folder.send(message).await.map(drop)?,
            }
            Ok(())
        };
        match tokio::time::timeout(SEND_TIMEOUT, sending).await {
            Ok(sent) => sent,
            Err(_) => Err(MailError::Timeout),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_no_mail_goes_to_is_none() {
        for good in [
            "a.b+c@example.org",
            "Person@Example.ORG",
            "x@xn--bcher-kva.example",
        ] {
            assert_eq!(sendable(good).unwrap().as_str(), good.to_lowercase());
        }
        for bad in [
            ".a@b.c",
            "a.@b.c",
            "a..b@c.d",
            "a@xn--.com",
            "a@-b.c",
            "a@b",
            "",
        ] {
            assert!(sendable(bad).is_err(), "{bad}");
        }
    }

    // The pool of connections wants a runtime.
    #[tokio::test]
    async fn a_mailer_is_opened_by_a_url_and_an_address() {
        let from = "Comptoir <no-reply@comptoir.test>";
        for url in [
            "smtp://127.0.0.1:1025",
            "smtps://user:secret@mail.comptoir.test",
            "file:///tmp",
        ] {
            assert!(Mailer::open(url, from).is_ok(), "{url}");
        }
        for url in ["", "http://127.0.0.1", "file://tmp", "smtps://[", "mail"] {
            assert!(
                matches!(Mailer::open(url, from), Err(MailError::Url)),
                "{url}"
            );
        }
        assert!(Mailer::open("file:///tmp", "nobody").is_err());
    }
}
