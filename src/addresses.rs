//! Which addresses may be connected to from inside: public ones, and those that the operator allows.
//!
//! Whoever can make Synapse ask for something chooses the name that is asked, and thereby, through the DNS, the address.
//! So nothing is believed of a name: each address that it resolves to is looked at here, and the connection is made to
//! the very address that was looked at.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize, Serializer};

/// What an address is for, as far as it matters to whoever connects to it.
///
/// After the registries of special purposes (RFC 6890 and its successors).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Anybody's.
    Public,
    /// `0.0.0.0/8`, `::`: this machine, to most systems.
    Unspecified,
    /// `127.0.0.0/8`, `::1`.
    Loopback,
    /// RFC 1918, and `fc00::/7`.
    Private,
    /// `169.254.0.0/16`, where clouds answer with an instance's credentials, `fe80::/10`, and the old `fec0::/10`.
    LinkLocal,
    /// `100.64.0.0/10`: a provider's inside.
    Shared,
    /// A cloud's own interface at an address that looks public.
    Metadata,
    /// Set aside for examples.
    Documentation,
    /// Set aside for measurements.
    Benchmarking,
    /// An IPv4 address in the clothes of an IPv6 address: mapped, compatible, translated, tunnelled.
    Embedded(Ipv4Addr),
    /// Set aside for protocols, also Teredo, which embeds an address where nobody sees it.
    Protocol,
    /// Many machines at once.
    Multicast,
    /// All machines of a network.
    Broadcast,
    /// Not given out.
    Reserved,
}

impl Class {
    /// The class of an address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::of_v4(address),
            IpAddr::V6(address) => Self::of_v6(address),
        }
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        match address.octets() {
            [0, ..] => Self::Unspecified,
            [127, ..] => Self::Loopback,
            [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Self::Private,
            [169, 254, ..] => Self::LinkLocal,
            [100, 64..=127, ..] => Self::Shared,
            // Azure's, the same in every region.
            [168, 63, 129, 16] => Self::Metadata,
            [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => Self::Documentation,
            [198, 18..=19, ..] => Self::Benchmarking,
            // The second is the relay of 6to4, which nobody runs any more.
            [192, 0, 0, _] | [192, 88, 99, _] => Self::Protocol,
            [224..=239, ..] => Self::Multicast,
            [255, 255, 255, 255] => Self::Broadcast,
            [240..=255, ..] => Self::Reserved,
            _ => Self::Public,
        }
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        let embedded = |high: u16, low: u16| {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            Self::Embedded(Ipv4Addr::new(a, b, c, d))
        };
        match address.segments() {
            [0, 0, 0, 0, 0, 0, 0, 0] => Self::Unspecified,
            [0, 0, 0, 0, 0, 0, 0, 1] => Self::Loopback,
            // Compatible, mapped, translated (RFC 2765).
            [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0, 0, 0, 0, 0xffff, 0, high, low] => embedded(high, low),
            // NAT64 by its well-known prefix. The one for local use hides the address wherever its operator likes.
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
            [0x64, 0xff9b, 1, ..] => Self::Protocol,
            // 6to4.
            [0x2002, high, low, ..] => embedded(high, low),
            [0xfe80..=0xfeff, ..] => Self::LinkLocal,
            [0xfc00..=0xfdff, ..] => Self::Private,
            [0xff00..=0xffff, ..] => Self::Multicast,
            [0x2001, 0xdb8, ..] | [0x3fff, 0..=0x0fff, ..] => Self::Documentation,
            [0x2001, 2, 0, ..] => Self::Benchmarking,
            // 2001::/23, with Teredo at its beginning.
            [0x2001, 0..=0x01ff, ..] => Self::Protocol,
            // Nothing else is given out.
            [0x2000..=0x3fff, ..] => Self::Public,
            _ => Self::Reserved,
        }
    }
}

