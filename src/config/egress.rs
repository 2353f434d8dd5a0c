//! `[egress]`: how other servers are found, and which of them may be reached.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_spanned::Spanned;

use crate::addresses::{Allowed, Guard};

/// The way out, whichever door leads to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Egress {
    /// Who is asked for names; where none is named, whoever `/etc/resolv.conf` names.
    pub nameservers: Vec<NameServer>,
    /// `[egress.addresses]`.
    pub addresses: Addresses,
    /// The file in which keys of other servers are kept; without it they are forgotten at the end.
    #[serde(serialize_with = "super::gateway::lossy_option")]
    pub store: Option<PathBuf>,
    /// The file with the key that our own answers to questions for keys are signed with.
    #[serde(serialize_with = "super::gateway::lossy_option")]
    pub notary_key: Option<PathBuf>,
    /// Where other servers are by default. The specification says where, so no file does; a test may.
    #[serde(skip)]
    pub ports: Ports,
}

/// `[egress]` as it is written.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct EgressTable {
    pub nameservers: Vec<NameServer>,
    pub addresses: Addresses,
    pub store: Option<PathBuf>,
    pub notary_key: Option<Spanned<PathBuf>>,
}

/// Which addresses may be connected to, besides public ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Addresses {
    /// Hosts and networks.
    pub allow: Vec<Allowed>,
}

impl Egress {
    /// What lets pass an address.
    pub fn guard(&self) -> Guard {
        Guard::new(self.addresses.allow.clone())
    }

    /// The addresses of those who are asked for names.
    pub fn nameservers(&self) -> Vec<SocketAddr> {
        self.nameservers.iter().map(|NameServer(address)| *address).collect()
    }
}

/// Where servers are when nothing says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// For `/.well-known/matrix/server`, and for URLs.
    pub https: u16,
    /// For other homeservers.
    pub federation: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self { https: 443, federation: 8448 }
    }
}

/// Who is asked for names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct NameServer(pub SocketAddr);

impl TryFrom<String> for NameServer {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let address = text.parse().or_else(|_| text.parse::<IpAddr>().map(|address| SocketAddr::new(address, 53)));
        address.map(Self).map_err(|_| {
            format!(
                "{text:?} is not the address of a name server\nwrite \"127.0.0.53\", \"127.0.0.1:5353\" or \"[::1]:53\""
            )
        })
    }
}

impl Serialize for NameServer {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&self.0)
    }
}
