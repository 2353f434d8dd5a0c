//! Whom Synapse is told to ask, beside other homeservers: whether it still reaches them.

use std::fmt;

use super::Surroundings;
use super::file::Homeserver;
use super::finding::Report;
use super::place::{self, Far, Url};
use super::proxy::goes_past;
use super::settings::word;
use super::yaml::{Map, Node};
use crate::matrix::ServerName;
use crate::policy::egress::Way;
use crate::problem::Location;

/// Looks at each host that is named: behind a proxy door Synapse reaches it only if the door may.
pub(super) fn examine(homeserver: &Homeserver, around: &Surroundings<'_>, report: &mut Report) {
    files(homeserver, report);
    for named in named(homeserver) {
        for Hindrance { what, help } in around.hindrances(homeserver, &named) {
            report.finding(&named.at, what, help);
        }
    }
}

/// Somebody whom Synapse is told to ask.
pub(super) struct Named {
    pub who: Who,
    pub at: Location,
    /// As it stands there.
    url: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    AppService,
    /// The Matrix Authentication Service.
    Authentication,
    /// By OpenID Connect, or CAS.
    IdentityProvider,
    /// Who sends codes to phone numbers.
    Delegate,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AppService => "the application service",
            Self::Authentication => "the authentication service",
            Self::IdentityProvider => "the identity provider",
            Self::Delegate => "the delegate for phone numbers",
        })
    }
}

impl Named {
    fn new(who: Who, at: &Location, url: &str) -> Self {
        Self { who, at: at.clone(), url: url.to_owned() }
    }

    fn of(who: Who, node: &Node) -> Option<Self> {
        Some(Self::new(who, &node.location, node.as_str()?))
    }

    /// Its host, if it can be read.
    pub fn host(&self) -> Option<String> {
        Some(Url::parse(&self.url, None)?.host)
    }

    /// Whether nothing is lost where Synapse asks it past Mantlet.
    pub fn may_go_past(&self) -> bool {
        match self.who {
            Who::AppService | Who::Authentication => true,
            Who::IdentityProvider | Who::Delegate => {
                self.host().is_some_and(|host| Far::of(&host) != Far::Anywhere || read(&host).is_none())
            }
        }
    }
}

/// All that are named.
pub(super) fn named(homeserver: &Homeserver) -> Vec<Named> {
    let services = homeserver.app_services().into_iter().filter_map(|(_, read)| read.ok());
    let mut all: Vec<_> = services.flat_map(|entries| app_service(&entries)).collect();
    all.extend(authentication(homeserver));
    let providers = homeserver.get("oidc_providers").and_then(Node::as_list).unwrap_or_default().iter();
    let single = homeserver.get("oidc_config").filter(|node| entry_of(node, "enabled").is_some_and(Node::is_true));
    all.extend(providers.chain(single).filter_map(Node::as_map).flat_map(provider));
    let cas = homeserver.get("cas_config").filter(|node| entry_of(node, "enabled").is_none_or(Node::is_true));
    all.extend(cas.and_then(|node| Named::of(Who::IdentityProvider, entry_of(node, "server_url")?)));
    all.extend(delegate(homeserver));
    all
}

/// Where a service is asked.
fn app_service(entries: &Map) -> Vec<Named> {
    let named = |key| Named::of(Who::AppService, entries.get(key)?);
    ["url", "io.element.msc4512.proxy_url"].into_iter().filter_map(named).collect()
}

/// Where the Matrix Authentication Service is asked, if it is in use.
pub(super) fn authentication(homeserver: &Homeserver) -> Option<Named> {
    let (key, service) = homeserver.entry("matrix_authentication_service")?;
    entry_of(service, "enabled").filter(|enabled| enabled.is_true())?;
    match entry_of(service, "endpoint") {
        Some(node) => Named::of(Who::Authentication, node),
        None => Some(Named::new(Who::Authentication, &key.location, ENDPOINT)),
    }
}

/// Where an identity provider is asked, each host and port once; browsers alone ask `authorization_endpoint`.
fn provider(entries: &Map) -> Vec<Named> {
    let discovers = entries.get("discover").is_none_or(Node::is_true);
    let issuer = discovers.then_some("issuer");
    let keys = issuer.into_iter().chain(["token_endpoint", "userinfo_endpoint", "jwks_uri"]);
    let mut all: Vec<Named> = Vec::new();
    for named in keys.filter_map(|key| Named::of(Who::IdentityProvider, entries.get(key)?)) {
        let place = |named: &Named| Url::parse(&named.url, None).map(|url| url.place());
        if !all.iter().any(|other| place(other) == place(&named)) {
            all.push(named);
        }
    }
    all
}