/// Something that the operator lets be reached although it is not public.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Allowed {
    /// Whatever this name resolves to.
    Host(String),
    /// These addresses, whatever their name.
    Network(IpNet),
}

impl TryFrom<String> for Allowed {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if let Ok(network) = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)) {
            return Ok(Self::Network(network.trunc()));
        }
        if is_web_name(&text) {
            return Ok(Self::Host(text.to_ascii_lowercase()));
        }
        Err(format!(
            "{text:?} is no host, address or network\nwrite \"bridge.internal\", \"10.0.0.1\", \"10.0.0.0/8\" or \"fd00::/8\""
        ))
    }
}

impl Serialize for Allowed {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Host(host) => to.serialize_str(host),
            Self::Network(network) => to.collect_str(network),
        }
    }
}

/// Lets pass what is public, and what the operator allows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guard(Vec<Allowed>);

impl Guard {
    /// A guard with these exceptions.
    pub fn new(allowed: Vec<Allowed>) -> Self {
        Self(allowed)
    }

    /// Whether a connection to this address may be made for the sake of this host, which is the name that was resolved, or the
    /// address itself.
    ///
    /// # Errors
    /// What the address is, if it is not public and not allowed.
    pub fn check(&self, host: &str, address: IpAddr) -> Result<(), Class> {
        let class = Class::of(address);
        match class {
            Class::Public => Ok(()),
            // No server has such an address, whatever the operator says of the network around it.
            Class::Unspecified | Class::Multicast | Class::Broadcast => Err(class),
            // Through a translator, the address within is the one that is reached.
            Class::Embedded(inner) if self.allows(host, address) => self.check(host, inner.into()),
            Class::Loopback
            | Class::Private
            | Class::LinkLocal
            | Class::Shared
            | Class::Metadata
            | Class::Documentation
            | Class::Benchmarking
            | Class::Embedded(_)
            | Class::Protocol
            | Class::Reserved => {
                if self.allows(host, address) {
                    Ok(())
                } else {
                    Err(class)
                }
            }
        }
    }

    /// Whether this host is allowed by its name, wherever that leads.
    pub fn names(&self, host: &str) -> bool {
        self.0.iter().any(|allowed| matches!(allowed, Allowed::Host(name) if name.eq_ignore_ascii_case(host)))
    }

    /// Whether one of its exceptions is this host or this address.
    pub fn allows(&self, host: &str, address: IpAddr) -> bool {
        self.0.iter().any(|allowed| match allowed {
            Allowed::Host(name) => name.eq_ignore_ascii_case(host),
            Allowed::Network(network) => network.contains(&address),
        })
    }
}

/// Who comes from an address, as far as that can be told: an IPv4 address is one client's, of IPv6 a whole /64, of which every
/// client has as many addresses as it likes.
pub fn client_at(address: IpAddr) -> u128 {
    match address.to_canonical() {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6) >> 64 | 1 << 64,
    }
}

/// The ports that a connection to another homeserver may use: that of HTTPS, and those that are no system service's.
pub fn is_federation_port(port: u16) -> bool {
    port == 443 || port >= 1024
}

/// Whether this is the name of a host that the DNS could know: letters, digits and hyphens in labels, the last of which is no
/// number. What ends in a number is an address in a spelling that some readers know and others do not (`127.1`, `0x7f000001`).
pub fn is_host_name(text: &str) -> bool {
    is_name(text, |byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// The same for whoever is no homeserver: containers, and some web sites, have names with `_`, which the DNS and TLS take.
pub fn is_web_name(text: &str) -> bool {
    is_name(text, |byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

fn is_name(text: &str, may_be: impl Fn(u8) -> bool) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(&may_be)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    let is_number = |label: &str| {
        let hex = label.strip_prefix("0x").or_else(|| label.strip_prefix("0X"));
        hex.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
            || label.bytes().all(|byte| byte.is_ascii_digit())
    };
    text.len() <= 253 && text.split('.').all(is_label) && !is_number(last)
}

#[cfg(test)]
mod tests;
