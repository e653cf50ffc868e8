//! A range of addresses, as the engine writes it: `172.18.0.0/16`.

use std::net::IpAddr;
use std::str::FromStr;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Subnet {
    address: IpAddr,
    prefix: u32,
}

/// What any host takes on an interface with IPv6, without the engine having given it.
pub(super) const LINK_LOCAL: Subnet =
    Subnet { address: IpAddr::V6(std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), prefix: 10 };

impl FromStr for Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = || {
            let (address, prefix) = text.split_once('/')?;
            let address: IpAddr = address.parse().ok()?;
            let prefix = prefix.parse().ok()?;
            let most = if address.is_ipv4() { 32 } else { 128 };
            (prefix <= most).then_some(Self { address, prefix })
        };
        parsed().ok_or_else(|| format!("`{text}` is no subnet"))
    }
}

impl Subnet {
    /// A socket that takes both versions shows version 4's addresses inside version 6's.
    pub(super) fn contains(self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                (own.to_bits() ^ other.to_bits()).checked_shr(32 - self.prefix).unwrap_or(0) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                (own.to_bits() ^ other.to_bits()).checked_shr(128 - self.prefix).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_contains_what_shares_its_prefix() {
        for (subnet, address, inside) in [
            ("172.18.0.0/16", "172.18.255.3", true),
            ("172.18.0.0/16", "172.19.0.3", false),
            ("172.18.0.0/16", "::ffff:172.18.0.3", true),
            ("10.0.0.1/32", "10.0.0.1", true),
            ("10.0.0.1/32", "10.0.0.0", false),
            ("0.0.0.0/0", "10.0.0.1", true),
            ("0.0.0.0/0", "fd00::1", false),
            ("fd00:1::/64", "fd00:1::ffff", true),
            ("fd00:1::/64", "fd00:1:0:1::1", false),
            ("::/0", "fe80::1", true),
        ] {
            assert_eq!(
                subnet.parse::<Subnet>().unwrap().contains(address.parse().unwrap()),
                inside,
                "{subnet} {address}"
            );
        }
        assert!(LINK_LOCAL.contains("fe80::42:acff:fe12:2".parse().unwrap()));
        assert!(!LINK_LOCAL.contains("fec0::1".parse().unwrap()));
        for text in ["", "172.18.0.0", "172.18.0.0/33", "::/129", "x/8", "10.0.0.0/-1"] {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
    }
}
