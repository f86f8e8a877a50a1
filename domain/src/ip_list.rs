//! Where a credential may be used from: networks, IPv4 and IPv6.

use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;

/// Most networks of a list.
pub const NETWORKS_MAX: usize = 32;

/// One network, such as `203.0.113.0/24`, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network(IpNet);

/// Not a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected an address or a network such as `203.0.113.0/24`, with no bits set behind its length"
)]
pub struct InvalidNetwork;

impl Network {
    /// Is the address in it? One in IPv6 clothes is another address.
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }
}

impl FromStr for Network {
    type Err = InvalidNetwork;

    /// An IPv4 network in IPv6 clothes is refused: clients are known by their IPv4 address, and it would never match.
    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let network = match text.parse::<IpNet>() {
            Ok(network) => network,
            Err(_) => IpNet::from(text.parse::<IpAddr>().map_err(|_| InvalidNetwork)?),
        };
        let is_mapped = match network {
            IpNet::V4(_) => false,
            IpNet::V6(network) => network.addr().to_ipv4_mapped().is_some(),
        };
        if network.trunc() != network || is_mapped {
            return Err(InvalidNetwork);
        }
        Ok(Self(network))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Networks; an empty list allows every address.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IpList(Vec<Network>);

impl IpList {
    /// May it be used from there? Where the address is not known, only a list without networks says yes.
    #[must_use]
    pub fn allows(&self, client: Option<IpAddr>) -> bool {
        let Some(client) = client.map(|client| client.to_canonical()) else {
            return self.0.is_empty();
        };
        self.0.is_empty() || self.0.iter().any(|network| network.0.contains(&client))
    }

    /// Is every address allowed?
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each network, in the order of the list.
    pub fn iter(&self) -> impl Iterator<Item = Network> + '_ {
        self.0.iter().copied()
    }
}

impl FromIterator<Network> for IpList {
    fn from_iter<I: IntoIterator<Item = Network>>(networks: I) -> Self {
        Self(networks.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(networks: &[&str]) -> IpList {
        networks.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_list_allows_the_addresses_of_its_networks() {
        let list = list(&["203.0.113.0/24", "198.51.100.7", "2001:db8::/32"]);
        let allows = |address: &str| list.allows(Some(address.parse().unwrap()));
        assert!(allows("203.0.113.255") && allows("198.51.100.7") && allows("2001:db8:1::1"));
        assert!(
            allows("::ffff:203.0.113.1"),
            "the same address in IPv6 clothes"
        );
        assert!(!allows("203.0.114.0") && !allows("198.51.100.8") && !allows("2001:db9::1"));
        assert!(!list.allows(None));
        assert!(IpList::default().allows(None));
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for text in [
            "",
            "203.0.113.1/24",
            "203.0.113.0/33",
            "203.0.113",
            "example.org",
            "::ffff:203.0.113.0/120",
            "10.0.0.0/8 ",
            "*",
        ] {
            assert_eq!(text.parse::<Network>(), Err(InvalidNetwork), "{text}");
        }
        assert_eq!(
            "10.0.0.1".parse::<Network>().unwrap().to_string(),
            "10.0.0.1/32"
        );
    }
}
