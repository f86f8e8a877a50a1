//! Where the service calls on behalf of somebody else: public addresses alone, whatever a name is made to mean. A host is looked up by us,
//! every address that it has is judged, and the connection goes to the addresses that were judged: at creation and at each attempt.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use comptoir_domain::{
    ip_list::Network,
    webhook::{
        URL_BYTES_MAX,
        address::{PORTS, is_public},
    },
};
use futures::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

/// How long looking a host up may take.
const LOOKUP_MAX: Duration = Duration::from_secs(5);
/// Addresses of one host that are looked at.
const ADDRESSES_MAX: usize = 32;

/// Looks a host up; tests have their own.
pub type Lookup = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync>;

/// Why nothing is sent to a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is none.
    #[error(
        "expected a URL such as https://example.org/hooks, without spaces, of {URL_BYTES_MAX} bytes at most"
    )]
    Url,
    /// Another scheme, or plain text over the internet.
    #[error("expected https")]
    Scheme,
    /// What it says would be in every log.
    #[error("expected no user, password or fragment")]
    Parts,
    /// Whatever is there may not be a web server.
    #[error("expected one of the ports 443, 4443 and 8443")]
    Port,
    /// The host means nothing, now.
    #[error("the host cannot be looked up")]
    Unknown,
    /// The host means something that is not on the public internet.
    #[error("the host is not on the public internet")]
    Private,
}

impl Refusal {
    /// In one word, for the log of deliveries.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Url | Self::Scheme | Self::Parts => "url_refused",
            Self::Port => "port_refused",
            Self::Unknown => "host_unknown",
            Self::Private => "address_refused",
        }
    }
}

/// Judges where is called.
#[derive(Clone)]
pub struct Guard {
    lookup: Lookup,
    /// Networks that are called although they are not public, also without TLS and at any port: for development.
    allowed: Arc<[Network]>,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("allowed", &self.allowed)
            .finish_non_exhaustive()
    }
}

impl Guard {
    /// Judges with the system's resolver.
    #[must_use]
    pub fn new(allowed: Vec<Network>) -> Self {
        Self::with_lookup(allowed, Arc::new(|host| Box::pin(look_up(host))))
    }

    /// Judges what this function says of hosts.
    #[must_use]
    pub fn with_lookup(allowed: Vec<Network>, lookup: Lookup) -> Self {
        let allowed = allowed.into();
        Self { lookup, allowed }
    }

    /// The URL, when something may be sent to it now.
    ///
    /// # Errors
    /// Why not.
    pub async fn check(&self, text: &str) -> Result<Url, Refusal> {
        let url = parse(text)?;
        let addresses = self.addresses_of(&url).await?;
        // What the operator allowed is a machine of a developer: it needs neither a certificate nor a port of its own. Where nothing
        // is allowed, as in production, neither scheme nor port depends on what a name means at the moment.
        if addresses.iter().all(|address| self.allows(*address)) {
            return Ok(url);
        }
        if url.scheme() != "https" {
            return Err(Refusal::Scheme);
        }
        let port = url.port_or_known_default().unwrap_or_default();
        if !PORTS.contains(&port) {
            return Err(Refusal::Port);
        }
        Ok(url)
    }

    async fn addresses_of(&self, url: &Url) -> Result<Vec<IpAddr>, Refusal> {
        match url.host() {
            Some(Host::Ipv4(address)) => self.judge(vec![address.into()]),
            Some(Host::Ipv6(address)) => self.judge(vec![address.into()]),
            Some(Host::Domain(name)) => self.resolve(name).await,
            None => Err(Refusal::Url),
        }
    }

    /// The addresses of a name, when all of them may be called: one that may not be is no accident.
    async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, Refusal> {
        let looking = (self.lookup)(name.to_owned());
        let found = tokio::time::timeout(LOOKUP_MAX, looking).await;
        let addresses = found.ok().and_then(Result::ok).unwrap_or_default();
        self.judge(addresses)
    }

    fn judge(&self, addresses: Vec<IpAddr>) -> Result<Vec<IpAddr>, Refusal> {
        if addresses.is_empty() || addresses.len() > ADDRESSES_MAX {
            return Err(Refusal::Unknown);
        }
        let may_be_called = |address: &IpAddr| is_public(*address) || self.allows(*address);
        if addresses.iter().all(may_be_called) {
            Ok(addresses)
        } else {
            Err(Refusal::Private)
        }
    }

    fn allows(&self, address: IpAddr) -> bool {
        self.allowed.iter().any(|network| network.contains(address))
    }
}

fn parse(text: &str) -> Result<Url, Refusal> {
    // The parser drops line breaks and trims; a URL that has them was made by somebody who hopes that another reader does not.
    if text.len() > URL_BYTES_MAX || text.contains(|it: char| it.is_whitespace() || it.is_control())
    {
        return Err(Refusal::Url);
    }
    let url: Url = text.parse().map_err(|_| Refusal::Url)?;
    if !matches!(url.scheme(), "https" | "http") {
        return Err(Refusal::Scheme);
    }
    if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
        return Err(Refusal::Parts);
    }
    if url.as_str().len() > URL_BYTES_MAX {
        return Err(Refusal::Url);
    }
    Ok(url)
}

async fn look_up(host: String) -> io::Result<Vec<IpAddr>> {
    let found = tokio::net::lookup_host((host, 0)).await?;
    Ok(found.map(|address| address.ip()).collect())
}

