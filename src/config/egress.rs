//! `[egress]`: how other servers are found, and which of them may be reached; and what a door to them has to be.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_spanned::Spanned;

use super::gateway::{Check, Files};
use crate::addresses::{Allowed, Guard};
use crate::config::address::ListenerAddress;
use crate::config::next_hop::{NextHop, NextHopUrl};
use crate::config::notary_key::NotaryKey;
use crate::config::secret::Secret;
use crate::problem::{Location, Problem};

/// The way out, whichever door leads to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Egress {
    /// Who is asked for names; where none is named, whoever `/etc/resolv.conf` names.
    pub nameservers: Vec<NameServer>,
    /// `[egress.addresses]`.
    pub addresses: Addresses,
    /// `[egress.ca]`: by whose word hosts are looked into.
    pub ca: Option<Ca>,
    /// The file in which keys of other servers and the ledger are kept; without it they are forgotten at the end.
    #[serde(serialize_with = "super::gateway::lossy_option")]
    pub store: Option<PathBuf>,
    /// The file with the key that our own answers to questions for keys are signed with.
    #[serde(serialize_with = "super::gateway::lossy_option")]
    pub notary_key: Option<PathBuf>,
    /// Through whom others are reached; directly, where nobody is named.
    pub next_hop: Option<NextHop>,
    /// How many lines the ledger of those who were contacted has.
    pub ledger: Lines,
    /// Where other servers are by default. The specification says where, so no file does; a test may.
    #[serde(skip)]
    pub ports: Ports,
}

/// The files of the authority for hosts that are looked into.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ca {
    /// Its certificate in PEM.
    pub certificate: PathBuf,
    /// Its private key in PEM.
    pub key: PathBuf,
    /// Where both are named.
    #[serde(skip)]
    pub location: Option<Location>,
}

/// `[egress]` as it is written.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct EgressTable {
    pub nameservers: Vec<NameServer>,
    pub addresses: Addresses,
    pub ca: Option<Spanned<Ca>>,
    pub store: Option<PathBuf>,
    pub notary_key: Option<Spanned<PathBuf>>,
    pub next_hop: Option<NextHopUrl>,
    pub next_hop_credentials: Option<Spanned<PathBuf>>,
    pub next_hop_except: Option<Spanned<Vec<Allowed>>>,
    pub ledger: Lines,
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

/// What only a federation door has.
impl Check<'_> {
    pub(super) fn federation_door(
        &mut self,
        bind: &ListenerAddress,
        bind_span: Range<usize>,
        name: &str,
        name_span: Range<usize>,
    ) {
        if let ListenerAddress::Tcp(address) = bind
            && !address.ip().is_loopback()
        {
            let what = format!("a federation door is for Synapse on this machine, and {address} is for others, too");
            let help = "bind = \"127.0.0.1:46900\" or \"unix:/run/mantlet/federation.sock\"";
            self.problem(Problem::new(what).help(help), bind_span);
        }
        if name == "master" {
            let what = "Synapse takes the name \"master\" for itself, and would go past this door without a word";
            let help = "give the door, and its entry in Synapse's instance_map, another name: \"mantlet\"";
            self.problem(Problem::new(what).help(help), name_span);
        }
    }

    pub(super) fn secret(&mut self, path: Option<Spanned<PathBuf>>, bind_span: Range<usize>) -> Option<PathBuf> {
        let Some(path) = path else {
            let help = "secret_file = \"federation.secret\", with Synapse's worker_replication_secret in it";
            self.problem(
                Problem::new("a federation door needs a secret, or everybody here could use it").help(help),
                bind_span,
            );
            return None;
        };
        let span = path.span();
        let path = self.base_dir.join(path.into_inner());
        if self.files == Files::MustBeThere
            && let Err(problem) = Secret::read(&path)
        {
            self.problem(problem, span);
        }
        Some(path)
    }

    pub(super) fn no_secret(&mut self, path: Option<Spanned<PathBuf>>) {
        if let Some(path) = path {
            let what = "`secret_file` belongs to a federation door";
            self.problem(Problem::new(what).help("door = \"federation\""), path.span());
        }
    }

    pub(super) fn egress(&mut self, table: EgressTable) -> Egress {
        let notary_key = table.notary_key.map(|path| {
            let span = path.span();
            let path = self.base_dir.join(path.into_inner());
            if self.files == Files::MustBeThere
                && let Err(problem) = NotaryKey::read(&path)
            {
                self.problem(problem, span);
            }
            path
        });
        let next_hop = self.next_hop(table.next_hop, table.next_hop_credentials, table.next_hop_except);
        Egress {
            nameservers: table.nameservers,
            addresses: table.addresses,
            ca: table.ca.map(|ca| {
                let location = self.locate(ca.span());
                let Ca { certificate, key, .. } = ca.into_inner();
                Ca { certificate: self.base_dir.join(certificate), key: self.base_dir.join(key), location }
            }),
            store: table.store.map(|path| self.base_dir.join(path)),
            notary_key,
            next_hop,
            ledger: table.ledger,
            ports: Ports::default(),
        }
    }

    pub(super) fn roots(&mut self, paths: Option<Spanned<Vec<Spanned<PathBuf>>>>) -> Vec<PathBuf> {
        let paths = paths.map(Spanned::into_inner).unwrap_or_default();
        paths.into_iter().map(|path| self.file("file of roots", path).0).collect()
    }
}

/// How many lines the ledger has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "usize")]
pub struct Lines(pub usize);

impl Default for Lines {
    fn default() -> Self {
        Self(20_000)
    }
}

impl TryFrom<usize> for Lines {
    type Error = String;

    fn try_from(lines: usize) -> Result<Self, String> {
        match lines {
            0..=MOST_LINES => Ok(Self(lines)),
            _ => Err(format!("{lines} lines are more than a ledger can have\nwrite {MOST_LINES} at most, 0 for none")),
        }
    }
}

/// As many as the store keeps.
const MOST_LINES: usize = 50_000;

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
