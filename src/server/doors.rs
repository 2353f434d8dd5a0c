//! The listeners that are open, and where each of them leads.

use std::sync::Arc;

use ipnet::IpNet;

use super::inherited::Inherited;
use super::opened::Opened;
use super::reload::Reloader;
use crate::config::address::ListenerAddress;
use crate::config::gateway::{self as config, Gateway, Listener};
use crate::config::secret::Secret;
use crate::ledger::{self, Ledger};
use crate::matrix::ServerName;
use crate::observe::metrics::{ListenerMetrics, Metrics};
use crate::origin::{NameServers, Origins, Webs};
use crate::problem::{Problem, Problems};
use crate::stack::forward::Terms;
use crate::tls;
use crate::tls::server::Server as Tls;

/// A listener's socket with what belongs to it.
pub(super) struct Door {
    pub socket: Opened,
    pub tls: Option<Tls>,
    pub proxy_protocol: bool,
    pub networks: Vec<IpNet>,
    pub metrics: ListenerMetrics,
    pub leads: Leads,
}

/// Where a listener leads, with what that takes.
pub(super) enum Leads {
    /// To Synapse.
    In,
    /// From Synapse to other servers.
    ToServers { secret: Secret, origins: Box<Origins> },
    /// From Synapse to everybody else. What it asks a notary there goes where the policy wants it to go.
    ToTheWeb { terms: Terms, webs: Box<Webs>, origins: Box<Origins> },
    /// From Synapse to our own notary, which asks other servers.
    ToOurNotary { name: ServerName, origins: Box<Origins> },
}

/// Binds all listeners of a gateway, or says what is wrong with them.
pub(super) fn bind(
    gateway: &Gateway,
    reloader: &Reloader,
    ledger: &Arc<Ledger>,
    workers: usize,
    metrics: &Metrics,
) -> Result<Vec<Door>, Problems> {
    let mut problems = Problems::default();
    let mut doors = Vec::new();
    let wants_inherited = |listener: &Listener| matches!(listener.bind, ListenerAddress::Systemd(_));
    let mut inherited = match gateway.listeners.iter().any(wants_inherited) {
        true => Inherited::receive(),
        false => Inherited::none(),
    };
    for listener in &gateway.listeners {
        let opened = Leads::read(listener, reloader, gateway, ledger, metrics).and_then(|leads| {
            let socket = Opened::open(listener, workers, &mut inherited)?;
            stays_near(listener, &socket)?;
            Ok((socket, leads))
        });
        match opened {
            Ok((socket, leads)) => {
                let metrics = metrics.listener(&listener.name);
                doors.push(Door {
                    socket,
                    tls: reloader.certificates().of(listener),
                    proxy_protocol: listener.proxy_protocol,
                    networks: listener.networks().to_vec(),
                    metrics,
                    leads,
                });
            }
            Err(found) => problems.0.extend(found.0),
        }
    }
    if problems.is_empty() {
        inherited.all_taken()?;
    }
    problems.or(doors)
}

impl Leads {
    fn read(
        listener: &Listener,
        reloader: &Reloader,
        gateway: &Gateway,
        ledger: &Arc<Ledger>,
        metrics: &Metrics,
    ) -> Result<Self, Problems> {
        if listener.door == config::Door::Ingress {
            return Ok(Self::In);
        }
        let egress = &gateway.egress;
        let tls = tls::client::config(&listener.extra_roots)?;
        let (servers, hop) = (NameServers::new(&egress.nameservers())?, reloader.next_hop());
        let (guard, ports) = (egress.guard(), egress.ports);
        let origins =
            Origins::new(Arc::clone(&tls), servers.clone(), guard, hop.clone(), ports, Arc::clone(ledger), metrics);
        match (&listener.proxy, &listener.notary, reloader.secret(listener)) {
            (Some(door), _, credentials) => {
                let terms = Terms { credentials, ports: door.ports.clone() };
                let webs = Webs::new(tls, servers, egress.guard(), hop, metrics);
                Ok(Self::ToTheWeb {
                    terms,
                    webs: Box::new(webs),
                    origins: Box::new(origins.behind(ledger::Door::Proxy)),
                })
            }
            (None, Some(door), _) => {
                let origins = Box::new(origins.behind(ledger::Door::Notary));
                Ok(Self::ToOurNotary { name: door.server_name.clone(), origins })
            }
            (None, None, Some(secret)) => Ok(Self::ToServers { secret, origins: Box::new(origins) }),
            (None, None, None) => Err(Problem::new("a door of the way out needs to know where it leads").into()),
        }
    }

    pub fn door(&self) -> config::Door {
        match self {
            Self::In => config::Door::Ingress,
            Self::ToServers { .. } => config::Door::Federation,
            Self::ToTheWeb { .. } => config::Door::Proxy,
            Self::ToOurNotary { .. } => config::Door::Notary,
        }
    }
}

/// What a socket that somebody else opened is bound to is known only now.
fn stays_near(listener: &Listener, socket: &Opened) -> Result<(), Problem> {
    match (listener.door, socket.address()) {
        (config::Door::Federation, ListenerAddress::Tcp(address)) if !address.ip().is_loopback() => {
            Err(Problem::new(format!("the federation door {} is open to others: {address}", listener.name))
                .help("ListenStream=127.0.0.1:46900, or the path of a socket"))
        }
        (config::Door::Proxy, address) if listener.proxy.as_ref().is_some_and(|door| !door.is_guarded_at(&address)) => {
            Err(Problem::new(format!("everybody who reaches {address} could use the proxy door {}", listener.name))
                .help("ListenStream=127.0.0.1:8118, or credentials_file, or networks"))
        }
        (config::Door::Notary, address)
            if listener.notary.as_ref().is_some_and(|door| !door.is_guarded_at(&address)) =>
        {
            Err(Problem::new(format!("everybody who reaches {address} could ask at the notary door {}", listener.name))
                .help("ListenStream=127.0.0.1:8449, or networks"))
        }
        (config::Door::Federation | config::Door::Proxy | config::Door::Notary | config::Door::Ingress, _) => Ok(()),
    }
}