/// The client connects to what is judged here, and looks nothing up of its own. Hosts that are addresses are not asked for: those are
/// judged before.
impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.clone();
        Box::pin(async move {
            let addresses = Self::resolve(&guard, name.as_str()).await?;
            let addresses = addresses.into_iter().map(|it| SocketAddr::new(it, 0));
            Ok(Box::new(addresses) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(allowed: &[&str]) -> Guard {
        let allowed = allowed.iter().map(|it| it.parse().unwrap()).collect();
        let names = |host: String| -> io::Result<Vec<IpAddr>> {
            let addresses: &[&str] = match host.trim_end_matches('.') {
                "public.example" | "xn--pubic-p4a.example" => {
                    &["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"]
                }
                "private.example" => &["10.1.2.3"],
                "mixed.example" => &["93.184.215.14", "127.0.0.1"],
                "metadata.example" => &["fd00:ec2::254"],
                "mapped.example" => &["::ffff:93.184.215.14"],
                "localhost" => &["127.0.0.1", "::1"],
                "empty.example" => &[],
                _ => return Err(io::ErrorKind::NotFound.into()),
            };
            Ok(addresses.iter().map(|it| it.parse().unwrap()).collect())
        };
        Guard::with_lookup(
            allowed,
            Arc::new(move |host| Box::pin(async move { names(host) })),
        )
    }

    #[tokio::test]
    async fn hostile_urls_are_refused() {
        let guard = guard(&[]);
        for (url, refusal) in [
            ("", Refusal::Url),
            ("public.example", Refusal::Url),
            ("https://", Refusal::Url),
            ("https:// public.example", Refusal::Url),
            ("https://public.example/\n", Refusal::Url),
            ("https://pub\tlic.example/", Refusal::Url),
            ("https://[::1", Refusal::Url),
            ("https://public.example:99999/", Refusal::Url),
            ("http://public.example/", Refusal::Scheme),
            ("file:///etc/passwd", Refusal::Scheme),
            ("gopher://public.example/", Refusal::Scheme),
            ("ftp://public.example/", Refusal::Scheme),
            ("javascript:alert(1)", Refusal::Scheme),
            ("https://user@public.example/", Refusal::Parts),
            ("https://user:secret@public.example/", Refusal::Parts),
            ("https://public.example/#part", Refusal::Parts),
            ("https://public.example:22/", Refusal::Port),
            ("https://public.example:5432/", Refusal::Port),
            ("https://public.example:6379/", Refusal::Port),
            ("https://public.example:80/", Refusal::Port),
            ("https://93.184.215.14:8080/", Refusal::Port),
            ("https://nowhere.example/", Refusal::Unknown),
            ("https://empty.example/", Refusal::Unknown),
            ("https://127.0.0.1/", Refusal::Private),
            ("https://127.1/", Refusal::Private),
            ("https://0/", Refusal::Private),
            ("https://0x7f000001/", Refusal::Private),
            ("https://0177.0.0.1/", Refusal::Private),
            ("https://2130706433/", Refusal::Private),
            ("https://127.0.0.1./", Refusal::Private),
            ("https://[::1]/", Refusal::Private),
            ("https://[::ffff:127.0.0.1]/", Refusal::Private),
            ("https://[::ffff:7f00:1]/", Refusal::Private),
            ("https://[64:ff9b::7f00:1]/", Refusal::Private),
            ("https://[2002:7f00:1::]/", Refusal::Private),
            ("https://[fd00:ec2::254]/", Refusal::Private),
            (
                "https://169.254.169.254/latest/meta-data/",
                Refusal::Private,
            ),
            ("https://①②⑦.⓪.⓪.①/", Refusal::Private),
            ("https://localhost/", Refusal::Private),
            ("https://localhost./", Refusal::Private),
            ("https://LOCALHOST/", Refusal::Private),
            ("https://private.example/", Refusal::Private),
            ("https://mixed.example/", Refusal::Private),
            ("https://metadata.example/", Refusal::Private),
            ("https://mapped.example/", Refusal::Private),
        ] {
            assert_eq!(guard.check(url).await, Err(refusal), "{url:?}");
        }
        let long = format!("https://public.example/{}", "a".repeat(URL_BYTES_MAX));
        assert_eq!(guard.check(&long).await, Err(Refusal::Url));
    }

    #[tokio::test]
    async fn what_is_public_is_let_through_as_it_is_understood() {
        let guard = guard(&[]);
        for (url, understood) in [
            ("https://public.example", "https://public.example/"),
            (
                "HTTPS://Public.Example:443/Hook?a=b",
                "https://public.example/Hook?a=b",
            ),
            (
                "https://public.example:8443/hook",
                "https://public.example:8443/hook",
            ),
            ("https://1.1.1.1/", "https://1.1.1.1/"),
            (
                "https://[2606:4700:4700::1111]/",
                "https://[2606:4700:4700::1111]/",
            ),
            // A letter that looks like another is shown for what it is.
            ("https://pubⅼic.example/", "https://public.example/"),
            ("https://pubıic.example/", "https://xn--pubic-p4a.example/"),
        ] {
            let checked = guard.check(url).await;
            assert_eq!(checked.as_ref().map(Url::as_str), Ok(understood), "{url:?}");
        }
    }

    #[tokio::test]
    async fn a_developer_allows_networks_and_nothing_beside_them() {
        let guard = guard(&["127.0.0.0/8", "::1"]);
        for url in [
            "http://127.0.0.1:4711/",
            "http://localhost:22/",
            "https://127.1/",
        ] {
            assert!(guard.check(url).await.is_ok(), "{url}");
        }
        for (url, refusal) in [
            ("http://public.example/", Refusal::Scheme),
            ("http://mixed.example/", Refusal::Scheme),
            ("https://private.example/", Refusal::Private),
            ("https://[::ffff:127.0.0.1]/", Refusal::Private),
        ] {
            assert_eq!(guard.check(url).await, Err(refusal), "{url}");
        }
    }
}
