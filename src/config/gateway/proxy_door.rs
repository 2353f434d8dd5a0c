//! What only a proxy door has.

use std::ops::Range;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_spanned::Spanned;

use super::file::ListenerTable;
use super::{Check, Files, lossy_option};
use crate::config::address::ListenerAddress;
use crate::config::secret::Secret;
use crate::config::settings::networks;
use crate::problem::Problem;

/// Who may use a proxy door, and where it leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProxyDoor {
    /// The file with `user:password`, which whoever comes has to show; without it nobody has to.
    #[serde(serialize_with = "lossy_option")]
    pub credentials_file: Option<PathBuf>,
    /// From where one may come; from everywhere that reaches the door, where there is none.
    pub networks: Vec<IpNet>,
    /// The ports that are connected to.
    pub ports: Vec<u16>,
}

impl ProxyDoor {
    /// Whether a door that is bound here is open to nobody but those it is for.
    pub fn is_guarded_at(&self, bind: &ListenerAddress) -> bool {
        let is_near = match bind {
            ListenerAddress::Tcp(address) => address.ip().is_loopback(),
            ListenerAddress::Unix(_) => true,
            // What the socket is bound to is known when it is opened, and looked at then.
            ListenerAddress::Systemd(_) => true,
        };
        is_near || self.credentials_file.is_some() || are_bounds(&self.networks)
    }
}

/// The keys of a listener that belong to a proxy door.
pub(super) struct ProxyKeys {
    credentials_file: Option<Spanned<PathBuf>>,
    pub(super) networks: Option<Spanned<Networks>>,
    ports: Option<Spanned<TargetPorts>>,
}

impl ProxyKeys {
    pub(super) fn take(table: &mut ListenerTable) -> Self {
        Self {
            credentials_file: table.credentials_file.take(),
            networks: table.networks.take(),
            ports: table.ports.take(),
        }
    }

    /// Those that are written, and where.
    fn written(&self) -> impl Iterator<Item = (&'static str, Range<usize>)> {
        let spans = [
            ("credentials_file", self.credentials_file.as_ref().map(Spanned::span)),
            ("networks", self.networks.as_ref().map(Spanned::span)),
            ("ports", self.ports.as_ref().map(Spanned::span)),
        ];
        spans.into_iter().filter_map(|(key, span)| Some((key, span?)))
    }
}

impl Check<'_> {
    pub(super) fn proxy_door(&mut self, keys: ProxyKeys, bind: &ListenerAddress, span: Range<usize>) -> ProxyDoor {
        let credentials_file = keys.credentials_file.map(|path| {
            let span = path.span();
            let path = self.base_dir.join(path.into_inner());
            if self.files == Files::MustBeThere
                && let Err(problem) = Secret::read_credentials(&path)
            {
                self.problem(problem, span);
            }
            path
        });
        let door = ProxyDoor {
            credentials_file,
            networks: keys.networks.map_or_else(Vec::new, |networks| networks.into_inner().0),
            ports: keys.ports.map_or_else(|| PORTS.to_vec(), |ports| ports.into_inner().0),
        };
        if !door.is_guarded_at(bind) {
            let what = format!("everybody who reaches {bind} could use this proxy");
            let help = "bind it to 127.0.0.1 or a unix socket, or add credentials_file = \"proxy.credentials\" or networks = [\"10.0.0.0/8\"]";
            self.problem(Problem::new(what).help(help), span);
        }
        door
    }

    /// At any other door.
    pub(super) fn no_proxy_keys(&mut self, keys: &ProxyKeys) {
        for (key, span) in keys.written() {
            let whose = if key == "networks" { "a proxy or a notary door" } else { "a proxy door" };
            let what = format!("`{key}` belongs to {whose}");
            self.problem(Problem::new(what).help("door = \"proxy\""), span);
        }
    }
}

/// Whether these networks keep anybody out: one that holds every address does not, whatever stands beside it.
pub(super) fn are_bounds(networks: &[IpNet]) -> bool {
    let all = |network: &IpNet| network.prefix_len() == 0;
    !networks.is_empty() && !IpNet::aggregate(&networks.to_vec()).iter().any(all)
}

/// Networks that one may come from.
#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct Networks(#[serde(deserialize_with = "networks")] pub(super) Vec<IpNet>);

/// Ports to connect to.
#[derive(Deserialize)]
#[serde(try_from = "Vec<u16>")]
pub(super) struct TargetPorts(Vec<u16>);

impl TryFrom<Vec<u16>> for TargetPorts {
    type Error = String;

    fn try_from(ports: Vec<u16>) -> Result<Self, String> {
        match ports.is_empty() || ports.contains(&0) {
            true => Err("these are no ports to connect to\nwrite ports = [443, 8448, 80], the default".to_owned()),
            false => Ok(Self(ports)),
        }
    }
}

/// HTTPS, federation where it has no door of its own, HTTP.
const PORTS: [u16; 3] = [443, 8448, 80];
