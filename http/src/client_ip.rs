//! The address of a client: the peer's, or the one that a proxy of ours saw.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use axum::{
    extract::{ConnectInfo, Request},
    http::{HeaderMap, HeaderName},
};
use comptoir_domain::audit::Origin;

use crate::request_id;

/// Where each proxy adds the address that it was called from, at the end.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

tokio::task_local! {
    static CURRENT: Option<IpAddr>;
}

/// The client of a request that came through `trusted_hops` proxies of ours. What stands further left in the header came
/// with the request, so anybody may have written it. Without a proxy the header says nothing; with fewer entries than there
/// are proxies the request did not come through all of them, and the peer is the client.
#[must_use]
pub fn of(request: &Request, trusted_hops: usize) -> Option<IpAddr> {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let peer = peer.map(|ConnectInfo(peer)| peer.ip().to_canonical());
    let forwarded = match trusted_hops {
        0 => None,
        hops => nth_from_right(request.headers(), hops),
    };
    forwarded.or(peer)
}

fn nth_from_right(headers: &HeaderMap, place: usize) -> Option<IpAddr> {
    let values = headers.get_all(FORWARDED_FOR).iter();
    let mut entries: Vec<&[u8]> = values
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .collect();
    let entry = entries.len().checked_sub(place)?;
    parse(entries.swap_remove(entry))
}

/// An address, as some proxies write it also with the port that was called from.
fn parse(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry).ok()?.trim();
    let with_port = || text.parse().ok().map(|peer: SocketAddr| peer.ip());
    let address: IpAddr = text.parse().ok().or_else(with_port)?;
    Some(address.to_canonical())
}

/// Whom an address belongs to, as far as limits go: one IPv4 address, or a /64 of IPv6, which is what one customer gets.
#[must_use]
pub fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => {
            let prefix = address.to_bits() & !u128::from(u64::MAX);
            Ipv6Addr::from_bits(prefix).into()
        }
    }
}

/// Runs a request so that [`current`] knows its client.
pub(crate) async fn scope<F: Future>(client: Option<IpAddr>, request: F) -> F::Output {
    CURRENT.scope(client, request).await
}

/// The client of the request that this task answers.
#[must_use]
pub fn current() -> Option<IpAddr> {
    CURRENT.try_with(|client| *client).ok().flatten()
}

/// The request that this task answers, for the audit log. A task that the handler spawns knows none: ask before.
#[must_use]
pub fn origin() -> Origin {
    Origin {
        request_id: request_id::current(),
        ip: current(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;

    const PEER: &str = "192.0.2.1";

    fn client(hops: usize, forwarded: &[&str]) -> String {
        let mut request = Request::new(Body::empty());
        let peer = SocketAddr::new(PEER.parse().unwrap(), 4711);
        request.extensions_mut().insert(ConnectInfo(peer));
        for value in forwarded {
            let value = value.parse().unwrap();
            request.headers_mut().append(FORWARDED_FOR, value);
        }
        of(&request, hops).unwrap().to_string()
    }

    #[test]
    fn without_a_proxy_of_ours_nobody_is_believed() {
        assert_eq!(client(0, &["198.51.100.7"]), PEER);
        assert_eq!(client(0, &[]), PEER);
    }

    #[test]
    fn the_address_is_counted_from_the_right() {
        let spoofed = ["203.0.113.9, 198.51.100.7", "10.0.0.1"];
        assert_eq!(client(1, &spoofed), "10.0.0.1");
        assert_eq!(client(2, &spoofed), "198.51.100.7");
        // One more lie in front of it changes nothing.
        let more = ["1.1.1.1,203.0.113.9, 198.51.100.7", "10.0.0.1"];
        assert_eq!(client(2, &more), "198.51.100.7");
    }

    #[test]
    fn a_request_that_did_not_pass_every_proxy_is_its_peers() {
        assert_eq!(client(2, &["203.0.113.9"]), PEER);
        assert_eq!(client(1, &[]), PEER);
        assert_eq!(client(usize::MAX, &["203.0.113.9"]), PEER);
    }

    #[test]
    fn what_is_no_address_is_not_believed() {
        for lie in ["unknown", "", "10.0.0.1 10.0.0.2", "_hidden", "\u{7f}"] {
            let value = lie.parse::<axum::http::HeaderValue>();
            if value.is_ok() {
                assert_eq!(client(1, &[lie]), PEER, "{lie:?}");
            }
        }
        assert_eq!(client(1, &["10.0.0.1:443"]), "10.0.0.1");
        assert_eq!(client(1, &["[2001:db8::1]:443"]), "2001:db8::1");
        assert_eq!(client(1, &["::ffff:10.0.0.1"]), "10.0.0.1");
    }

    #[test]
    fn a_customer_of_ipv6_is_one_client() {
        let network = |text: &str| network(text.parse().unwrap()).to_string();
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(network("192.0.2.7"), "192.0.2.7");
    }
}
