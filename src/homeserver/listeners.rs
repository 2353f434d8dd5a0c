//! Where Synapse listens: whether it is only Mantlet that asks it, and whether Synapse believes what Mantlet says of clients.

use rustls::pki_types::ServerName;

use super::Surroundings;
use super::file::Homeserver;
use super::finding::Report;
use super::place::{self, Url};
use super::yaml::{Map, Node};
use crate::addresses::Class;
use crate::config::address::{ListenerAddress, UpstreamAddress};
use crate::config::gateway::{Door, Gateway};
use crate::problem::Location;
use crate::tls::server::Credentials;

/// Looks at `listeners`, those of workers, and `public_baseurl`.
pub(super) fn examine(homeserver: &Homeserver, around: &Surroundings<'_>, report: &mut Report) {
    let of_workers = homeserver.of_each_file("worker_listeners");
    let lists = homeserver.get("listeners").into_iter().chain(of_workers).filter_map(Node::as_list);
    let listeners: Vec<_> = lists.flatten().filter_map(Listener::read).collect();
    if let Some((key, _)) = homeserver.entry("bind_port").filter(|(_, value)| value.is_true()) {
        let what = "`bind_port` is an old setting that opens listeners of its own, which everybody reaches";
        report.finding(&key.location, what, "write `listeners` instead, on 127.0.0.1");
    }
    for listener in &listeners {
        if let Some((key, value)) =
            listener.entries.entry("bind_addresses").filter(|(_, value)| value.as_list().is_none())
        {
            let what = format!("`bind_addresses` is {}, and has to be a list: Synapse does not start", value.kind());
            report.finding(&key.location, what, "bind_addresses: [\"127.0.0.1\"]");
            continue;
        }
        let asks = asked_by(listener, around.gateway);
        if !asks.is_empty() {
            believes(listener, report);
        }
        is_open(listener, &asks, report);
    }
    for server in around.gateway.upstreams.iter().flat_map(|upstream| &upstream.servers) {
        let is_known = listeners.iter().any(|listener| listener.is_at(server) != place::Is::Elsewhere);
        if around.gateway.upstreams.len() == 1 && !is_known {
            let what = format!("Mantlet asks Synapse at {server}, and {} has no listener there", homeserver.name());
            let help = "[upstream.synapse] servers, or the listener's `port` and `path`; name the file of a worker that listens \
                        there as well";
            report.finding(None, what, help);
        }
    }
    own_name(homeserver, around.gateway, report);
    public_url(homeserver, around.gateway, &listeners, report);
}

/// One of Synapse's listeners.
struct Listener<'a> {
    at: &'a Location,
    entries: &'a Map,
    port: Option<u16>,
    path: Option<&'a str>,
    addresses: Vec<&'a str>,
}

impl<'a> Listener<'a> {
    fn read(node: &'a Node) -> Option<Self> {
        let entries = node.as_map()?;
        let list = entries.get("bind_addresses").and_then(Node::as_list).unwrap_or_default();
        let addresses = list.iter().chain(entries.get("bind_address")).filter_map(Node::as_str);
        Some(Self {
            at: &node.location,
            entries,
            port: entries.get("port").and_then(Node::as_port),
            path: entries.get("path").and_then(Node::as_str),
            addresses: addresses.filter(|address| !address.is_empty()).collect(),
        })
    }

    fn is_at(&self, server: &UpstreamAddress) -> place::Is {
        match server {
            UpstreamAddress::Unix(path) if self.path.is_some_and(|own| path.as_os_str() == own) => place::Is::Door,
            UpstreamAddress::Unix(_) => place::Is::Elsewhere,
            UpstreamAddress::Tcp { port, .. } if self.port != Some(*port) => place::Is::Elsewhere,
            UpstreamAddress::Tcp { host, .. } => match place::Far::of(host) {
                place::Far::Here => place::Is::Door,
                // A container's port may be another inside; but it is the same one as a rule.
                place::Far::Inside | place::Far::Anywhere => place::Is::Unknown,
            },
        }
    }

    /// What it is for, in words.
    fn serves(&self) -> String {
        let kind = self.entries.get("type").and_then(Node::as_str).unwrap_or_default();
        let resources = self.entries.get("resources").and_then(Node::as_list).unwrap_or_default();
        let names = resources.iter().filter_map(|resource| resource.as_map()?.get("names")?.as_list()).flatten();
        let names: Vec<_> = names.filter_map(Node::as_str).collect();
        if names.is_empty() { kind.to_owned() } else { names.join(", ") }
    }
}

/// The servers of the gateway file that are this listener.
fn asked_by<'a>(listener: &Listener<'_>, gateway: &'a Gateway) -> Vec<&'a UpstreamAddress> {
    let servers = gateway.upstreams.iter().flat_map(|upstream| &upstream.servers);
    servers.filter(|server| listener.is_at(server) != place::Is::Elsewhere).collect()
}