/// Who sends codes to phone numbers, if that is not Synapse.
pub(super) fn delegate(homeserver: &Homeserver) -> Option<Named> {
    Named::of(Who::Delegate, entry_of(homeserver.get("account_threepid_delegates")?, "msisdn")?)
}

fn entry_of<'a>(node: &'a Node, key: &str) -> Option<&'a Node> {
    node.as_map()?.get(key)
}

/// Looks at the files of application services.
fn files(homeserver: &Homeserver, report: &mut Report) {
    if let Some((key, value)) = homeserver.entry("app_service_config_files") {
        let is_odd = |node: &&Node| node.as_str().is_none();
        let odd = match value.as_list() {
            None => Some((&key.location, format!("is {}, and has to be a list", value.kind()))),
            Some(list) => list
                .iter()
                .find(is_odd)
                .map(|node| (&node.location, format!("names what is {}, not a string", node.kind()))),
        };
        if let Some((at, what)) = odd {
            let what = format!("`app_service_config_files` {what}: Synapse does not start");
            report.finding(at, what, "app_service_config_files: [/etc/matrix-synapse/bridge.yaml]");
        }
    }
    for (node, read) in homeserver.app_services() {
        if let Err(problem) = read {
            let at = problem.location.clone().unwrap_or_else(|| node.location.clone());
            let help = "run this as a user who may read it, and where it is";
            report.note(&at, format!("an application service was not looked at: {}", problem.what), help);
        }
    }
}

/// Why the proxy door does not reach somebody, and what to do.
pub(super) struct Hindrance {
    what: String,
    help: String,
}

impl Surroundings<'_> {
    /// What keeps the proxy door from reaching whom Synapse asks through it; nothing without a door.
    pub(super) fn hindrances(&self, homeserver: &Homeserver, named: &Named) -> Vec<Hindrance> {
        let doors = self.proxy_doors();
        let mut all = Vec::new();
        let mut tell = |what: String, help: String| all.push(Hindrance { what, help });
        let Some(url) = Url::parse(&named.url, None) else {
            if !doors.is_empty() {
                tell(format!("the URL of {} cannot be read", named.who), String::new());
            }
            return all;
        };
        if doors.is_empty() || goes_past(homeserver, &url.host) {
            return all;
        }
        let (who, place) = (named.who, url.place());
        let past = format!("no_proxy_hosts: [{}] in homeserver.yaml", word(&url.host));
        let or = if named.may_go_past() { format!("; or {past}") } else { String::new() };
        let Some(way) = self.way(&url.host) else {
            tell(format!("{who} at {place} has a name that the proxy door does not read"), past);
            return all;
        };
        if way == Way::Deny {
            let help = format!("[[egress.destination]] host = \"{}\", action = \"tunnel\"{or}", url.host);
            tell(format!("the policy leaves no way to {who} at {place}"), help);
            return all;
        }
        if !doors.iter().any(|door| door.proxy.as_ref().is_some_and(|door| door.ports.contains(&url.port))) {
            let help = format!("ports = [443, 8448, 80, {}] at the door{or}", url.port);
            tell(format!("the proxy door does not connect to port {} of {who} at {place}", url.port), help);
        }
        let guard = self.gateway.egress.guard();
        let is_reached = match (place::parsed(&url.host), Far::of(&url.host)) {
            (Some(address), _) => guard.check(&url.host, address).is_ok(),
            (None, Far::Here) => guard.check(&url.host, std::net::Ipv4Addr::LOCALHOST.into()).is_ok(),
            (None, Far::Inside) => guard.names(&url.host),
            (None, Far::Anywhere) => true,
        };
        if !is_reached {
            let help = format!("[egress.addresses] allow = [\"{}\"] in the gateway file{or}", url.host);
            tell(format!("{who} at {place} has no public address, so the proxy door does not reach it"), help);
        }
        all
    }

    /// Which way the policy leaves to a host, if that is a name which the proxy door reads.
    pub(super) fn way(&self, host: &str) -> Option<Way> {
        Some(self.policy.egress().way(read(host)?.host()).0)
    }
}

/// A host, as the proxy door reads it.
fn read(host: &str) -> Option<ServerName> {
    let bracketed = format!("[{host}]");
    ServerName::parse_web(if host.contains(':') { &bracketed } else { host })
}

/// Synapse's, for a `matrix_authentication_service` that names none.
const ENDPOINT: &str = "http://localhost:8080";
