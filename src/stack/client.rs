//! Who asks: the other end of the connection, or, behind a hop that the operator trusts, whom that hop names.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

use crate::observe::access::Network;

/// The client of one request.
#[derive(Clone, Debug)]
pub struct Client {
    /// Its address.
    pub address: IpAddr,
    /// The class of the address.
    pub network: Network,
    /// The address as the homeserver gets it.
    pub forwarded_for: HeaderValue,
    /// `https` or `http`, as the homeserver gets it.
    pub forwarded_proto: HeaderValue,
}

/// The hops whose word about their client is believed: `[forwarded] trusted_hops`.
#[derive(Clone, Debug, Default)]
pub struct TrustedHops(Arc<[IpNet]>);

/// The other end of a connection that would be a proxy in front of us, if it named a client: it is near, and no trusted hop.
#[derive(Clone, Copy, Debug)]
pub struct UnlistedHop(IpAddr);

impl UnlistedHop {
    /// The peer at this address, if it is on this machine or in a private network. Who is further away is a client.
    pub fn new(peer: IpAddr) -> Option<Self> {
        match Network::from(peer) {
            Network::Loopback | Network::Private => Some(Self(peer)),
            Network::Public | Network::Unix => None,
        }
    }

    /// Tells once in the life of the process, if these fields name a client, how to have it believed.
    pub fn look(self, headers: &HeaderMap) {
        if headers.contains_key(FORWARDED_FOR) && !TOLD.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "X-Forwarded-For of a near peer is not believed, so all clients behind it have its address. \
                 If it is your proxy, put into the gateway file: [forwarded] trusted_hops = [\"{}\"]",
                self.0
            );
        }
    }
}

/// Whether the operator was told already.
static TOLD: AtomicBool = AtomicBool::new(false);

impl Client {
    /// A client at this address.
    pub fn new(address: IpAddr, forwarded_proto: HeaderValue) -> Self {
        // The text of an address is always a field value.
        let forwarded_for = HeaderValue::try_from(address.to_string()).unwrap_or(HeaderValue::from_static("::"));
        Self { address, network: Network::from(address), forwarded_for, forwarded_proto }
    }

    /// Whoever is behind a unix socket and is not named: a process of this machine.
    pub fn on_this_machine(forwarded_proto: HeaderValue) -> Self {
        Self { network: Network::Unix, ..Self::new(IpAddr::V4(Ipv4Addr::LOCALHOST), forwarded_proto) }
    }

    /// The client that a trusted hop names in these fields; itself, if it names none.
    pub fn named_by(hop: &Client, hops: &TrustedHops, headers: &HeaderMap) -> Self {
        let proto = headers.get(FORWARDED_PROTO).filter(|proto| *proto == "https" || *proto == "http");
        let proto = proto.unwrap_or(&hop.forwarded_proto).clone();
        match hops.client(headers) {
            Some(address) => Self::new(address, proto),
            None => Self { forwarded_proto: proto, ..hop.clone() },
        }
    }
}

impl TrustedHops {
    /// These networks.
    pub fn new(networks: &[IpNet]) -> Self {
        Self(networks.into())
    }

    /// Whether this address is one of them.
    pub fn contain(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    /// The right-most address that is no trusted hop itself: what stands left of it was written by whoever it belongs to, and
    /// proves nothing.
    fn client(&self, headers: &HeaderMap) -> Option<IpAddr> {
        let mut nearest = None;
        let lines: Vec<&str> = headers.get_all(FORWARDED_FOR).iter().filter_map(|line| line.to_str().ok()).collect();
        for element in lines.iter().rev().flat_map(|line| line.rsplit(',')) {
            let Some(address) = address(element.trim()) else { break };
            nearest = Some(address);
            if !self.contain(address) {
                break;
            }
        }
        nearest
    }
}

/// An address as proxies write it: bare, in brackets, or with a port.
fn address(element: &str) -> Option<IpAddr> {
    let bare = element.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(element);
    let parsed = bare.parse().or_else(|_| element.parse().map(|socket: SocketAddr| socket.ip()));
    parsed.ok().map(|address: IpAddr| address.to_canonical())
}

/// Whom a proxy names as its client.
pub const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Which scheme that client used.
pub const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

#[cfg(test)]
mod tests {
    use super::*;

    fn client(lines: &[&'static str]) -> String {
        let hops = TrustedHops::new(&["10.0.0.0/8".parse().unwrap(), "127.0.0.1/32".parse().unwrap()]);
        let hop = Client::new(IpAddr::from([127, 0, 0, 1]), HeaderValue::from_static("http"));
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(FORWARDED_FOR, HeaderValue::from_static(line));
        }
        Client::named_by(&hop, &hops, &headers).address.to_string()
    }

    #[test]
    fn the_right_most_stranger_is_the_client() {
        assert_eq!(client(&["203.0.113.7"]), "203.0.113.7");
        assert_eq!(
            client(&["192.0.2.66, 203.0.113.7, 10.1.2.3"]),
            "203.0.113.7",
            "what the client wrote itself is not believed"
        );
        assert_eq!(client(&["192.0.2.66", "203.0.113.7", "10.1.2.3"]), "203.0.113.7", "several lines are one list");
        assert_eq!(client(&["10.9.9.9, 10.1.2.3"]), "10.9.9.9", "a client inside the trusted network");
    }

    #[test]
    fn ports_brackets_and_mapped_addresses_are_understood() {
        assert_eq!(client(&["203.0.113.7:4711"]), "203.0.113.7");
        assert_eq!(client(&["[2001:db8::1]:4711"]), "2001:db8::1");
        assert_eq!(client(&["[2001:db8::1]"]), "2001:db8::1");
        assert_eq!(client(&["::ffff:203.0.113.7"]), "203.0.113.7");
    }

    #[test]
    fn who_is_behind_a_socket_keeps_its_class_unless_it_names_somebody() {
        let hop = Client::on_this_machine(HeaderValue::from_static("http"));
        let mut headers = HeaderMap::new();
        let named = |headers: &HeaderMap| {
            let client = Client::named_by(&hop, &TrustedHops::default(), headers);
            (client.address.to_string(), client.network, client.forwarded_proto)
        };
        let text = HeaderValue::from_static;
        assert_eq!(named(&headers), ("127.0.0.1".to_owned(), Network::Unix, text("http")));
        headers.insert(FORWARDED_PROTO, text("https"));
        assert_eq!(named(&headers), ("127.0.0.1".to_owned(), Network::Unix, text("https")));
        headers.insert(FORWARDED_FOR, text("192.0.2.66, 203.0.113.7"));
        assert_eq!(named(&headers), ("203.0.113.7".to_owned(), Network::Public, text("https")));
    }

    #[test]
    fn nonsense_names_nobody() {
        assert_eq!(client(&[]), "127.0.0.1");
        assert_eq!(client(&["unknown"]), "127.0.0.1");
        assert_eq!(client(&["203.0.113.7, unknown, 10.1.2.3"]), "10.1.2.3");
    }
}