fn believes(listener: &Listener<'_>, report: &mut Report) {
    let forwarded = listener.entries.entry("x_forwarded");
    let is_on = forwarded.map_or(listener.path.is_some(), |(_, value)| value.is_true());
    if !is_on {
        let at = forwarded.map_or(listener.at, |(key, _)| &key.location);
        let what = "`x_forwarded` is off where Mantlet asks: Synapse takes all clients for one, with Mantlet's address";
        report.finding(at, what, "x_forwarded: true");
    }
    if let Some((key, _)) = listener.entries.entry("tls").filter(|(_, value)| value.is_true()) {
        let what = "Mantlet asks this listener in plain HTTP, and it speaks TLS";
        report.finding(&key.location, what, "tls: false, on 127.0.0.1");
    }
}

/// Whether others than Mantlet reach it.
fn is_open(listener: &Listener<'_>, asked: &[&UpstreamAddress], report: &mut Report) {
    let Some(port) = listener.port else { return };
    let serves = listener.serves();
    let addresses = match listener.addresses.is_empty() {
        true => vec!["::"],
        false => listener.addresses.clone(),
    };
    let at = listener.entries.entry("bind_addresses").map_or(listener.at, |(key, _)| &key.location);
    let is_near = |server: &&&UpstreamAddress| matches!(server, UpstreamAddress::Tcp { host, .. } if place::Far::of(host) != place::Far::Here);
    // Mantlet is on another machine, so Synapse cannot listen on its own loopback alone.
    let is_elsewhere = asked.iter().any(|server| is_near(&server));
    for address in addresses {
        let Some(parsed) = place::parsed(address) else { continue };
        let what = format!("port {port} ({serves}) listens on {address}: who reaches it asks Synapse past Mantlet");
        match Class::of(parsed) {
            Class::Loopback => continue,
            Class::Unspecified | Class::Public if is_elsewhere => {
                report.note(
                    at,
                    what,
                    "let a firewall, or the network of the containers, keep others than Mantlet away",
                );
            }
            Class::Unspecified | Class::Public => report.finding(at, what, "bind_addresses: [\"127.0.0.1\"]"),
            Class::Private
            | Class::LinkLocal
            | Class::Shared
            | Class::Metadata
            | Class::Documentation
            | Class::Benchmarking
            | Class::Embedded(_)
            | Class::Protocol
            | Class::Multicast
            | Class::Broadcast
            | Class::Reserved => {
                report.note(at, what, "let a firewall keep others than Mantlet away");
            }
        }
        // `::` and `0.0.0.0` beside each other are one hole.
        return;
    }
}

fn own_name(homeserver: &Homeserver, gateway: &Gateway, report: &mut Report) {
    let (Some(said), Some((key, value))) = (&gateway.homeserver.server_name, homeserver.entry("server_name")) else {
        return;
    };
    if let Some(name) = value.as_str().filter(|name| name != said) {
        let what = format!("this is {name}, and the gateway file says [homeserver] server_name = \"{said}\"");
        report.finding(&key.location, what, "one of both is another server's");
    }
}

/// Whether clients are told to come to Mantlet.
fn public_url(homeserver: &Homeserver, gateway: &Gateway, listeners: &[Listener<'_>], report: &mut Report) {
    let Some((key, value)) = homeserver.entry("public_baseurl").filter(|(_, value)| !value.is_null()) else {
        let name = homeserver.server_name().unwrap_or("its server_name");
        let what = format!("{} sets no `public_baseurl`: Synapse tells its users https://{name}/", homeserver.name());
        return report.note(None, what, "see that this leads to Mantlet, or say what does");
    };
    let Some(url) = value.as_str().and_then(|url| Url::parse(url, None)) else {
        return report.finding(
            &key.location,
            "`public_baseurl` is no URL",
            "public_baseurl: \"https://matrix.example.org/\"",
        );
    };
    let doors: Vec<_> = gateway.listeners.iter().filter(|listener| listener.door == Door::Ingress).collect();
    let has_port =
        |port| doors.iter().any(|door| matches!(door.bind, ListenerAddress::Tcp(bind) if bind.port() == port));
    if listeners.iter().any(|listener| listener.port == Some(url.port)) && !has_port(url.port) {
        let what = format!(
            "`public_baseurl` leads to port {}, which is Synapse's own: clients are told to go past Mantlet",
            url.port
        );
        return report.finding(&key.location, what, "the URL by which Mantlet is reached");
    }
    // Behind another proxy, its certificates are that proxy's affair.
    let certificates: Vec<_> = doors.iter().filter_map(|door| Credentials::read(door).ok().flatten()).collect();
    let Ok(host) = ServerName::try_from(url.host.as_str()) else { return };
    let are_all = !certificates.is_empty() && certificates.len() == doors.len();
    if are_all && !certificates.iter().any(|certificate| certificate.is_for(&host)) {
        let what = format!("`public_baseurl` is at {}, and no certificate of this gateway is for that name", url.host);
        report.finding(&key.location, what, "the URL by which Mantlet is reached, or a certificate for it");
    }
}
