//! Names of servers (Matrix specification v1.11, appendices, "Server name"), and what other servers are reached by.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize, Serializer};

use crate::addresses::{is_host_name, is_web_name};

/// A server's name: a host and perhaps a port, as it was spelled. Signatures cover the spelling, so it is kept. Whoever is no
/// homeserver is found at such a place, too.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct ServerName {
    text: Box<str>,
    host: Host,
    port: Option<u16>,
}

/// The host of a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// One that needs no look-up.
    Address(IpAddr),
    /// One that the DNS knows, in lower case.
    Name(Box<str>),
}

impl ServerName {
    /// Reads a name. What could be read as an address by one reader and as a name by another is none (`127.1`, `[::1%lo]`).
    pub fn parse(text: &str) -> Option<Self> {
        Self::read(text, is_host_name)
    }

    /// Reads the place of somebody who is no homeserver, whose name may have `_` in it.
    pub fn parse_web(text: &str) -> Option<Self> {
        Self::read(text, is_web_name)
    }

    fn read(text: &str, is_name: fn(&str) -> bool) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, rest) = rest.split_once(']')?;
                let address: Ipv6Addr = address.parse().ok()?;
                (Host::Address(address.into()), rest)
            }
            None => {
                let (host, port) = text.split_at(text.find(':').unwrap_or(text.len()));
                let host = match host.parse::<Ipv4Addr>() {
                    Ok(address) => Host::Address(address.into()),
                    Err(_) if is_name(host) => Host::Name(host.to_ascii_lowercase().into()),
                    Err(_) => return None,
                };
                (host, port)
            }
        };
        let port = match port {
            "" => None,
            port => Some(parse_port(port.strip_prefix(':')?)?),
        };
        Some(Self { text: text.into(), host, port })
    }

    /// The name as it was spelled.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Its host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its port, if it names one.
    pub fn port(&self) -> Option<u16> {
        self.port
    }
}

impl TryFrom<String> for ServerName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
            .ok_or_else(|| format!("{text:?} is no server's name\nwrite \"notary.example\", perhaps with a port"))
    }
}

impl Serialize for ServerName {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

impl Host {
    /// What somebody has to have to make up names: the last two labels. All addresses are one, for few servers have no name.
    pub fn domain(&self) -> Option<&str> {
        let Self::Name(name) = self else { return None };
        let start = name.rmatch_indices('.').nth(1).map_or(0, |(dot, _)| dot + 1);
        name.get(start..)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

fn parse_port(digits: &str) -> Option<u16> {
    let port = digits.parse().ok().filter(|port| *port != 0)?;
    (digits.len() <= 5 && digits.bytes().all(|byte| byte.is_ascii_digit())).then_some(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_host_and_perhaps_a_port() {
        let name = |text: &str| ServerName::parse(text).map(|name| (name.host().to_string(), name.port()));
        let is = |host: &str, port| Some((host.to_owned(), port));
        assert_eq!(name("example.org"), is("example.org", None));
        assert_eq!(name("UPPER.example:1234"), is("upper.example", Some(1234)));
        assert_eq!(name("198.51.100.7"), is("198.51.100.7", None));
        assert_eq!(name("198.51.100.7:99"), is("198.51.100.7", Some(99)));
        assert_eq!(name("[2001:db8::7]:99"), is("2001:db8::7", Some(99)));
        assert_eq!(name("[2001:DB8:0::7]"), is("2001:db8::7", None));
        assert_eq!(ServerName::parse("UPPER.example:0080").unwrap().as_str(), "UPPER.example:0080");
        assert_eq!(ServerName::parse("127.0.0.1").unwrap().host(), &Host::Address(Ipv4Addr::LOCALHOST.into()));
    }

    #[test]
    fn what_two_readers_would_read_differently_is_no_name() {
        for odd in [
            "",
            ":8448",
            "a:",
            "a:0",
            "a:+1",
            "a:65536",
            "a:000001",
            "a:1:2",
            "a b",
            "a/b",
            "a@b",
            "a?b",
            "a#b",
            "a%2eb",
            "a_b",
            "a.",
            "a..b",
            "::1",
            "2001:db8::7",
            "[::1",
            "[::1]x",
            "[::1]1",
            "[::1%lo]",
            "[127.0.0.1]",
            "[a]",
            "127.1",
            "0177.0.0.1",
            "0x7f.0.0.1",
            "2130706433",
            "1.2.3.4.",
            "b\u{fc}cher.example",
            "a\n",
            "a,b",
            "a\\b",
        ] {
            assert_eq!(ServerName::parse(odd), None, "{odd:?}");
            assert_eq!(ServerName::parse_web(odd).is_some(), odd == "a_b", "{odd:?}");
        }
    }
}
