//! Whom Synapse asks, as long as it lasts.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::matrix::{Host, ServerName};
use crate::policy::Cause;

/// Somebody who is asked, as long as it lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contact {
    /// A server's name, or a host and a port.
    pub(super) to: Box<str>,
    pub(super) cause: Cause,
    pub(super) door: Door,
    pub(super) answers: Answers,
}

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answers {
    There,
    /// The same, through a tunnel that is written down already.
    Unread,
    Here,
}

/// The way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Door {
    /// What Synapse asks other servers.
    Federation,
    /// What else it asks.
    Proxy,
    /// Keys, which it asks us for as of any notary.
    Notary,
}

impl Contact {
    /// Another server, by its name.
    pub fn server(server: &ServerName, cause: Cause, door: Door) -> Self {
        let name = Name { host: server.host(), port: server.port() };
        Self { to: name.to_string().into(), cause, door, answers: Answers::There }
    }

    /// A host at a port.
    pub fn host(host: &Host, port: u16, cause: Cause, door: Door) -> Self {
        let name = Name { host, port: Some(port) };
        Self { to: name.to_string().into(), cause, door, answers: Answers::There }
    }

    /// The same, answered here.
    pub fn answered_here(self) -> Self {
        Self { answers: Answers::Here, ..self }
    }

    /// The same, for this reason if there was none.
    pub fn or_because(self, cause: Option<Cause>) -> Self {
        match (self.cause, cause) {
            (Cause::Other, Some(cause)) => Self { cause, ..self },
            _ => self,
        }
    }

    /// Another server in its place, for the same reason.
    pub fn instead(self, other: &ServerName) -> Self {
        Self::server(other, self.cause, self.door)
    }
}

/// A host as it stands in the ledger: two spellings of one are one.
struct Name<'a> {
    host: &'a Host,
    port: Option<u16>,
}

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host {
            Host::Address(IpAddr::V6(address)) => write!(f, "[{address}]")?,
            host => host.fmt(f)?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl Door {
    /// All of them.
    pub const ALL: [Door; 3] = [Door::Federation, Door::Proxy, Door::Notary];

    /// The word in the ledger.
    pub fn as_str(self) -> &'static str {
        match self {
            Door::Federation => "federation",
            Door::Proxy => "proxy",
            Door::Notary => "notary",
        }
    }
}
